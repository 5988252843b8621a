"""How many requests an edit holds: one, several at once, or many one after another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from editkit.editors import Editor, Groups
from editkit.edits import Edit, applied
from editkit.errors import UsageError
from editkit.lm import LM, chunks
from editkit.requests import EditRequest


class Regime(Protocol):
    """Turns a task's requests into edits, each with the groups of requests that its slots hold.

    ``Edit.regime`` names what the edit's scores are of; scores of one name are averaged.
    """

    def check(self, task: str, records: int) -> None:
        """Raises UsageError if so many records are too few."""
        ...

    def __call__(self, editor: Editor, lm: LM, requests: Sequence[EditRequest]) -> Iterator[tuple[Edit, Groups]]: ...


@dataclass(frozen=True)
class Single:
    """Each edit starts from the base model; ``at_once`` of them are made together, which changes nothing but speed."""

    at_once: int = 64

    def check(self, task: str, records: int) -> None:
        pass

    def __call__(self, editor: Editor, lm: LM, requests: Sequence[EditRequest]) -> Iterator[tuple[Edit, Groups]]:
        for chunk in chunks(requests, self.at_once):
            groups = [[request] for request in chunk]
            yield replace(editor.edit(lm, groups), regime="single"), groups


@dataclass(frozen=True)
class Batch:
    """``size`` requests as one edit; a last, smaller batch is edited too."""

    size: int
    at_once: int = 16

    def check(self, task: str, records: int) -> None:
        pass

    def __call__(self, editor: Editor, lm: LM, requests: Sequence[EditRequest]) -> Iterator[tuple[Edit, Groups]]:
        for groups in chunks(chunks(requests, self.size), self.at_once):
            yield replace(editor.edit(lm, groups), regime=f"batch {self.size}"), groups


@dataclass(frozen=True)
class Sequential:
    """``length`` edits one after another, each made on the model that the ones before it left.

    Scored after all of them and, before that, after as many as ``along`` says: always all edits so far, so that
    reliability along the sequence is the share of them that is still there. Several such sequences run side by side,
    one a slot; requests that do not fill a sequence are left out.
    """

    length: int
    along: Sequence[int] = ()

    def __post_init__(self) -> None:
        if min([self.length, *self.along]) < 1:
            raise UsageError(
                f"regime.length is {self.length} and regime.along {list(self.along)}: all count edits and start at 1."
            )

    def check(self, task: str, records: int) -> None:
        if self.length > records:
            raise UsageError(
                f"regime.length is {self.length}, but {task} has {records} records to test: "
                "lower it, or raise tasks.test_limit."
            )

    def scored(self, made: int) -> bool:
        """Whether scores are taken after so many edits."""
        return made == self.length or made in self.along

    def __call__(self, editor: Editor, lm: LM, requests: Sequence[EditRequest]) -> Iterator[tuple[Edit, Groups]]:
        groups = [group for group in chunks(requests, self.length) if len(group) == self.length]
        total: Edit | None = None
        for made in range(1, self.length + 1):
            step = [[group[made - 1]] for group in groups]
            if total is None:
                total = editor.edit(lm, step)
            else:
                with applied(lm.sites(list(total.rules)), total, range(len(groups))):
                    edit = editor.edit(lm, step)
                total = total + edit
            if self.scored(made):
                yield replace(total, regime=f"sequential {made}"), [group[:made] for group in groups]
