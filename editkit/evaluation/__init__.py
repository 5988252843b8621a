"""Scoring: protocols turn an edit into one record a question; averages and intervals are derived from records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from editkit.edits import Edit
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
        protocols: the evaluators by name; null entries are left out.
        resamples: bootstrap resamples behind each interval.
    """

    protocols: dict[str, Evaluator | None]
    resamples: int = 1000

    def score(self, lm: LM, edit: Edit, groups: Sequence[Sequence[EditRequest]]) -> list[Record]:
        active = [protocol for protocol in self.protocols.values() if protocol is not None]
        return [record for protocol in active for record in protocol.score(lm, edit, groups)]
