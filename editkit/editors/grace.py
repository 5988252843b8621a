"""GRACE: a codebook beside one layer, whose values stand in for the layer's output near their keys (arXiv 2211.11031).

A key is the layer's input at the last token of an edit's prompt; its value is learned so that the model goes on with
the target. Nothing else of the model changes, and far from every key the edited model is the base model to the bit.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch

from editkit.editors.loss import edit_batch, nll_by_slot
from editkit.edits import Codebook, Edit, Seats, applied, traced
from editkit.errors import check_choice
from editkit.lm import LM, Batch, weight
from editkit.requests import EditRequest

STARTS = ("random", "output")


class GRACE:
    """The editor.

    The requests of a group become entries of one codebook, added one by one as ``Codebook`` adds; then all values are
    learned at once. Each follows its own request's loss alone, so that a group of requests with different keys is what
    its requests give one by one; requests that came to share a key share its value and its loss.

    Departs from the released code, which looks only the last prompt token up: here every position is, so that nobody
    has to say where the prompt of a text ends.

    Args:
        lm: the model to edit.
        site: name of the wrapped linear map.
        radius: of a new entry (the paper's ε_init), in units of the site's input.
        lr: Adam's learning rate.
        steps: of Adam, always all of them.
        start: where a value starts: ``random``, uniform in [0, 1) and the same for every entry (the paper's runs), or
            ``output``, what the layer gives at the key.
        seed: of random starts.
    """

    def __init__(
        self,
        lm: LM,
        site: str,
        radius: float = 1.0,
        lr: float = 1.0,
        steps: int = 100,
        start: str = "random",
        seed: int = 0,
    ) -> None:
        check_choice("editor.start", start, STARTS)
        ((self.site, module),) = lm.sites([site]).items()
        d_out = weight(module).shape[1]
        self.random = torch.rand(d_out, generator=torch.Generator().manual_seed(seed))
        self.radius, self.lr, self.steps, self.start = radius, lr, steps, start

    def edit(self, lm: LM, groups: Sequence[Sequence[EditRequest]]) -> Edit:
        sites = lm.sites([self.site])
        batch, owner = edit_batch(lm, groups, lm.block_of([self.site]))
        book = self._codebook(lm, batch, owner)
        values = book.values.clone().requires_grad_()
        optimizer = torch.optim.Adam([values], lr=self.lr)
        rows = range(len(owner))
        for _ in range(self.steps):
            edit = Edit({self.site: replace(book, values=values)}, len(groups))
            with torch.enable_grad(), applied(sites, edit, owner):
                losses = nll_by_slot(lm.logits(batch), batch, rows, len(rows))
                (values.grad,) = torch.autograd.grad(losses.sum(), values)
            optimizer.step()
        return Edit({self.site: replace(book, values=values.detach())}, len(groups))

    @torch.no_grad()
    def _codebook(self, lm: LM, batch: Batch, owner: Sequence[int]) -> Codebook:
        """The entries of each slot's requests, with values to start from."""
        with traced(lm.sites([self.site])) as trace:
            lm.states(batch)
        rows = torch.arange(len(owner), device=batch.row.device)
        first = torch.full_like(rows, batch.hidden.shape[1]).scatter_reduce(0, batch.row, batch.position, "amin")
        key, output = trace.inputs[self.site][rows, first], trace.outputs[self.site][rows, first]
        wide = torch.promote_types(key.dtype, torch.float32)
        value = self.random.to(rows.device, wide).expand_as(output) if self.start == "random" else output
        labels = torch.full((len(owner), int((batch.position - first[batch.row]).max()) + 1), -1, device=rows.device)
        labels[batch.row, batch.position - first[batch.row]] = batch.labels
        seats = Seats.of(owner, rows.device)
        radii = torch.full(seats.real.shape, self.radius, dtype=wide, device=rows.device).masked_fill(~seats.real, -1)
        entries = Codebook(key[seats.rows].to(wide), value[seats.rows].to(wide), radii, labels[seats.rows])
        return reduce(Codebook.with_entry, entries.one_by_one())
