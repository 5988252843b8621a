"""What each regime refuses, and what its scores are called."""

from collections.abc import Callable

import pytest

from editkit.editors.ft import FineTuning
from editkit.errors import UsageError
from editkit.lm import LM
from editkit.regimes import Batch, Regime, Sequential, Single
from editkit.requests import EditRequest


@pytest.mark.parametrize(
    ("regime", "names", "sizes"),
    [
        (Single(4), ["single", "single"], [[1] * 4, [1] * 2]),
        (Batch(4), ["batch 4"], [[4, 2]]),
        (Sequential(3), ["sequential 3"], [[3, 3]]),
        (
            Sequential(5, along=[1, 3, 10]),
            ["sequential 1", "sequential 3", "sequential 5"],
            [[1], [3], [5]],
        ),
    ],
)
def test_edits_say_what_they_hold(
    regime: Regime, names: list[str], sizes: list[list[int]], make_lm: Callable[..., LM], requests: list[EditRequest]
) -> None:
    lm = make_lm("gpt2")
    made = list(regime(FineTuning(lm, "-1.mlp.c_proj", "target", steps=1), lm, requests))
    assert [edit.regime for edit, _ in made] == names
    assert [[len(group) for group in groups] for _, groups in made] == sizes


def test_a_sequence_longer_than_a_task_is_refused_by_name() -> None:
    Sequential(6).check("zsre", 6)
    with pytest.raises(UsageError, match="regime.length is 7, but zsre has 6 records to test: lower it, or raise"):
        Sequential(7).check("zsre", 6)


@pytest.mark.parametrize(("length", "along"), [(0, ()), (3, (0, 1))])
def test_edits_are_counted_from_one(length: int, along: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="count edits and start at 1"):
        Sequential(length, along)
