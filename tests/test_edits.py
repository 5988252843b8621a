"""An edit beside the model against the slow obvious way: a deep copy of the model with its weights changed."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from editkit.edits import Dense, Edit, LowRank, applied, traced
from editkit.errors import UsageError
from editkit.lm import LM, Text, weight
from tests.conftest import SITES


def random_edit(lm: LM, family: str, kind: str, slots: int = 3, size: float = 0.3) -> Edit:
    generator = torch.Generator().manual_seed(1)
    dtype = lm.head.weight.dtype

    def noise(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * size).to(dtype)

    rules = {}
    for site, module in lm.sites(SITES[family]).items():
        d_in, d_out = weight(module).shape
        rules[site] = (
            LowRank(noise(slots, 2, d_in), noise(slots, 2, d_out))
            if kind == "low rank"
            else Dense(noise(slots, d_in, d_out))
        )
    return Edit(rules, slots)


def copied(lm: LM, edit: Edit, slot: int) -> torch.nn.Module:
    """A deep copy of the model with the slot's update written into its weights; slot -1: as it is."""
    model = copy.deepcopy(lm.model)
    if slot >= 0:
        for site, rule in edit.rules.items():
            weight(model.get_submodule(site)).data += rule.update(slot)
    return model


def one_by_one(model: torch.nn.Module, text: Text) -> Tensor:
    return model(torch.tensor([text.ids])).logits[0, text.prompt - 1 : -1]


TEXTS = [
    ("The capital is", "Rome"),
    ("Hm", "a much longer answer"),
    ("Who was it that wrote this?", "I"),
    ("One", "two"),
]
OWNERS = [[0, 0, 1, 1], [2, -1, 0, 2], [-1, -1, -1, -1], [1, 0, 2, -1], [0, 1, 2, 2]]


@pytest.mark.parametrize("kind", ["low rank", "dense"])
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


def test_writing_with_a_cache_equals_a_deep_copy(lm: LM, family: str) -> None:
    edit = random_edit(lm, family, "low rank")
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


@pytest.mark.parametrize("kind", ["low rank", "dense"])
def test_the_sum_of_two_edits_is_both(lm: LM, family: str, kind: str) -> None:
    first, second = random_edit(lm, family, kind), random_edit(lm, family, kind, size=0.1)
    sites = lm.sites(list(first.rules))
    batch = lm.batch([lm.text("The capital is", "Rome")], 2)
    with applied(sites, first + second, 1):
        together = lm.logits(batch)
    with applied(sites, first, 1), applied(sites, second, 1):
        nested = lm.logits(batch)
    assert torch.allclose(together, nested, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["low rank", "dense"])
def test_saved_and_loaded_it_is_the_same(lm: LM, family: str, kind: str, tmp_path: Path) -> None:
    edit = random_edit(lm, family, kind)
    edit.save(tmp_path / "edit.safetensors", model=lm.fingerprint())
    loaded, about = Edit.load(tmp_path / "edit.safetensors")
    assert about == {"model": lm.fingerprint()}
    assert (loaded.slots, loaded.regime, list(loaded.rules)) == (edit.slots, edit.regime, list(edit.rules))
    for site, rule in edit.rules.items():
        assert type(loaded.rules[site]) is type(rule)
        assert all(torch.equal(loaded.rules[site].tensors()[name], t) for name, t in rule.tensors().items())


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
