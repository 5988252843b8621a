"""Several processes that train one editor give what one process gives."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from editkit import configs, parallel
from editkit.errors import UsageError
from editkit.objectives import Objective
from editkit.run import run
from editkit.training import Trainer

SETTINGS = ["debug=fast", "editor=mend", "tracker.mode=disabled", "evaluator.only=[teacher_forced]", "run.editor=mend"]


def trained(folder: Path, *settings: str) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    with configs.sources():
        config = configs.checked([*SETTINGS, f"run.dir={folder}", "trainer.progress=false", *settings])
    run(config)
    curves = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return curves, load_file(folder / "checkpoints" / "mend" / "last.safetensors")


@pytest.mark.parametrize("more", [[], ["trainer.micro_batch=1"]])
def test_two_processes_train_as_one(tmp_path: Path, more: list[str]) -> None:
    curves, weights = trained(tmp_path / "one")
    others, shared = trained(tmp_path / "two", "trainer.devices=2", *more)
    assert len(curves) == len(others) > 2
    for one, two in zip(curves, others, strict=True):
        assert one.keys() == two.keys()
        same = [key for key in one if key != "editor" and not key.endswith("per_s")]
        # In fp32, sums of other parts differ in their last digits.
        assert all(abs(one[key] - two[key]) <= 1e-4 * max(1, abs(one[key])) for key in same), (one, two)
    for name, tensor in weights.items():
        assert torch.allclose(tensor, shared[name], rtol=1e-3, atol=1e-5), name


def failing(rank: int) -> None:
    raise ValueError(f"rank {rank} has had enough")


def adding(rank: int) -> None:
    assert parallel.summed(torch.tensor(float(rank))) == 1


def test_what_all_of_them_have_is_added_up_and_afterwards_there_is_one() -> None:
    with parallel.team(2, adding):
        assert (parallel.rank(), parallel.size()) == (0, 2)
        assert parallel.summed(torch.tensor(0.0)) == 1
    assert (parallel.rank(), parallel.size()) == (0, 1)
    assert parallel.summed(torch.tensor(3.0)) == 3


def test_another_one_that_fails_ends_all_of_them() -> None:
    with pytest.raises(UsageError, match="trained beside this one failed"), parallel.team(2, failing):
        parallel.summed(torch.tensor(0.0))
    assert parallel.size() == 1


def test_a_step_is_shared_evenly() -> None:
    with pytest.raises(UsageError, match="trainer.devices is 3, but must divide trainer.batch, which is 4"):
        Trainer(Objective(), steps=1, batch=4, devices=3)
