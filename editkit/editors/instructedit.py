"""InstructEdit: one editor for many tasks, steered by an instruction before each edit (arXiv 2402.16123).

The instruction (a task's name and one of its descriptions) stands before the edit prompt, so it is part of what the
editing gradient is taken of; the editor underneath is another method's, MEND's in the paper.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from editkit.editors import Trainable
from editkit.edits import Edit
from editkit.instructions import Instructions
from editkit.lm import LM
from editkit.requests import EditRequest


class InstructEdit(nn.Module):
    """An editor that reads instructions.

    Args:
        lm: the model to edit.
        editor: builds the editor underneath from ``lm``.
        descriptions: a set shipped in ``conf/descriptions`` or a path to a YAML of the same form.
        draw: which of a task's descriptions to use: ``seen`` (one of the trained ones, drawn once for each record),
            ``unseen`` (the one kept back), an index, or a wrong one, see ``Instructions.give``.
        seed: seed of that draw.
    """

    def __init__(
        self,
        lm: LM,
        editor: Callable[[LM], Trainable],
        descriptions: str,
        draw: str | int = "seen",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.editor = editor(lm)
        self.instructions = Instructions(descriptions)
        self.draw = draw
        self.seed = seed

    def instruct(self, request: EditRequest) -> EditRequest:
        return self.instructions.give(request, self.seed, self.draw)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.editor.parameter_groups()

    def edit(self, lm: LM, groups: Sequence[Sequence[EditRequest]]) -> Edit:
        return self.editor.edit(lm, groups)
