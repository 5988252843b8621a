"""Scoring: protocols turn an edit into one record a question; averages and intervals are derived from records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from editkit.edits import Edit
from editkit.errors import check_choice
from editkit.evaluation.records import Record
from editkit.lm import LM
from editkit.requests import EditRequest

VERSION = "1"  # of the protocols: raised whenever a score would change


class Evaluator(Protocol):
    """Scores an edit; it is never told which editor made it."""

    def score(self, lm: LM, edit: Edit, groups: Sequence[Sequence[EditRequest]]) -> list[Record]: ...


@dataclass(frozen=True)
class Protocols:
    """Several evaluators as one.

    Attributes:
        protocols: the evaluators by name.
        resamples: bootstrap resamples behind each interval.
        only: the names of those that are used; null: all.
    """

    protocols: dict[str, Evaluator]
    resamples: int = 1000
    only: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in self.only or ():
            check_choice("evaluator.only", name, tuple(self.protocols))

    def score(self, lm: LM, edit: Edit, groups: Sequence[Sequence[EditRequest]]) -> list[Record]:
        used = self.protocols if self.only is None else self.only
        return [record for name in used for record in self.protocols[name].score(lm, edit, groups)]
