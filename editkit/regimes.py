"""How many requests an edit holds: one, several at once, or many one after another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from editkit.editors import Editor, Groups
from editkit.edits import Edit, added, applied
from editkit.errors import UsageError
from editkit.lm import LM, chunks
from editkit.requests import EditRequest


class Regime(Protocol):
    """Turns a task's requests into edits, each with the groups of requests that its slots hold."""

    @property
    def name(self) -> str: ...

    def __call__(self, editor: Editor, lm: LM, requests: Sequence[EditRequest]) -> Iterator[tuple[Edit, Groups]]: ...


@dataclass(frozen=True)
class Single:
    """Each edit starts from the base model; ``at_once`` of them are made together, which changes nothing but speed."""

    at_once: int = 64
    name: str = "single"

    def __call__(self, editor: Editor, lm: LM, requests: Sequence[EditRequest]) -> Iterator[tuple[Edit, Groups]]:
        for chunk in chunks(requests, self.at_once):
            groups = [[request] for request in chunk]
            yield replace(editor.edit(lm, groups), regime=self.name), groups


@dataclass(frozen=True)
class Batch:
    """``size`` requests as one edit; a last, smaller batch is edited too."""

    size: int
    at_once: int = 16
    name: str = "batch"

    def __call__(self, editor: Editor, lm: LM, requests: Sequence[EditRequest]) -> Iterator[tuple[Edit, Groups]]:
        for groups in chunks(chunks(requests, self.size), self.at_once):
            yield replace(editor.edit(lm, groups), regime=self.name), groups


@dataclass(frozen=True)
class Sequential:
    """``length`` edits one after another, each made on the model that the ones before it left; scored after all.

    Several such sequences run side by side, one a slot; requests that do not fill a sequence are left out.
    """

    length: int
    name: str = "sequential"

    def __call__(self, editor: Editor, lm: LM, requests: Sequence[EditRequest]) -> Iterator[tuple[Edit, Groups]]:
        if self.length > len(requests):
            raise UsageError(f"regime.length is {self.length}, but a task has only {len(requests)} records: lower it.")
        groups = [group for group in chunks(requests, self.length) if len(group) == self.length]
        steps = [[[group[place]] for group in groups] for place in range(self.length)]
        total = editor.edit(lm, steps[0])
        for step in steps[1:]:
            with applied(lm.sites(list(total.rules)), total, range(len(groups))):
                edit = editor.edit(lm, step)
            total = added([total, edit])
        yield replace(total, regime=self.name), groups
