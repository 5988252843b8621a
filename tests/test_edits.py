"""An edit beside the model against the slow obvious way: a deep copy of the model with its weights changed."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from editkit.edits import Codebook, Dense, Edit, FFNSlots, LowRank, WeightRule, applied, traced
from editkit.errors import UsageError
from editkit.lm import LM, Text, weight
from tests.conftest import SITES

KINDS = ["low rank", "dense", "ffn slots", "codebook"]


def random_edit(lm: LM, family: str, kind: str, slots: int = 3, size: float = 0.3, width: int = 2) -> Edit:
    generator = torch.Generator().manual_seed(1)
    dtype = lm.head.weight.dtype

    def noise(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * size).to(dtype)

    def low_rank(d_in: int, d_out: int) -> LowRank:
        return LowRank(noise(slots, width, d_in), noise(slots, width, d_out))

    def dense(d_in: int, d_out: int) -> Dense:
        return Dense(noise(slots, d_in, d_out))

    def ffn_slots(d: int) -> FFNSlots:
        keys, values, gate = noise(slots, width, d), noise(slots, width, d), noise(slots, width, d)
        return FFNSlots(keys, values, "silu", gate) if family == "llama" else FFNSlots(keys, values, "gelu_new")

    def codebook(site: str, d_out: int) -> Codebook:
        """Keys near what the model really reads, with radii that take in about half of it."""
        with traced(lm.sites([site])) as trace:
            lm.model(torch.tensor([lm.text(*text).ids for text in TEXTS[:1]]))
        seen = trace.inputs[site][0]
        keys = seen[torch.randint(len(seen), (slots, width), generator=generator)]
        radii = torch.cdist(seen, keys[0]).quantile(0.5).expand(slots, width)
        labels = torch.randint(9, (slots, width, width), generator=generator)
        return Codebook(keys + noise(slots, width, keys.shape[-1]), noise(slots, width, d_out), radii, labels)

    if kind == "ffn slots":
        return Edit({site: ffn_slots(16) for site in lm.sites(["-2.mlp", "-1.mlp"])}, slots)
    shapes = {site: weight(module).shape for site, module in lm.sites(SITES[family]).items()}
    if kind == "codebook":
        return Edit({site: codebook(site, shape[1]) for site, shape in shapes.items()}, slots)
    make = {"low rank": low_rank, "dense": dense}[kind]
    return Edit({site: make(*shape) for site, shape in shapes.items()}, slots)


def copied(lm: LM, edit: Edit, slot: int) -> torch.nn.Module:
    """A deep copy of the model with the slot's rules made part of it; slot -1: as it is."""
    model = copy.deepcopy(lm.model)
    for site, rule in edit.rules.items() if slot >= 0 else ():
        module = model.get_submodule(site)
        if isinstance(rule, WeightRule):
            weight(module).data += rule.update(slot)
        elif isinstance(rule, FFNSlots):
            widen(module, rule, slot)
        else:
            model.set_submodule(site, LookedUp(module, rule, slot))
    return model


def widen(mlp: torch.nn.Module, rule: FFNSlots, slot: int) -> None:
    """Append memory slots to the MLP's own matrices."""
    if rule.gate is None:
        inner, outer, gates = mlp.c_fc, mlp.c_proj, []
        inner.bias.data = torch.cat([inner.bias, torch.zeros_like(rule.keys[slot, :, 0])])
        inner.nf += len(rule.keys[slot])
    else:
        inner, outer, gates = mlp.up_proj, mlp.down_proj, [(mlp.gate_proj, rule.gate[slot])]
    for module, rows in ((inner, rule.keys[slot]), *gates):
        axis, new = (0, rows) if isinstance(module, torch.nn.Linear) else (1, rows.mT)
        module.weight.data = torch.cat([module.weight, new], axis)
    axis, new = (1, rule.values[slot].mT) if isinstance(outer, torch.nn.Linear) else (0, rule.values[slot])
    outer.weight.data = torch.cat([outer.weight, new], axis)


class LookedUp(torch.nn.Module):
    """A layer whose output is replaced, position by position, where a key is near."""

    def __init__(self, layer: torch.nn.Module, rule: Codebook, slot: int) -> None:
        super().__init__()
        self.layer, self.book = layer, {name: tensor[slot] for name, tensor in rule.tensors().items()}

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).clone()
        for row in range(x.shape[0]):
            for position in range(x.shape[1]):
                distances = (self.book["keys"] - x[row, position]).square().sum(-1).sqrt()
                distances[self.book["radii"] < 0] = torch.inf
                nearest = int(distances.argmin())
                if distances[nearest] <= self.book["radii"][nearest]:
                    y[row, position] = self.book["values"][nearest]
        return y


def one_by_one(model: torch.nn.Module, text: Text) -> Tensor:
    return model(torch.tensor([text.ids])).logits[0, text.prompt - 1 : -1]


TEXTS = [
    ("The capital is", "Rome"),
    ("Hm", "a much longer answer"),
    ("Who was it that wrote this?", "I"),
    ("One", "two"),
]
OWNERS = [[0, 0, 1, 1], [2, -1, 0, 2], [-1, -1, -1, -1], [1, 0, 2, -1], [0, 1, 2, 2]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_batched_equals_a_deep_copy_for_each_edit(
    make_lm: Callable[..., LM], family: str, kind: str, owner: Sequence[int], dtype: torch.dtype, tolerance: float
) -> None:
    lm = make_lm(family, dtype)
    edit = random_edit(lm, family, kind)
    texts = [lm.text(*text) for text in TEXTS]
    batch = lm.batch(texts, lm.block_of(edit.rules))
    base = lm.logits(batch)
    with applied(lm.sites(list(edit.rules)), edit, owner):
        found = lm.logits(batch)
    wanted = torch.cat([one_by_one(copied(lm, edit, slot), text) for text, slot in zip(texts, owner, strict=True)])
    scale = wanted.abs().max()
    assert (found - wanted).abs().max() <= tolerance * scale
    edited = torch.tensor([owner[row] >= 0 for row in batch.row.tolist()])
    assert torch.equal(found[~edited], base[~edited])  # base rows keep their bits
    assert not edited.any() or (found - base)[edited].abs().max() > 1e-3 * scale


def test_bf16_stays_within_its_rounding(make_lm: Callable[..., LM], family: str) -> None:
    lm = make_lm(family, torch.bfloat16)
    edit = random_edit(make_lm(family, torch.float32), family, "low rank")
    texts = [lm.text(*text) for text in TEXTS]
    batch = lm.batch(texts, 2)
    with applied(lm.sites(list(edit.rules)), edit, [0, 1, -1, 2]):
        found = lm.logits(batch)
    exact = make_lm(family, torch.float64)
    wanted = torch.cat([one_by_one(copied(exact, edit, s), t) for t, s in zip(texts, [0, 1, -1, 2], strict=True)])
    # 8 bits of mantissa, some ten roundings deep: 2 % of the largest logit.
    assert (found - wanted).abs().max() <= 0.05 * wanted.abs().max()


@pytest.mark.parametrize("side", ["left", "right"])
def test_whole_model_with_padding_on_either_side(lm: LM, family: str, side: str) -> None:
    edit = random_edit(lm, family, "low rank")
    texts, owner = [lm.text(*text) for text in TEXTS], [1, -1, 0, 2]
    longest = max(len(text.ids) for text in texts)
    rows, mask = [], []
    for text in texts:
        pad = longest - len(text.ids)
        rows.append([0] * pad + list(text.ids) if side == "left" else list(text.ids) + [0] * pad)
        mask.append([0] * pad + [1] * len(text.ids) if side == "left" else [1] * len(text.ids) + [0] * pad)
    mask = torch.tensor(mask)
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # GPT-2 counts padding otherwise
    with applied(lm.sites(list(edit.rules)), edit, owner):
        logits = lm.model(torch.tensor(rows), attention_mask=mask, position_ids=positions).logits
    for row, (text, slot) in enumerate(zip(texts, owner, strict=True)):
        wanted = copied(lm, edit, slot)(torch.tensor([text.ids])).logits[0]
        assert torch.allclose(logits[row][mask[row].bool()], wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_writing_with_a_cache_equals_a_deep_copy(lm: LM, family: str, kind: str) -> None:
    edit = random_edit(lm, family, kind)
    prompts, owner = [prompt for prompt, _ in TEXTS], [1, -1, 0, 2]
    with applied(lm.sites(list(edit.rules)), edit, owner):
        found = lm.write(prompts, 8, stop=False)
    wanted = [
        LM(copied(lm, edit, s), lm.tokenizer, lm.layout, "copy").write([p], 8, stop=False)[0]
        for p, s in zip(prompts, owner, strict=True)
    ]
    assert found == wanted
    assert len(set(found)) > 1


def test_leaving_the_context_undoes_the_edit_to_the_bit(lm: LM, family: str) -> None:
    edit = random_edit(lm, family, "dense")
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    batch = lm.batch([lm.text("The capital is", "Rome")], 2)
    base = lm.logits(batch)
    with applied(lm.sites(list(edit.rules)), edit, 0):
        assert not torch.equal(lm.logits(batch), base)
    assert torch.equal(lm.logits(batch), base)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())


@pytest.mark.parametrize("kind", ["low rank", "dense", "ffn slots"])
def test_the_sum_of_two_edits_is_both(lm: LM, family: str, kind: str) -> None:
    first, second = random_edit(lm, family, kind), random_edit(lm, family, kind, size=0.1)
    sites = lm.sites(list(first.rules))
    batch = lm.batch([lm.text("The capital is", "Rome")], 2)
    with applied(sites, first + second, 1):
        together = lm.logits(batch)
    with applied(sites, first, 1), applied(sites, second, 1):
        nested = lm.logits(batch)
    assert torch.allclose(together, nested, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_the_same(lm: LM, family: str, kind: str, tmp_path: Path) -> None:
    edit = random_edit(lm, family, kind)
    edit.save(tmp_path / "edit.safetensors", model=lm.fingerprint())
    loaded, about = Edit.load(tmp_path / "edit.safetensors")
    assert about == {"model": lm.fingerprint()}
    assert (loaded.slots, loaded.regime, list(loaded.rules)) == (edit.slots, edit.regime, list(edit.rules))
    for site, rule in edit.rules.items():
        assert type(loaded.rules[site]) is type(rule)
        assert loaded.rules[site].tensors().keys() == rule.tensors().keys()
        assert all(torch.equal(loaded.rules[site].tensors()[name], t) for name, t in rule.tensors().items())
    batch = lm.batch([lm.text("The capital is", "Rome")], 2)
    with applied(lm.sites(list(edit.rules)), edit, 1):
        before = lm.logits(batch)
    with applied(lm.sites(list(edit.rules)), loaded, 1):
        assert torch.equal(lm.logits(batch), before)


def test_a_file_that_is_no_edit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_text("no")
    with pytest.raises(UsageError, match="not a saved edit"):
        Edit.load(tmp_path / "x.safetensors")


def test_slots_join_and_are_picked(lm: LM, family: str) -> None:
    low = random_edit(lm, family, "low rank", slots=2)
    wide = Edit({s: LowRank(r.u.repeat(1, 2, 1), r.v.repeat(1, 2, 1)) for s, r in low.rules.items()}, 2)
    joined = Edit.join([low, wide])
    assert joined.slots == 4
    for site, rule in joined.rules.items():
        assert torch.allclose(rule.update(1), low.rules[site].update(1), rtol=0, atol=1e-12)
        assert torch.allclose(rule.update(3), 2 * low.rules[site].update(1), rtol=0, atol=1e-12)
        assert torch.equal(joined[torch.tensor([3])].rules[site].update(0), rule.update(3))


@pytest.mark.parametrize("kind", KINDS)
def test_joined_and_picked_slots_answer_as_they_did(lm: LM, family: str, kind: str) -> None:
    edits = [random_edit(lm, family, kind, slots=2), random_edit(lm, family, kind, slots=1, size=0.2, width=3)]
    joined = Edit.join(edits)[torch.tensor([2, 0])]
    batch = lm.batch([lm.text(*text) for text in TEXTS], 2)
    sites = lm.sites(list(joined.rules))
    for slot, (edit, own) in enumerate([(edits[1], 0), (edits[0], 0)]):
        with applied(sites, joined, slot):
            found = lm.logits(batch)
        with applied(sites, edit, own):
            assert torch.allclose(found, lm.logits(batch), rtol=0, atol=1e-10)


def test_ffn_slots_of_different_kinds_are_not_put_together() -> None:
    one = torch.ones(1, 1, 2)
    silu, gated, relu = FFNSlots(one, one, "silu"), FFNSlots(one, one, "silu", one), FFNSlots(one, one, "relu")
    for other in (gated, relu):
        with pytest.raises(ValueError, match="different activations or gates"):
            silu + other
        with pytest.raises(ValueError, match="different activations or gates"):
            FFNSlots.join([silu, other])


def book(*entries: tuple[float, float, list[int]], value: float = 0.0) -> Codebook:
    """Entries (key, radius, target) on a line, valued ``value``, ``value + 1``, …; a radius below 0: none."""
    longest = max(len(label) for _, _, label in entries)
    return Codebook(
        torch.tensor([[[key] for key, _, _ in entries]]),
        torch.arange(len(entries)).float()[None, :, None] + value,
        torch.tensor([[radius for _, radius, _ in entries]]),
        torch.tensor([[label + [-1] * (longest - len(label)) for _, _, label in entries]]),
    )


ROME, PARIS, NEW_YORK = [5], [7], [4, 8]


@pytest.mark.parametrize(
    ("new", "radii", "why"),
    [
        ((3.5, 1.0, PARIS), [2.0, 1.0], "beyond both radii: beside the others"),
        ((2.5, 1.0, PARIS), [1.25, 1.25], "near, another target: both half the distance"),
        ((2.5, 1.0, ROME), [2.5, -1.0], "near, the same target: the radius grows"),
        ((1.0, 1.0, ROME), [2.0, -1.0], "within, the same target: nothing changes"),
        ((3.0, 1.0, PARIS), [1.5, 1.5], "exactly the sum of both radii away is near"),
        ((0.0, 1.0, PARIS), [-1.0, 2.0], "the same key: the new target takes its place"),
        ((0.0, 1.0, ROME), [2.0, -1.0], "the same edit again changes nothing"),
        ((2.0, -1.0, PARIS), [2.0, -1.0], "no entry: nothing changes"),
    ],
)
def test_an_entry_is_added_by_the_rule(new: tuple[float, float, list[int]], radii: list[float], why: str) -> None:
    total = book((0.0, 2.0, ROME)) + book(new, value=9.0)
    assert total.radii[0].tolist() == radii, why


def test_targets_are_compared_token_by_token() -> None:
    """[4, 8] and [6] have one mean, [4] and [4, 8] one beginning: all are different targets."""
    for one, other in (([4, 8], [6]), ([4], [4, 8]), ([4, 8], [8, 4])):
        assert (book((0.0, 1.0, one)) + book((1.0, 1.0, other))).radii[0].tolist() == [0.5, 0.5]
        assert (book((0.0, 1.0, other)) + book((1.0, 1.0, other))).radii[0].tolist() == [1.0, -1.0]


def test_entries_are_added_one_by_one() -> None:
    """The second new entry meets the first, and each is compared with its nearest key only."""
    total = book((0.0, 1.0, ROME), (9.0, 1.0, ROME)) + book((8.0, 1.0, PARIS), (6.5, 1.0, PARIS), (7.0, 1.0, ROME))
    assert total.keys[0, :, 0].tolist() == [0.0, 9.0, 8.0, 6.5, 7.0]
    # 8.0 halves with 9.0; 6.5 is 1.5 from 8.0 (radius 0.5, same target): grows to 1.5; 7.0 is 1 from 8.0: halves
    assert total.radii[0].tolist() == [1.0, 0.5, 0.5, -1.0, 0.5]
    x = torch.tensor([[[0.9], [5.0], [8.6], [8.3], [7.4], [6.4]]])
    assert total(x, torch.full_like(x, -7.0))[0, :, 0].tolist() == [0.0, -7.0, 1.0, 0.0, 2.0, -7.0]


def test_slots_are_added_to_each_by_itself() -> None:
    pairs = [(book((0.0, 2.0, ROME)), book((2.5, 1.0, other))) for other in (ROME, PARIS, NEW_YORK)]
    pairs.append((book((0.0, 2.0, ROME)), book((7.0, 1.0, PARIS), (1.0, 1.0, PARIS))))
    together = Codebook.join([one for one, _ in pairs]) + Codebook.join([other for _, other in pairs])
    for slot, (one, other) in enumerate(pairs):
        alone = one + other
        real = together.radii[slot] >= 0
        assert torch.equal(together.radii[slot][real], alone.radii[0][alone.radii[0] >= 0])
        assert torch.equal(together.keys[slot][real], alone.keys[0][alone.radii[0] >= 0])


def test_an_absent_entry_is_never_the_nearest() -> None:
    found = book((0.0, 3.0, ROME), (2.0, -1.0, PARIS))(torch.tensor([[[2.0], [4.0]]]), torch.tensor([[[-7.0], [-7.0]]]))
    assert found[0, :, 0].tolist() == [0.0, -7.0]


def test_where_no_key_is_near_every_bit_stays(make_lm: Callable[..., LM], family: str) -> None:
    lm = make_lm(family, torch.float32)
    edit = random_edit(lm, family, "codebook")
    ((site, rule), *_) = edit.rules.items()
    _, _, d_in = rule.keys.shape
    x = rule.keys[:, :1] + torch.randn(3, 50, d_in) * rule.radii[0, 0] / d_in**0.5  # about a radius away
    y = torch.randn(3, 50, rule.values.shape[-1])
    inside = (rule.keys[:, None] - x[:, :, None]).norm(dim=-1).min(-1).values <= rule.radii[0, 0]
    found = rule(x, y)
    assert torch.equal(found[~inside], y[~inside])
    assert not (found[inside] == y[inside]).any()
    assert 0 < inside.sum() < inside.numel()


def test_an_owner_that_fits_neither_batch_nor_edit_is_refused(lm: LM, family: str) -> None:
    edit = random_edit(lm, family, "low rank")
    sites, batch = lm.sites(list(edit.rules)), lm.batch([lm.text("a", "b")], 2)
    with pytest.raises(ValueError, match="one slot for each row"), applied(sites, edit, [0, 1]):
        lm.logits(batch)
    with pytest.raises(ValueError, match="not in an edit of 3 slots"), applied(sites, edit, [3]):
        lm.logits(batch)


def test_traced_factors_give_each_rows_gradient(lm: LM, family: str) -> None:
    sites = lm.sites(SITES[family])
    texts = [lm.text(*text) for text in TEXTS]
    batch = lm.batch(texts, lm.block_of(sites))
    with traced(sites) as trace:
        loss = torch.nn.functional.cross_entropy(lm.logits(batch), batch.labels, reduction="sum")
    factors = trace.factors(loss)
    for row, text in enumerate(texts):
        model = copy.deepcopy(lm.model).requires_grad_(True)
        torch.nn.functional.cross_entropy(
            one_by_one(model, text), torch.tensor(text.answer), reduction="sum"
        ).backward()
        for site, (u, delta) in factors.items():
            module = model.get_submodule(site)
            gradient = module.weight.grad.mT if isinstance(module, torch.nn.Linear) else module.weight.grad
            assert torch.allclose(u[row].mT @ delta[row], gradient, rtol=0, atol=1e-10)
