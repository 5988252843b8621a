"""KE: a network reads the edit as a sentence and gates its gradient (De Cao et al., KnowledgeEditor, arXiv 2104.08164).

A bidirectional LSTM reads the *condition* ``"{old answer} >> {new answer} || {prompt}"`` over the model's own
embeddings; ``h = tanh(linear(last states))``. For each edited weight ``y = x W`` a small network turns h into two pairs
of vectors and a number eta, and with ``∇`` the edit loss's gradient

    A = softmax(rows_a) ⊗ columns_a,  B = softmax(rows_b) ⊗ columns_b,  ΔW = max_scale · sigmoid(eta) · (∇ ⊙ A + B).

``∇`` is ``uᵀ delta``, and a product entry by entry with ``a ⊗ c`` scales u's columns by a and delta's by c. So ΔW is of
rank at most tokens + 1 and is kept as factors. This is the form in which MEND's authors compare with KE: only the
matrices that MEND edits, sizes 512 and 768.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

from editkit.editors.loss import edit_batch, nll_by_slot
from editkit.edits import Edit, LowRank, Seats, traced
from editkit.errors import UsageError, check_choice
from editkit.lm import LM, weight
from editkit.requests import EditRequest


class ConditionReader(nn.Module):
    """h: one vector for each embedded text, from the last states of both directions."""

    def __init__(self, d: int, hidden: int, condition: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(d, hidden, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * hidden, condition)

    def forward(
        self, texts: Float[Tensor, "rows tokens d"], lengths: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows condition"]:
        # Packed, so that no text reads another one's padding and none needs a padding token.
        packed = pack_padded_sequence(texts, lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        return self.linear(torch.cat(last.unbind(), -1)).tanh()


class Gates(nn.Module):
    """What h says of one weight: ``(a, c, b, d, gate)`` with ``ΔW = gate · (∇ ⊙ (a ⊗ c) + b ⊗ d)``.

    a and b belong to W's inputs, c and d to its outputs; the side in ``softmax_over`` is positive and sums to 1.
    """

    def __init__(self, d_in: int, d_out: int, condition: int, hidden: int, softmax_over: str, max_scale: float) -> None:
        super().__init__()
        self.sizes = (d_in, d_out, d_in, d_out, 1)
        self.softmax_over, self.max_scale = softmax_over, max_scale
        first, second = nn.Linear(condition, hidden), nn.Linear(hidden, sum(self.sizes))
        self.layers = nn.Sequential(weight_norm(first), nn.Tanh(), weight_norm(second))

    def forward(
        self, h: Float[Tensor, "rows condition"]
    ) -> tuple[
        Float[Tensor, "rows d_in"],
        Float[Tensor, "rows d_out"],
        Float[Tensor, "rows d_in"],
        Float[Tensor, "rows d_out"],
        Float[Tensor, "rows 1"],
    ]:
        a, c, b, d, eta = self.layers(h).split(self.sizes, -1)
        if self.softmax_over == "inputs":
            a, b = a.softmax(-1), b.softmax(-1)
        else:
            c, d = c.softmax(-1), d.softmax(-1)
        return a, c, b, d, self.max_scale * eta.sigmoid()


class KE(nn.Module):
    """The editor. A slot with several requests gets the sum of their edits: the network reads one edit at a time.

    The old answer is the request's ``truth``, and nothing where it has none. The authors put the model's own answer
    there; that would cost a generation for each edit, and ``delta`` already says what the model answers now. They also
    train a copy of the embeddings; here these are the model's and stay as they are (for GPT2-XL the copy alone would be
    80 M parameters).

    Args:
        lm: the model whose weights' shapes the networks are built for.
        sites: names of the edited linear maps; each has a network of its own.
        hidden: width of the LSTM in each direction, and of the networks that read h.
        condition: width of h.
        softmax_over: the side of W whose vectors go through the softmax, ``inputs`` or ``outputs``. The released code
            takes the side stored first: ``inputs`` in GPT-2, ``outputs`` where weights are in an ``nn.Linear``.
        max_scale: bound on the gate.
        lr: learning rate of everything.
        seed: seed of the initial weights.
    """

    def __init__(
        self,
        lm: LM,
        sites: Sequence[str],
        hidden: int = 512,
        condition: int = 768,
        softmax_over: str = "inputs",
        max_scale: float = 1.0,
        lr: float = 1e-5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("editor.softmax_over", softmax_over, ("inputs", "outputs"))
        if min(hidden, condition) < 1:
            raise UsageError(f"editor.hidden is {hidden}, editor.condition {condition}, but both must be at least 1.")
        shapes = {site: weight(module).shape for site, module in lm.sites(sites).items()}
        self.sites = tuple(shapes)
        self.lr = lr
        # torch's layers draw their first weights from the global generator, which is put back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.reader = ConditionReader(lm.model.get_input_embeddings().embedding_dim, hidden, condition)
            self.gates = nn.ModuleList(
                [Gates(d_in, d_out, condition, hidden, softmax_over, max_scale) for d_in, d_out in shapes.values()]
            )
        self.to(lm.device)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "lr": self.lr}]

    def condition(self, lm: LM, requests: Sequence[EditRequest]) -> Float[Tensor, "requests condition"]:
        """h of each request; the instruction, where there is one, belongs to the prompt."""
        texts = [
            lm.text(f"{request.truth or ''} >> {request.target} ||", request.instruction + request.prompt).ids
            for request in requests
        ]
        ids = pad_sequence([torch.tensor(text) for text in texts], batch_first=True).to(lm.device)
        embedded = lm.model.get_input_embeddings()(ids).to(self.reader.linear.weight)
        return self.reader(embedded, torch.tensor([len(text) for text in texts]))

    def edit(self, lm: LM, groups: Sequence[Sequence[EditRequest]]) -> Edit:
        sites = lm.sites(self.sites)
        with torch.enable_grad(), traced(sites) as trace:
            batch, owner = edit_batch(lm, groups, lm.block_of(self.sites))
            rows = len(owner)
            factors = trace.factors(nll_by_slot(lm.logits(batch), batch, range(rows), rows).sum())
        h = self.condition(lm, [request for group in groups for request in group])
        seats = Seats.of(owner, lm.device)
        rules = {}
        for gates, site in zip(self.gates, self.sites, strict=True):
            u, delta = factors[site]
            a, c, b, d, gate = (vector[:, None] for vector in gates(h))
            scaled_u = torch.cat([u.to(h) * a, b], 1)
            scaled_delta = torch.cat([delta.to(h) * c, d], 1) * gate
            real = seats.real.repeat_interleave(scaled_u.shape[1], 1)[..., None]
            rules[site] = LowRank(seats.together(scaled_u), seats.together(scaled_delta) * real)
        return Edit(rules, len(groups))
