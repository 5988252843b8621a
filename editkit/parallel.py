"""Several processes that train one editor: who this one is, and sums over all of them.

torch's process group is the only state; without one there is one process, and a sum is what is summed.
"""

import torch.distributed as dist
from torch import Tensor


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
