"""CaliNet against a plain version: one model at a time, whose MLP really has the extra slots."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from editkit.editors.calinet import CaliNet
from editkit.edits import FFNSlots, applied
from editkit.errors import UsageError
from editkit.lm import LM, Text
from editkit.regimes import Batch, Sequential
from editkit.requests import EditRequest
from tests.test_edits import copied, one_by_one

FFN = {"llama": ("silu", True), "gpt2": ("gelu_new", False)}


def make(lm: LM, family: str, steps: int = 6, enough: float = 0.0, rephrases: bool = False, seed: int = 0) -> CaliNet:
    return CaliNet(lm, "-2.mlp", *FFN[family], width=5, steps=steps, enough=enough, rephrases=rephrases, seed=seed)


class Beside(torch.nn.Module):
    """An MLP and its extra slots, as the paper writes them."""

    def __init__(self, mlp: torch.nn.Module, family: str, keys: Tensor, values: Tensor, gate: Tensor | None = None):
        super().__init__()
        self.mlp = mlp
        functional = torch.nn.functional
        self.phi = functional.silu if family == "llama" else lambda x: functional.gelu(x, approximate="tanh")
        self.keys, self.values = torch.nn.Parameter(keys), torch.nn.Parameter(values)
        self.gate = None if gate is None else torch.nn.Parameter(gate)

    def forward(self, h: Tensor) -> Tensor:
        inner = h @ self.keys.T
        strength = self.phi(inner) if self.gate is None else self.phi(h @ self.gate.T) * inner
        return self.mlp(h) + strength @ self.values


def plain(lm: LM, family: str, start: FFNSlots, texts: list[Text], steps: int) -> dict[str, Tensor]:
    """The slots after ``steps`` of Adam on whole texts, in a copy of the model."""
    model = copy.deepcopy(lm.model)
    site = f"{lm.layout.blocks}.2.mlp"
    beside = Beside(model.get_submodule(site), family, **{n: t[0].clone() for n, t in start.tensors().items()})
    model.set_submodule(site, beside)
    slots = {name: p for name, p in beside.named_parameters() if not name.startswith("mlp")}
    optimizer = torch.optim.Adam(slots.values(), lr=1e-2)
    labels = torch.tensor([token for text in texts for token in text.answer])
    for _ in range(steps):
        optimizer.zero_grad()
        logits = torch.cat([one_by_one(model, text) for text in texts])
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
    return slots


@pytest.mark.parametrize("rephrases", [False, True])
def test_it_is_the_plain_version(lm: LM, family: str, requests: list[EditRequest], rephrases: bool) -> None:
    groups = [requests[:1], requests[1:4], requests[4:]]
    (start,) = make(lm, family, steps=0).edit(lm, groups).rules.values()
    (found,) = make(lm, family, rephrases=rephrases).edit(lm, groups).rules.values()
    for slot, group in enumerate(groups):
        asked = [(r.prompt, r.target) for r in group]
        asked += [(rephrase, r.target) for r in group for rephrase in r.rephrases if rephrases]
        wanted = plain(lm, family, start, [lm.text(*text) for text in asked], steps=6)
        assert wanted.keys() == found.tensors().keys()
        for name, tensor in found.tensors().items():
            assert torch.allclose(tensor[slot], wanted[name], rtol=0, atol=1e-8), name
            assert not torch.allclose(tensor[slot], start.tensors()[name][slot], rtol=0, atol=1e-4), name


def test_it_starts_as_the_base_model(lm: LM, family: str, requests: list[EditRequest]) -> None:
    edit = make(lm, family, steps=0).edit(lm, [requests])
    batch = lm.batch([lm.text(r.prompt, r.target) for r in requests], 2)
    base = lm.logits(batch)
    with applied(lm.sites(list(edit.rules)), edit, 0):
        assert torch.equal(lm.logits(batch), base)


def test_each_edit_stops_on_its_own(lm: LM, family: str, requests: list[EditRequest]) -> None:
    """One that stops at once keeps its start; its neighbour goes on."""
    groups = [[request] for request in requests[:2]]
    batch = lm.batch([lm.text(r.prompt, r.target) for r in requests[:2]], 2)
    nll = torch.nn.functional.cross_entropy(lm.logits(batch), batch.labels, reduction="none")
    losses = torch.stack([nll[batch.row == row].mean() for row in (0, 1)])
    (rule,) = make(lm, family, enough=float(losses.mean())).edit(lm, groups).rules.values()
    moved = rule.values.abs().amax((1, 2)) > 0
    assert moved.tolist() == (losses > losses.mean()).tolist()


def test_the_seed_chooses_the_keys(lm: LM, family: str, requests: list[EditRequest]) -> None:
    def keys(seed: int) -> Tensor:
        return make(lm, family, steps=0, seed=seed).edit(lm, [requests]).rules[f"{lm.layout.blocks}.2.mlp"].keys

    assert torch.equal(keys(3), keys(3))
    assert not torch.equal(keys(3), keys(4))


def test_a_sequence_widens_the_model_that_the_edits_before_left(
    make_lm: Callable[..., LM], family: str, requests: list[EditRequest]
) -> None:
    lm = make_lm(family)
    ((edit, _),) = Sequential(3)(make(lm, family), lm, requests[:3])
    (rule,) = edit.rules.values()
    assert rule.keys.shape == (1, 15, 16)
    other = lm  # the slow way: widen a copy's own MLP before the next edit
    for request in requests[:3]:
        step = make(other, family).edit(other, [[request]])
        other = LM(copied(other, step, 0), lm.tokenizer, lm.layout, "copy")
    for request in requests:
        text = lm.text(request.prompt, request.target)
        with torch.no_grad(), applied(lm.sites(list(edit.rules)), edit, 0):
            found = lm.logits(lm.batch([text], 2))
        assert torch.allclose(found, one_by_one(other.model, text), rtol=0, atol=1e-8)


def test_a_batch_is_learned_as_one(lm: LM, family: str, requests: list[EditRequest]) -> None:
    ((edit, groups),) = Batch(3)(make(lm, family, steps=60), lm, requests)
    texts = [lm.text(r.prompt, r.target) for r in requests]
    batch = lm.batch(texts, 2)
    with torch.no_grad():
        before = lm.logits(batch)
        with applied(lm.sites(list(edit.rules)), edit, [0, 0, 0, 1, 1, 1]):
            after = lm.logits(batch)
    nll = [torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none") for logits in (before, after)]
    for row in range(6):  # every fact of both batches, not only their mean
        assert nll[1][batch.row == row].mean() < nll[0][batch.row == row].mean()


def test_the_blocks_below_its_site_run_once_for_each_text(lm: LM, family: str, requests: list[EditRequest]) -> None:
    runs = {"below": 0, "site": 0}
    lm.blocks[1].register_forward_hook(lambda *_: runs.update(below=runs["below"] + 1))
    lm.blocks[2].register_forward_hook(lambda *_: runs.update(site=runs["site"] + 1))
    make(lm, family, steps=6).edit(lm, [[request] for request in requests])
    calls = 2  # the texts together, and the one row on which the blocks' call is recorded
    assert runs == {"below": calls, "site": 6}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 0}, "editor.width is 0, but CaliNet needs at least one extra slot"),
        ({"activation": "sillu"}, "editor.activation is 'sillu', but must be one of transformers' names"),
        ({"site": "-1.mlp.{down}"}, "but CaliNet needs a block's MLP"),
    ],
)
def test_what_cannot_be_is_refused(lm: LM, family: str, change: dict, said: str) -> None:
    settings = {"site": "-1.mlp", "activation": "silu", "gated": True, **change}
    settings["site"] = settings["site"].format(down={"llama": "down_proj", "gpt2": "c_proj"}[family])
    with pytest.raises(UsageError, match=said):
        CaliNet(lm, **settings)
