"""The loss of an edit, shared by the editors that follow its gradient."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from editkit.edits import sent
from editkit.lm import LM, Batch
from editkit.requests import EditRequest


def edit_batch(lm: LM, groups: Sequence[Sequence[EditRequest]], start: int) -> tuple[Batch, list[int]]:
    """Every request's (instruction and) prompt with its target, ready from block ``start`` on, and each row's slot."""
    rows = [(slot, request) for slot, group in enumerate(groups) for request in group]
    texts = [lm.text(request.instruction + request.prompt, request.target) for _, request in rows]
    return lm.batch(texts, start), [slot for slot, _ in rows]


def nll_by_slot(
    logits: Float[Tensor, "scored vocabulary"], batch: Batch, owner: Sequence[int], slots: int, over: str = "mean"
) -> Float[Tensor, " slots"]:
    """Negative log-likelihood of the answers' tokens (nats): the mean, or the sum, over each slot's tokens."""
    nll = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
    slot = sent(owner, nll.device)[batch.row]
    total, tokens = (nll.new_zeros(slots).index_add(0, slot, x) for x in (nll, torch.ones_like(nll)))
    return total if over == "sum" else total / tokens
