"""Several processes that train one editor: who this one is, what all add up to, and how they are brought together.

torch's process group is the only state; without one there is one process, and a sum is what is summed.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from editkit.errors import UsageError


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def summed(x: Tensor) -> Tensor:
    """The sum of every process's ``x``; each must ask for it, in the same order."""
    if size() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total


@contextmanager
def team(members: int, work: Callable[[int], None]) -> Iterator[None]:
    """Within: this process is the first of ``members``; each of the others runs ``work(rank)`` and ends.

    Args:
        members: how many; 1 starts nothing.
        work: can be pickled, since the others are new processes; on a GPU machine rank i is to use ``cuda:i``.

    Raises:
        UsageError: there are fewer GPUs than members, or one of the others failed.
    """
    if members == 1:
        yield
        return
    if 0 < torch.cuda.device_count() < members:
        raise UsageError(f"trainer.devices is {members}, but there are {torch.cuda.device_count()} GPUs: lower it.")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    others = [context.Process(target=_member, args=(rank, members, port, work)) for rank in range(1, members)]
    for other in others:
        other.start()
    try:
        with _joined(0, members, port):
            yield
        for other in others:
            other.join()
    except RuntimeError as error:  # what torch raises where another process is gone
        for other in others:
            other.join(10)
        if any(other.exitcode for other in others):
            raise UsageError("A process that trained beside this one failed: what it said stands above.") from error
        raise
    finally:
        for other in others:
            other.kill()


def _member(rank: int, members: int, port: int, work: Callable[[int], None]) -> None:
    with _joined(rank, members, port):
        work(rank)


@contextmanager
def _joined(rank: int, members: int, port: int) -> Iterator[None]:
    """Within: one of the process group's ``members``, with its share of the machine's threads."""
    from accelerate import PartialState

    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": members, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    before, threads = dict(os.environ), torch.get_num_threads()
    os.environ.update({key: str(value) for key, value in places.items()})
    torch.set_num_threads(max(1, threads // members))
    try:
        PartialState(cpu=not torch.cuda.is_available())
        yield
    finally:
        PartialState().destroy_process_group()
        PartialState._reset_state()
        torch.set_num_threads(threads)
        for key in places:
            os.environ.pop(key, None)
        os.environ.update({key: before[key] for key in places if key in before})
