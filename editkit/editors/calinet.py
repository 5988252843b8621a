"""CaliNet: extra memory slots beside one block's MLP, trained on all facts of a batch together (arXiv 2210.03329).

With ``W1'`` and ``W2'`` the slots' keys and values, the MLP becomes ``FFN(h) + W2' φ(W1' h)``; a gated MLP gets gated
slots. There is no bias, and the model itself stays as it is.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from editkit.editors.loss import edit_batch, nll_by_slot
from editkit.edits import Edit, FFNSlots, applied, rebuilt
from editkit.errors import UsageError
from editkit.lm import LM
from editkit.requests import EditRequest


class CaliNet:
    """The editor; all edits take their steps together, each stopping on its own.

    Departs from the released code: the values start at zero, so that an edit starts as the base model, and the
    optimiser is Adam (theirs: Adafactor), whose steps in one edit do not depend on those in another.

    Args:
        lm: the model to edit.
        site: name of the MLP.
        activation: transformers' name of the MLP's activation, such as ``silu``.
        gated: whether the MLP is gated, and so the extra slots.
        width: extra memory slots (the paper's d_c: 64 for 100 facts, 256 for more).
        lr: Adam's learning rate.
        steps: at most so many steps.
        enough: an edit stops once its loss (nats a token) is below this.
        rephrases: train on the requests' rephrases too, as the authors do. They hold other rephrases back for testing;
            where a task has only those it is scored on, generalization is then a score on the training texts.
        seed: of the initial keys, which are the same for every edit.
    """

    def __init__(
        self,
        lm: LM,
        site: str,
        activation: str,
        gated: bool,
        width: int = 64,
        lr: float = 1e-2,
        steps: int = 200,
        enough: float = 1e-2,
        rephrases: bool = False,
        seed: int = 0,
    ) -> None:
        from transformers.activations import ACT2FN

        if width < 1:
            raise UsageError(f"editor.width is {width}, but CaliNet needs at least one extra slot: set it to 64, say.")
        if activation not in ACT2FN:
            raise UsageError(
                f"editor.activation is {activation!r}, but must be one of transformers' names, such as silu."
            )
        ((self.site, module),) = lm.sites([site]).items()
        if not list(module.children()):
            raise UsageError(
                f"Site {site!r} is a {type(module).__name__}, but CaliNet needs a block's MLP: set it to one."
            )
        self.activation, self.gated, self.width = activation, gated, width
        self.lr, self.steps, self.enough, self.rephrases, self.seed = lr, steps, enough, rephrases, seed

    def edit(self, lm: LM, groups: Sequence[Sequence[EditRequest]]) -> Edit:
        sites = lm.sites([self.site])
        batch, owner = edit_batch(lm, [self._facts(group) for group in groups], lm.block_of([self.site]))
        rule = self._start(len(groups), batch.hidden)
        learned = {name: tensor.clone().requires_grad_() for name, tensor in rule.tensors().items()}
        optimizer = torch.optim.Adam(learned.values(), lr=self.lr)
        for _ in range(self.steps):
            edit = Edit({self.site: rebuilt(rule, learned)}, len(groups))
            with torch.enable_grad(), applied(sites, edit, owner):
                losses = nll_by_slot(lm.logits(batch), batch, owner, len(groups))
                gradients = torch.autograd.grad(losses.sum(), list(learned.values()))
            running = (losses.detach() >= self.enough)[:, None, None]
            if not running.any():
                break
            before = [tensor.detach().clone() for tensor in learned.values()]
            for tensor, gradient in zip(learned.values(), gradients, strict=True):
                tensor.grad = gradient
            optimizer.step()
            with torch.no_grad():
                for tensor, old in zip(learned.values(), before, strict=True):
                    tensor.copy_(torch.where(running, tensor, old))
        return Edit({self.site: rebuilt(rule, learned)}, len(groups)).detach()

    def _facts(self, group: Sequence[EditRequest]) -> list[EditRequest]:
        """What an edit is trained on."""
        rephrases = [replace(request, prompt=text) for request in group for text in request.rephrases]
        return [*group, *rephrases] if self.rephrases else list(group)

    def _start(self, slots: int, hidden: Tensor) -> FFNSlots:
        """Seeded keys and gates, the same in every slot, and zero values, in at least fp32."""
        d = hidden.shape[-1]
        generator = torch.Generator().manual_seed(self.seed)
        wide = torch.promote_types(hidden.dtype, torch.float32)

        def drawn() -> Tensor:
            row = torch.randn(self.width, d, generator=generator) * d**-0.5
            return row.to(hidden.device, wide).expand(slots, -1, -1)

        keys, values = drawn(), torch.zeros(slots, self.width, d, dtype=wide, device=hidden.device)
        return FFNSlots(keys, values, self.activation, drawn() if self.gated else None)
