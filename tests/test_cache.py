"""Kept vectors: the ring's bound, what disk gives back, damage, two processes on one folder, the same training."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from editkit.cache import FILE_BYTES, Cache, Shelf, Table
from editkit.editors.mend import MEND
from editkit.errors import UsageError
from editkit.lm import LM
from editkit.objectives import Objective
from editkit.requests import EditRequest
from editkit.training import Trainer
from tests.conftest import SITES


def vectors(key: tuple[int, ...], width: int = 4) -> torch.Tensor:
    """What belongs to a key: as many rows as it has numbers."""
    return torch.tensor(key, dtype=torch.float32)[:, None] * torch.ones(width)


@pytest.mark.parametrize("limit", [0, 40 * 16, 10**9])
def test_a_table_gives_back_what_it_keeps_and_keeps_to_its_bound(limit: int) -> None:
    draw, table = random.Random(limit), Table(limit)
    every = [tuple(draw.choices(range(50), k=draw.randint(1, 6))) for _ in range(80)]
    for _ in range(300):
        wanted = list(dict.fromkeys(draw.sample(every, draw.randint(1, 8))))
        rows = sum(map(len, wanted))
        while missing := table.missing(wanted, torch.device("cpu")):
            table.reserve(rows, vectors(missing[0]))
            table.add(missing, [vectors(key) for key in missing])
        for key in wanted:
            first = table.where[key]
            assert torch.equal(table.states[first : first + len(key)], vectors(key))
        assert len(table.states) <= max(limit // 16, 3 * 48)
    assert (len(table.where) == len(set(every))) == (limit == 10**9)


def filled(folder: Path, keys: list[tuple[int, ...]], limit: int = 10**9) -> Shelf:
    shelf = Shelf(folder, folder / "model" / "block", limit)
    shelf.put(keys, [vectors(key) for key in keys])
    shelf.flush()
    return shelf


KEYS = [(1, 2, 3), (4,), (5, 6)]


def test_a_shelf_gives_back_what_another_run_put_there(tmp_path: Path) -> None:
    later = Shelf(tmp_path, tmp_path / "model" / "block", 10**9)
    assert later.take(KEYS) == {}
    filled(tmp_path, KEYS[:2])
    filled(tmp_path, KEYS[2:])
    found = later.take([*KEYS, (7,)])
    assert list(found) == KEYS
    assert all(torch.equal(found[key], vectors(key)) for key in KEYS)


def test_what_is_damaged_is_not_there(tmp_path: Path) -> None:
    """Every byte of the file is damaged in turn; whatever is still given is right."""
    filled(tmp_path, KEYS)
    (file,) = tmp_path.rglob("*.safetensors")
    whole, lost = file.read_bytes(), 0
    for place in range(0, len(whole), 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        found = Shelf(tmp_path, file.parent, 10**9).take(KEYS)
        assert all(torch.equal(states, vectors(key)) for key, states in found.items()), place
        lost += len(found) < len(KEYS)
    assert lost > 50
    file.write_bytes(whole[: len(whole) // 2])
    assert Shelf(tmp_path, file.parent, 10**9).take(KEYS) == {}


def test_the_folder_keeps_to_its_bound_and_what_was_used_last(tmp_path: Path) -> None:
    for number in range(5):
        key = (number,) * 64
        filled(tmp_path, [key], limit=4000)
        time.sleep(0.02)
        Shelf(tmp_path, tmp_path / "model" / "block", 4000).take([(0,) * 64])  # the first is used each time
    files = list(tmp_path.rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 4000
    there = Shelf(tmp_path, tmp_path / "model" / "block", 4000).take([(number,) * 64 for number in range(5)])
    assert set(there) == {(0,) * 64, (3,) * 64, (4,) * 64}


def endless(folder: str) -> None:
    number = 0
    while True:
        number += 1
        filled(Path(folder), [(number, row) for row in range(50)])


def test_a_run_killed_beside_another_leaves_the_folder_usable(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=endless, args=(str(tmp_path),))
    process.start()
    mine = Shelf(tmp_path, tmp_path / "model" / "block", 10**9)
    try:
        while len(list(tmp_path.rglob("*.safetensors"))) < 20:
            time.sleep(0.05)
        for number in range(1, 6):
            keys = [(number, row) for row in range(50)]
            found = mine.take(keys)
            assert len(found) == 50 and all(torch.equal(found[key], vectors(key)) for key in keys)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    filled(tmp_path, KEYS)
    again = Shelf(tmp_path, tmp_path / "model" / "block", 10**9).take([*KEYS, (1, 0)])
    assert set(again) == {*KEYS, (1, 0)}


@contextmanager
def trunk_runs(lm: LM) -> Iterator[list[int]]:
    """Counts the texts that run through the model's first block."""
    seen: list[int] = []
    handle = lm.blocks[0].register_forward_hook(lambda _m, args, _y: seen.append(len(args[0])))
    yield seen
    handle.remove()


def trained(lm: LM, requests: list[EditRequest], folder: Path, prefill: bool) -> list[dict[str, float]]:
    """The curves of a training."""
    editor = MEND(lm, SITES["llama"], rank=8, lr=1e-3, step_size=0.01)
    trainer = Trainer(Objective(), steps=6, batch=4, validate_every=3, progress=False, prefill=prefill)
    curve: list[dict[str, float]] = []

    def log(metrics: Mapping[str, float], step: int) -> None:
        curve.append({key: value for key, value in metrics.items() if not key.endswith("per_s")})

    trainer.fit(lm, editor, requests[:4], requests[4:], folder, log)
    return curve


def test_cached_and_uncached_training_are_the_same(
    make_lm: Callable[..., LM], requests: list[EditRequest], tmp_path: Path
) -> None:
    caches = {
        "memory": Cache(),
        "nothing": Cache(memory_gb=0),
        "disk": Cache(folder=str(tmp_path / "cache")),
        "disk again": Cache(memory_gb=0, folder=str(tmp_path / "cache")),
    }
    curves, texts = [], {}
    for name, cache in caches.items():
        made = make_lm("llama", torch.float32)
        lm = LM(made.model, made.tokenizer, made.layout, "llama", cache=cache)
        with trunk_runs(lm) as runs:
            curves.append(trained(lm, requests, tmp_path / name, prefill=name == "disk"))
        lm.flush()
        texts[name] = sum(runs)
    for curve in curves[1:]:
        for one, other in zip(curves[0], curve, strict=True):
            assert one.keys() == other.keys()
            assert all(abs(one[key] - other[key]) <= 1e-5 for key in one), (one, other)
    # Where nothing is kept, texts run again and again; with all on disk a row for each new length, to see how the
    # blocks are called.
    assert texts["disk again"] < texts["memory"] < texts["nothing"]
    assert texts["disk again"] == len(lm._calls)


def test_a_file_is_written_when_it_is_full(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, tmp_path / "m", 10**9)
    shelf.put([(1,)], [torch.zeros(1, FILE_BYTES // 8)])
    assert list(tmp_path.rglob("*.safetensors")) == []
    shelf.put([(2,)], [torch.zeros(1, FILE_BYTES // 8)])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_a_bound_below_zero_or_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cache.memory_gb is -1"):
        Cache(memory_gb=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="set cache.folder elsewhere"):
        Cache(folder=str(tmp_path / "file")).table("model", "block-0")
