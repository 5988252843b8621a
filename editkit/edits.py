"""An edit as a value held beside the model: for each site, a rule that turns its input and output into a new output.

A *site* is a linear map or an MLP inside the model. An edit has *slots*: each slot is one edited model. ``applied``
runs the model under an edit for as long as the context lasts; ``owner`` says which slot each row of the batch runs
under (-1: the base model). Nothing is written to the model, so undoing is leaving the context, exact to the bit.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from editkit.errors import UsageError


@runtime_checkable
class Rule(Protocol):
    """What an edit does at one site, for all its slots.

    A frozen dataclass of tensors with one leading entry for each slot, and of words, the same for all slots.
    """

    def __call__(
        self, x: Float[Tensor, "slots tokens d_in"], y: Float[Tensor, "slots tokens d_out"]
    ) -> Float[Tensor, "slots tokens d_out"]:
        """The site's new output, from its input ``x`` and its output ``y``."""
        ...

    def __add__(self, other: Any) -> "Rule":
        """Both rules, of one kind, at once: slot by slot."""
        ...

    def __getitem__(self, slots: Int[Tensor, " chosen"]) -> "Rule": ...

    @classmethod
    def join(cls, rules: Sequence[Any]) -> "Rule":
        """The slots of all ``rules``, one after another."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that the constructor takes, by name: these and the words are what is saved."""
        ...


@runtime_checkable
class WeightRule(Rule, Protocol):
    """A rule that is a change of a linear map's weights, so that it can be written into a copy of the model."""

    def update(self, slot: int) -> Float[Tensor, "d_in d_out"]:
        """The change of the weight matrix ``W`` in ``y = x W`` that has the same effect."""
        ...


R = TypeVar("R", bound=Rule)


def rebuilt(rule: R, tensors: Mapping[str, Tensor]) -> R:
    """A rule of the same kind and words as ``rule``, with these ``tensors``."""
    return type(rule)(**tensors, **_words(rule))


def _words(rule: Rule) -> dict[str, str]:
    """The fields of a rule that are words."""
    parts = {field.name: getattr(rule, field.name) for field in fields(rule)}  # type: ignore[arg-type]
    return {name: part for name, part in parts.items() if isinstance(part, str)}


@dataclass(frozen=True, eq=False)
class LowRank:
    """``y + (x uᵀ) v``: the weight changes by ``uᵀ v``. What MEND, InstructEdit and KE return; exports as LoRA."""

    u: Float[Tensor, "slots rank d_in"]
    v: Float[Tensor, "slots rank d_out"]

    def __call__(
        self, x: Float[Tensor, "slots tokens d_in"], y: Float[Tensor, "slots tokens d_out"]
    ) -> Float[Tensor, "slots tokens d_out"]:
        return y + ((x.to(self.u.dtype) @ self.u.mT) @ self.v).to(y.dtype)

    def __add__(self, other: "LowRank") -> "LowRank":
        return LowRank(torch.cat([self.u, other.u], 1), torch.cat([self.v, other.v], 1))

    def __getitem__(self, slots: Int[Tensor, " chosen"]) -> "LowRank":
        return LowRank(self.u[slots], self.v[slots])

    @classmethod
    def join(cls, rules: Sequence["LowRank"]) -> "LowRank":
        return cls(_joined([rule.u for rule in rules]), _joined([rule.v for rule in rules]))

    def tensors(self) -> dict[str, Tensor]:
        return {"u": self.u, "v": self.v}

    def update(self, slot: int) -> Float[Tensor, "d_in d_out"]:
        return self.u[slot].mT @ self.v[slot]


@dataclass(frozen=True, eq=False)
class Dense:
    """``y + x delta``: a full change of the weight matrix. What FT-L and FT-M return."""

    delta: Float[Tensor, "slots d_in d_out"]

    def __call__(
        self, x: Float[Tensor, "slots tokens d_in"], y: Float[Tensor, "slots tokens d_out"]
    ) -> Float[Tensor, "slots tokens d_out"]:
        return y + (x.to(self.delta.dtype) @ self.delta).to(y.dtype)

    def __add__(self, other: "Dense") -> "Dense":
        return Dense(self.delta + other.delta)

    def __getitem__(self, slots: Int[Tensor, " chosen"]) -> "Dense":
        return Dense(self.delta[slots])

    @classmethod
    def join(cls, rules: Sequence["Dense"]) -> "Dense":
        return cls(torch.cat([rule.delta for rule in rules]))

    def tensors(self) -> dict[str, Tensor]:
        return {"delta": self.delta}

    def update(self, slot: int) -> Float[Tensor, "d_in d_out"]:
        return self.delta[slot]


@dataclass(frozen=True, eq=False)
class FFNSlots:
    """``y + φ(x keysᵀ) values``, gated ``y + (φ(x gateᵀ) ⊙ x keysᵀ) values``. What CaliNet returns.

    The site is an MLP: ``x`` is what it reads, ``y`` what it writes, and this is ``width`` memory slots beside its own.
    Adding up puts one rule's memory slots beside the other's.
    """

    keys: Float[Tensor, "slots width d_in"]
    values: Float[Tensor, "slots width d_out"]
    activation: str
    """transformers' name of φ, such as ``silu``"""
    gate: Float[Tensor, "slots width d_in"] | None = None

    def __call__(
        self, x: Float[Tensor, "slots tokens d_in"], y: Float[Tensor, "slots tokens d_out"]
    ) -> Float[Tensor, "slots tokens d_out"]:
        from transformers.activations import ACT2FN

        activation = ACT2FN[self.activation]
        wide = x.to(self.keys.dtype)
        matched = wide @ self.keys.mT
        strength = activation(matched) if self.gate is None else activation(wide @ self.gate.mT) * matched
        return y + (strength @ self.values).to(y.dtype)

    def __add__(self, other: "FFNSlots") -> "FFNSlots":
        _check_alike(self, other)
        parts = other.tensors()
        return rebuilt(self, {name: torch.cat([tensor, parts[name]], 1) for name, tensor in self.tensors().items()})

    def __getitem__(self, slots: Int[Tensor, " chosen"]) -> "FFNSlots":
        return rebuilt(self, {name: tensor[slots] for name, tensor in self.tensors().items()})

    @classmethod
    def join(cls, rules: Sequence["FFNSlots"]) -> "FFNSlots":
        _check_alike(*rules)
        return rebuilt(rules[0], {n: _joined([rule.tensors()[n] for rule in rules]) for n in rules[0].tensors()})

    def tensors(self) -> dict[str, Tensor]:
        gate = {} if self.gate is None else {"gate": self.gate}
        return {"keys": self.keys, "values": self.values, **gate}


def _check_alike(first: FFNSlots, *others: FFNSlots) -> None:
    if any((o.activation, o.gate is None) != (first.activation, first.gate is None) for o in others):
        raise ValueError("FFN slots with different activations or gates cannot be put together.")


@dataclass(frozen=True, eq=False)
class Codebook:
    """A value in place of ``y`` wherever ``x`` is within its nearest key's radius (Euclidean). What GRACE returns.

    Every position is looked up by itself; where no key is near, ``y`` keeps its bits. ``a + b`` is GRACE's way of
    adding: the entries of ``b`` one by one to those of ``a``, see ``with_entry``.
    """

    keys: Float[Tensor, "slots entries d_in"]
    values: Float[Tensor, "slots entries d_out"]
    radii: Float[Tensor, "slots entries"]
    """below 0: no such entry"""
    labels: Int[Tensor, "slots entries length"]
    """each entry's target as token ids, filled up with -1"""

    def __call__(
        self, x: Float[Tensor, "slots tokens d_in"], y: Float[Tensor, "slots tokens d_out"]
    ) -> Float[Tensor, "slots tokens d_out"]:
        distance, entry = self.nearest(x)
        value = self.values.take_along_dim(entry[..., None], 1).to(y.dtype)
        inside = distance <= self.radii.take_along_dim(entry, 1)
        return torch.where(inside[..., None], value, y)

    @torch.no_grad()
    def nearest(
        self, x: Float[Tensor, "slots tokens d_in"]
    ) -> tuple[Float[Tensor, "slots tokens"], Int[Tensor, "slots tokens"]]:
        """How far the nearest key is, and which.

        The keys are subtracted: the faster ``|x|² - 2 x·k + |k|²`` loses small distances.
        """
        distance = torch.cdist(x.to(self.keys.dtype), self.keys, compute_mode="donot_use_mm_for_euclid_dist")
        least = distance.masked_fill(self.radii[:, None] < 0, torch.inf).min(-1)
        return least.values, least.indices

    def __add__(self, other: "Codebook") -> "Codebook":
        return reduce(Codebook.with_entry, other.one_by_one(), self)

    def one_by_one(self) -> list["Codebook"]:
        """Codebooks of one entry a slot each."""
        places = range(self.radii.shape[1])
        return [Codebook(*(tensor[:, place : place + 1] for tensor in self.tensors().values())) for place in places]

    @torch.no_grad()
    def with_entry(self, new: "Codebook") -> "Codebook":
        """One more entry in each slot, at distance d from its nearest key (arXiv 2211.11031, algorithm 1).

        - d above the sum of both radii: it stands beside the others.
        - Else, the same target: it is dropped, and the nearest key's radius grows to d. That key's value stays; the
          released code trains it on, which a sum, knowing no model, cannot.
        - Else, another target: both radii become d/2.
        - Another target at the same key up to rounding (d ≤ radius/1000): it takes the old one's place and radius. Two
          radii of d/2 would lose both, so that no prompt could be edited twice.

        Targets are compared token by token; the released code compares the means of their ids.
        """
        distance, entry = self.nearest(new.keys)
        radius = self.radii.take_along_dim(entry, 1)
        length = max(self.labels.shape[-1], new.labels.shape[-1])
        labels, label = (
            nn.functional.pad(tokens, (0, length - tokens.shape[-1]), value=-1) for tokens in (self.labels, new.labels)
        )
        close = (new.radii >= 0) & (distance <= radius + new.radii)
        same = close & (labels.take_along_dim(entry[..., None], 1) == label).all(-1)
        again = close & ~same & (distance <= new.radii / 1000)
        apart = close & ~same & ~again
        half = distance / 2
        old = torch.where(same, radius.maximum(distance), torch.where(apart, half, radius)).masked_fill(again, -1)
        own = torch.where(again, radius, torch.where(apart, half, new.radii)).masked_fill(same, -1)
        return Codebook(
            torch.cat([self.keys, new.keys], 1),
            torch.cat([self.values, new.values], 1),
            torch.cat([self.radii.scatter(1, entry, old), own], 1),
            torch.cat([labels, label], 1),
        )

    def __getitem__(self, slots: Int[Tensor, " chosen"]) -> "Codebook":
        return Codebook(*(tensor[slots] for tensor in self.tensors().values()))

    @classmethod
    def join(cls, rules: Sequence["Codebook"]) -> "Codebook":
        empty = {"keys": 0, "values": 0, "radii": -1, "labels": -1}
        return cls(*(_joined([rule.tensors()[name] for rule in rules], fill) for name, fill in empty.items()))

    def tensors(self) -> dict[str, Tensor]:
        return {"keys": self.keys, "values": self.values, "radii": self.radii, "labels": self.labels}


def _joined(tensors: Sequence[Tensor], fill: int = 0) -> Tensor:
    """``tensors`` one after another, their later dimensions filled up to a common size."""
    sizes = [max(size) for size in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]

    def filled(tensor: Tensor) -> Tensor:
        gaps = [(0, size - own) for size, own in zip(sizes, tensor.shape[1:], strict=True)]
        return nn.functional.pad(tensor, [end for gap in reversed(gaps) for end in gap], value=fill)

    return torch.cat([filled(tensor) for tensor in tensors])


KINDS: Mapping[str, type] = {kind.__name__: kind for kind in (LowRank, Dense, FFNSlots, Codebook)}


@dataclass(frozen=True)
class Edit:
    """Rules by site name, for ``slots`` edited models, and the regime that made them.

    ``a + b`` is both edits in each slot (same number of slots), ``edit[indices]`` some of the slots,
    ``Edit.join`` the slots of several edits one after another.
    """

    rules: Mapping[str, Rule]
    slots: int
    regime: str = "single"

    def __add__(self, other: "Edit") -> "Edit":
        if self.slots != other.slots:
            raise ValueError(
                f"Edits of {self.slots} and {other.slots} slots cannot be added: they need the same number."
            )
        both = {site: self.rules[site] + rule for site, rule in other.rules.items() if site in self.rules}
        return Edit({**self.rules, **other.rules, **both}, self.slots, self.regime)

    def __getitem__(self, slots: Int[Tensor, " chosen"]) -> "Edit":
        return Edit({site: rule[slots] for site, rule in self.rules.items()}, len(slots), self.regime)

    @classmethod
    def join(cls, edits: Sequence["Edit"]) -> "Edit":
        """The slots of ``edits``, which share their sites and kinds, one after another."""
        first = edits[0]
        if len(edits) == 1:
            return first
        rules = {site: type(rule).join([edit.rules[site] for edit in edits]) for site, rule in first.rules.items()}
        return cls(rules, sum(edit.slots for edit in edits), first.regime)

    def detach(self) -> "Edit":
        """The same edit without its gradient graph."""
        rules = {
            site: rebuilt(rule, {name: tensor.detach() for name, tensor in rule.tensors().items()})
            for site, rule in self.rules.items()
        }
        return Edit(rules, self.slots, self.regime)

    def save(self, file: Path | str, **about: str) -> None:
        """Write the edit as safetensors; ``about`` goes into its header beside the regime and the rules' kinds."""
        kinds = {site: type(rule).__name__ for site, rule in self.rules.items()}
        words = {site: _words(rule) for site, rule in self.rules.items()}
        header = {"kinds": json.dumps(kinds), "words": json.dumps(words), "slots": str(self.slots)}
        tensors = {
            f"{s}|{n}": t.detach().cpu().contiguous() for s, r in self.rules.items() for n, t in r.tensors().items()
        }
        save_file(tensors, file, metadata={**header, "regime": self.regime, **about})

    @classmethod
    def load(cls, file: Path | str) -> tuple["Edit", dict[str, str]]:
        """The edit in ``file`` and its header; raises UsageError if it is not an edit."""
        try:
            with safe_open(file, "pt") as opened:
                about = dict(opened.metadata() or {})
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            kinds, words = json.loads(about.pop("kinds")), json.loads(about.pop("words"))
        except (SafetensorError, OSError, KeyError) as error:
            raise UsageError(f"{file} is not a saved edit ({error}): give a file that Edit.save wrote.") from error
        rules = {
            site: KINDS[kind](
                **{key.split("|")[1]: t for key, t in tensors.items() if key.split("|")[0] == site}, **words[site]
            )
            for site, kind in kinds.items()
        }
        return cls(rules, int(about.pop("slots")), about.pop("regime")), about


def sent(values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """``values`` as a tensor on ``device``, without waiting for what still runs there."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


@dataclass(frozen=True)
class Seats:
    """Where each row of a batch sits: rows that share a slot side by side, so that a rule is one batched product.

    Attributes:
        slots: the slots that own rows, ascending.
        rows: for each of them its rows, padded with repeats of its first one.
        real: which entries of ``rows`` are not padding.
        places: where those are in ``rows``, flattened.
        whole: the batch already lies in this order without padding, so that seating it is a reshape.
    """

    slots: Int[Tensor, " active"]
    rows: Int[Tensor, "active most"]
    real: Bool[Tensor, "active most"]
    places: Int[Tensor, " seated"]
    whole: bool

    @classmethod
    def of(cls, owner: Sequence[int], device: torch.device) -> "Seats":
        """The seats of rows owned as ``owner`` says; rows owned by -1 get none."""
        by_slot: dict[int, list[int]] = {}
        for row, slot in enumerate(owner):
            if slot >= 0:
                by_slot.setdefault(slot, []).append(row)
        active = sorted(by_slot)
        most = max((len(by_slot[slot]) for slot in active), default=0)
        rows = [row for slot in active for row in by_slot[slot] + by_slot[slot][:1] * (most - len(by_slot[slot]))]
        real = [place < len(by_slot[slot]) for slot in active for place in range(most)]
        return cls(
            sent(active, device, torch.long),
            sent(rows, device, torch.long).view(len(active), most),
            sent(real, device, torch.bool).view(len(active), most),
            sent([place for place, there in enumerate(real) if there], device, torch.long),
            rows == list(range(len(owner))),
        )

    def together(self, x: Float[Tensor, "rows tokens d"]) -> Float[Tensor, "active seated d"]:
        seated = x if self.whole else x.index_select(0, self.rows.flatten())
        return seated.reshape(len(self.slots), -1, x.shape[-1])

    def apart(
        self, seated: Float[Tensor, "active seated d"], base: Float[Tensor, "rows tokens d"]
    ) -> Float[Tensor, "rows tokens d"]:
        """``base`` with the seated rows put back; rows without a seat keep their bits."""
        if self.whole:
            return seated.reshape(base.shape)
        rows = seated.reshape(-1, *base.shape[1:]).index_select(0, self.places)
        return base.index_copy(0, self.rows.flatten()[self.places], rows)


@contextmanager
def applied(sites: Mapping[str, nn.Module], edit: Edit, owner: Sequence[int] | int) -> Iterator[None]:
    """Inside, the model that ``sites`` belong to answers as edited.

    Args:
        sites: modules by site name, as ``LM.sites`` gives them.
        edit: the rules.
        owner: for each row of the batches run inside, its slot or -1; an int means every row, whatever their number.
    """

    seats_by_rows: dict[int, tuple[Seats, Mapping[str, Rule]]] = {}

    def seated(rows: int, device: torch.device) -> tuple[Seats, Mapping[str, Rule]]:
        if rows not in seats_by_rows:
            owners = [owner] * rows if isinstance(owner, int) else list(owner)
            if len(owners) != rows:
                raise ValueError(
                    f"A batch of {rows} rows under an owner list of {len(owners)}: give one slot for each row."
                )
            if owners and max(owners) >= edit.slots:
                raise ValueError(f"Slot {max(owners)} is not in an edit of {edit.slots} slots.")
            seats = Seats.of(owners, device)
            everyone = len(seats.slots) == edit.slots
            rules = edit.rules if everyone else {site: rule[seats.slots] for site, rule in edit.rules.items()}
            seats_by_rows[rows] = seats, rules
        return seats_by_rows[rows]

    def hook_for(site: str):
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
            x = inputs[0]
            seats, rules = seated(len(x), x.device)
            if not len(seats.slots):
                return y
            return seats.apart(rules[site](seats.together(x), seats.together(y)), y)

        return hook

    handles = [sites[site].register_forward_hook(hook_for(site)) for site in edit.rules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Trace:
    """The input of each traced site, and, after ``factors``, the gradient of a loss at its output."""

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def factors(self, loss: Float[Tensor, ""]) -> dict[str, tuple[Tensor, Tensor]]:
        """For each site ``(u, delta)``, shaped (rows, tokens, d_in) and (rows, tokens, d_out).

        ``uᵀ delta``, summed over a row's tokens, is that row's share of dL/dW, from one backward pass for all rows.
        Neither carries a graph.
        """
        deltas = torch.autograd.grad(loss, list(self.outputs.values()))
        return {site: (self.inputs[site], delta) for site, delta in zip(self.outputs, deltas, strict=True)}


@contextmanager
def traced(sites: Mapping[str, nn.Module]) -> Iterator[Trace]:
    """Inside, one forward pass records what each of ``sites`` reads and writes."""
    trace = Trace()

    def hook_for(site: str):
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
            if not y.requires_grad:
                y = y.detach().requires_grad_()
            trace.inputs[site], trace.outputs[site] = inputs[0].detach(), y
            return y

        return hook

    handles = [module.register_forward_hook(hook_for(site)) for site, module in sites.items()]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()
