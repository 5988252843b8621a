"""Fine-tuning with a clamp, on one matrix and one edit: FT-L and FT-M (FT-L as in ROME, arXiv 2202.05262, appendix).

FT-L scores every target token at the last prompt position (``loss: prompt_last``); FT-M takes the ordinary next-token
loss on the target (``loss: target``). After each Adam step the change is clamped, ``|W - W0| ≤ clamp``.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from editkit.editors.loss import edit_batch, nll_by_slot
from editkit.edits import Dense, Edit, applied
from editkit.errors import check_choice
from editkit.lm import LM, weight
from editkit.requests import EditRequest


class FineTuning:
    """The editor; all slots take their steps together, each stopping on its own.

    Args:
        lm: the model to edit.
        site: name of the one matrix that changes (an MLP's down-projection).
        loss: ``prompt_last`` or ``target``.
        lr: Adam's learning rate.
        steps: at most so many steps.
        enough: a slot stops once its loss (nats a token) is below this.
        clamp: bound on each entry of the change.
    """

    def __init__(
        self,
        lm: LM,
        site: str,
        loss: str,
        lr: float = 5e-4,
        steps: int = 25,
        enough: float = 1e-2,
        clamp: float = 5e-4,
    ) -> None:
        check_choice("editor.loss", loss, ("prompt_last", "target"))
        ((self.site, module),) = lm.sites([site]).items()
        weight(module)  # raises for a site that is no linear map
        self.loss, self.lr, self.steps, self.enough, self.clamp = loss, lr, steps, enough, clamp

    def edit(self, lm: LM, groups: Sequence[Sequence[EditRequest]]) -> Edit:
        batch, owner = edit_batch(lm, groups, lm.block_of([self.site]))
        if self.loss == "prompt_last":
            first = torch.full((len(owner),), batch.hidden.shape[1], device=batch.row.device)
            first = first.scatter_reduce(0, batch.row, batch.position, "amin")
            batch = replace(batch, position=first[batch.row])
        sites = lm.sites([self.site])
        matrix = weight(sites[self.site])
        wide = torch.promote_types(matrix.dtype, torch.float32)
        delta = torch.zeros(len(groups), *matrix.shape, dtype=wide, device=matrix.device, requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=self.lr, fused=True)  # one pass over matrices that fill no cache
        for _ in range(self.steps):
            with torch.enable_grad(), applied(sites, Edit({self.site: Dense(delta)}, len(groups)), owner):
                losses = nll_by_slot(lm.logits(batch), batch, owner, len(groups))
                (delta.grad,) = torch.autograd.grad(losses.sum(), delta)
            stopped = losses.detach() < self.enough
            if stopped.all():
                break
            before = delta.detach()[stopped]
            optimizer.step()
            with torch.no_grad():
                delta.clamp_(-self.clamp, self.clamp)
                delta[stopped] = before
        return Edit({self.site: Dense(delta.detach())}, len(groups))
