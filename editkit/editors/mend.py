"""MEND: a network learns to turn the factors of an edit's gradient into an edit (Mitchell et al., arXiv 2110.11309).

At each edited weight ``y = x W`` the edit loss has the gradient ``uᵀ delta``, with ``u`` the inputs and ``delta`` the
gradients at the outputs, token by token. One network for each weight *shape* maps normalised ``[u; delta]`` to
``[u'; delta']``; the update is ``W + lr_W Σ_t u'_t ⊗ delta'_t``, of rank at most the number of tokens, so it is kept as
factors. The sign is plus: the network learns the direction of descent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from editkit.editors.loss import edit_batch, nll_by_slot
from editkit.edits import Edit, LowRank, sent, traced
from editkit.errors import check_choice
from editkit.lm import LM, weight
from editkit.parallel import summed
from editkit.requests import EditRequest


class RunningNorm(nn.Module):
    """Z-scores by the running mean and standard deviation of all tokens seen in training.

    Batches are merged as in Chan et al. (1979), which gives the numbers of a token-by-token Welford loop. Count, mean
    and sum of squares are buffers, so a checkpoint keeps them (the reference forgets its first-sample flag).
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))

    @torch.no_grad()
    def update(self, x: Float[Tensor, "tokens width"], real: Bool[Tensor, " tokens"]) -> None:
        """Take in the ``real`` ones of ``x``; those of all processes, if several train one editor."""
        weight = real.to(x)[:, None]
        count, mean = summed(weight.sum()), summed((x * weight).sum(0))
        mean = mean / count.clamp(min=1)
        squares = summed(((x - mean).square() * weight).sum(0))
        total = (self.count + count).clamp(min=1)
        step = mean - self.mean
        self.squares += squares + step.square() * self.count * count / total
        self.mean += step * count / total
        self.count += count

    def forward(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        deviation = (self.squares / (self.count - 1).clamp(min=1)).sqrt()
        return (x - self.mean) / (deviation + 1e-7)


class ResidualLayer(nn.Module):
    """``z + max(0, scale_m ⊙ (U V z + b) + shift_m)`` for mode m; with U = 0 at the start it is the identity.

    The kink is a clamp, whose gradient at 0 is 1: with a ReLU there the zero start would never be left.
    """

    def __init__(self, width: int, rank: int, modes: int, generator: torch.Generator) -> None:
        super().__init__()
        rank = min(rank, width)
        self.up = nn.Parameter(torch.zeros(width, rank))
        self.down = nn.Parameter(torch.randn(rank, width, generator=generator))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(modes, width))
        self.shift = nn.Parameter(torch.zeros(modes, width))

    def forward(self, z: Float[Tensor, "tokens width"], mode: int) -> Float[Tensor, "tokens width"]:
        mixed = (z @ self.down.mT) @ self.up.mT + self.bias
        return z + (mixed * self.scale[mode] + self.shift[mode]).clamp(min=0)


class FactorNetwork(nn.Module):
    """Maps the gradient factors of the weights of one shape; a *mode* is one of those weights."""

    def __init__(self, d_in: int, d_out: int, modes: int, layers: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.split = (d_in, d_out)
        self.norm_in, self.norm_out = RunningNorm(d_in), RunningNorm(d_out)
        width = d_in + d_out
        self.layers = nn.ModuleList([ResidualLayer(width, rank, modes, generator) for _ in range(layers)])

    def observe(
        self, u: Float[Tensor, "tokens d_in"], delta: Float[Tensor, "tokens d_out"], real: Bool[Tensor, " tokens"]
    ) -> None:
        """Take the ``real`` tokens into the statistics."""
        self.norm_in.update(u, real)
        self.norm_out.update(delta, real)

    def forward(
        self, u: Float[Tensor, "tokens d_in"], delta: Float[Tensor, "tokens d_out"], mode: int
    ) -> tuple[Float[Tensor, "tokens d_in"], Float[Tensor, "tokens d_out"]]:
        z = torch.cat([self.norm_in(u), self.norm_out(delta)], -1)
        for layer in self.layers:
            z = layer(z, mode)
        new_u, new_delta = z.split(self.split, -1)
        return new_u, new_delta


class MEND(nn.Module):
    """The editor.

    Args:
        lm: the model whose weights' shapes the networks are built for.
        sites: names of the edited linear maps; those of one shape share a network.
        layers: residual layers in a network (the paper's IDMLP has two).
        rank: rank of ``U V`` in a layer, at most the network's width.
        lr: learning rate of the networks.
        step_size: where each ``lr_W`` starts.
        step_size_lr: ``lr_W``'s own learning rate, used with ``step_size_training: corrected``.
        step_size_training: ``corrected`` trains ``lr_W`` at ``step_size_lr``; ``faithful`` at ``lr``, which is what the
            InstructEdit release does whatever its config says.
        loss_over_tokens: whether the edit loss is the ``mean`` (the authors') or the ``sum`` over the target's tokens.
            With the mean a long target's tokens each have a small gradient, which the normalisation does not undo.
        seed: seed of the networks' initial weights.
    """

    def __init__(
        self,
        lm: LM,
        sites: Sequence[str],
        layers: int = 2,
        rank: int = 1920,
        lr: float = 1e-6,
        step_size: float = 1e-4,
        step_size_lr: float = 1e-4,
        step_size_training: str = "corrected",
        loss_over_tokens: str = "mean",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("editor.step_size_training", step_size_training, ("corrected", "faithful"))
        check_choice("editor.loss_over_tokens", loss_over_tokens, ("mean", "sum"))
        self.loss_over_tokens = loss_over_tokens
        modules = lm.sites(sites)
        self.sites = tuple(modules)
        self.lr = lr
        self.step_size_lr = step_size_lr if step_size_training == "corrected" else lr
        sharing: dict[tuple[int, int], list[str]] = {}
        for name, module in modules.items():
            d_in, d_out = weight(module).shape
            sharing.setdefault((d_in, d_out), []).append(name)
        generator = torch.Generator().manual_seed(seed)
        self.networks = nn.ModuleDict()
        self.network_of: dict[str, tuple[str, int]] = {}
        for (d_in, d_out), names in sharing.items():
            key = f"{d_in}x{d_out}"
            self.networks[key] = FactorNetwork(d_in, d_out, len(names), layers, rank, generator)
            self.network_of |= {name: (key, mode) for mode, name in enumerate(names)}
        self.step_sizes = nn.Parameter(torch.full((len(self.sites),), step_size))
        self.to(lm.device)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(self.networks.parameters()), "lr": self.lr},
            {"params": [self.step_sizes], "lr": self.step_size_lr},
        ]

    def gradient_factors(
        self, lm: LM, groups: Sequence[Sequence[EditRequest]]
    ) -> dict[
        str, tuple[Float[Tensor, "slots rank d_in"], Float[Tensor, "slots rank d_out"], Bool[Tensor, "slots rank"]]
    ]:
        """For each site ``u``, ``delta`` and which tokens are real: those where both are non-zero.

        The loss is the mean NLL of each slot's target tokens, so a slot's factors do not depend on its neighbours.
        """
        found = self._tokens(lm, groups)
        return {s: (t.by_slot(t.u), t.by_slot(t.delta), t.by_slot(t.real[:, None])[..., 0]) for s, t in found.items()}

    def edit(self, lm: LM, groups: Sequence[Sequence[EditRequest]]) -> Edit:
        seen = {site: tokens.to(self.step_sizes) for site, tokens in self._tokens(lm, groups).items()}
        if self.training:
            for site, tokens in seen.items():
                network: Any = self.networks[self.network_of[site][0]]
                network.observe(tokens.u, tokens.delta, tokens.real)
        rules = {}
        for place, (site, tokens) in enumerate(seen.items()):
            name, mode = self.network_of[site]
            u, delta = self.networks[name](tokens.u, tokens.delta, mode)
            step = self.step_sizes[place] * tokens.real[:, None]
            rules[site] = LowRank(tokens.by_slot(u), tokens.by_slot(delta * step))
        return Edit(rules, len(groups))

    def _tokens(self, lm: LM, groups: Sequence[Sequence[EditRequest]]) -> dict[str, "Tokens"]:
        sites = lm.sites(self.sites)
        with torch.enable_grad(), traced(sites) as trace:
            batch, owner = edit_batch(lm, groups, lm.block_of(self.sites))
            loss = nll_by_slot(lm.logits(batch), batch, owner, len(groups), self.loss_over_tokens).sum()
            factors = trace.factors(loss)
        last = len(lm.blocks) - 1
        found = {}
        for site, (u, delta) in factors.items():
            # Behind the last block nothing mixes tokens, so only those that are scored have a gradient there.
            spans = [(first if lm.block_of([site]) == last else 0, end) for first, end in batch.scored]
            found[site] = Tokens.of(u, delta, spans, owner, len(groups))
        return found


@dataclass(frozen=True)
class Tokens:
    """A site's factors token by token, and where each stands in its slot.

    Those that a loss can reach, which is known without asking the device; ``real`` are those of them where both factors
    are non-zero.
    """

    u: Float[Tensor, "tokens d_in"]
    delta: Float[Tensor, "tokens d_out"]
    real: Bool[Tensor, " tokens"]
    places: Int[Tensor, " tokens"]
    slots: int
    rank: int

    @classmethod
    def of(
        cls,
        u: Float[Tensor, "rows tokens d_in"],
        delta: Float[Tensor, "rows tokens d_out"],
        spans: Sequence[tuple[int, int]],
        owner: Sequence[int],
        slots: int,
    ) -> "Tokens":
        """Of each row the tokens in its span; rows of one slot one behind the other."""
        length = u.shape[1]
        flat = [row * length + token for row, span in enumerate(spans) for token in range(*span)]
        slot_of = [slot for slot, span in zip(owner, spans, strict=True) for _ in range(*span)]
        filled = [0] * slots
        place_of = []
        for slot in slot_of:
            place_of.append(filled[slot])
            filled[slot] += 1
        rank = max(filled)
        places = [slot * rank + place for slot, place in zip(slot_of, place_of, strict=True)]
        index = sent(flat, u.device)
        u, delta = u.flatten(0, 1)[index], delta.flatten(0, 1)[index]
        real = (u != 0).any(-1) & (delta != 0).any(-1)
        return cls(u, delta, real, sent(places, u.device), slots, rank)

    def to(self, like: Tensor) -> "Tokens":
        """The same in the type of ``like``."""
        return replace(self, u=self.u.to(like), delta=self.delta.to(like))

    def by_slot(self, x: Shaped[Tensor, "tokens d"]) -> Shaped[Tensor, "slots rank d"]:
        """``x`` slot by slot, padded with zeros to the longest slot."""
        return (
            x.new_zeros(self.slots * self.rank, x.shape[-1])
            .index_copy(0, self.places, x)
            .unflatten(0, (self.slots, -1))
        )
