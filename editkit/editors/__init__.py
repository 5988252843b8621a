"""Editors: one file a method. Each turns requests into an ``Edit`` and leaves the model alone."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import nn

from editkit.edits import Edit
from editkit.lm import LM
from editkit.requests import EditRequest

Groups = Sequence[Sequence[EditRequest]]


@runtime_checkable
class Editor(Protocol):
    """Makes one slot for each group of requests; the requests of a group are edited in together."""

    def edit(self, lm: LM, groups: Groups) -> Edit: ...


@runtime_checkable
class Trainable(Protocol):
    """An editor that learns to edit: an ``nn.Module`` whose ``edit`` carries gradients while grad mode is on."""

    def edit(self, lm: LM, groups: Groups) -> Edit: ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser, each with its own learning rate ``lr``."""
        ...

    def train(self, mode: bool = True) -> nn.Module: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@runtime_checkable
class Instructed(Protocol):
    """An editor that reads an instruction before each edit prompt."""

    def instruct(self, request: EditRequest) -> EditRequest:
        """The request with its ``instruction`` filled in."""
        ...
