"""GRACE against a plain version: one edit after another in a copy of the model with a wrapped layer."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from editkit.editors.grace import GRACE
from editkit.edits import Codebook, applied
from editkit.errors import UsageError
from editkit.lm import LM
from editkit.regimes import Batch, Sequential
from editkit.requests import EditRequest
from tests.test_edits import one_by_one

DOWN = {"llama": "-2.mlp.down_proj", "gpt2": "-2.mlp.c_proj"}


class Wrapped(torch.nn.Module):
    """A layer with a list of (key, value, radius, target), written as the paper tells it."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer, self.entries = layer, []
        self.read: Tensor = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.read = x.detach()
        y = self.layer(x)
        rows = []
        for position in range(x.shape[1]):
            distances = [(x[0, position] - key).norm() for key, _, _, _ in self.entries]
            nearest = min(range(len(distances)), key=lambda index: distances[index], default=None)
            inside = nearest is not None and distances[nearest] <= self.entries[nearest][2]
            rows.append(self.entries[nearest][1] if inside else y[0, position])
        return torch.stack(rows)[None]

    def add(self, key: Tensor, value: Tensor, radius: float, target: tuple[int, ...]) -> bool:
        """Whether there is a new entry."""
        distances = [float((key - other).norm()) for other, _, _, _ in self.entries]
        if not distances or min(distances) > radius + self.entries[distances.index(min(distances))][2]:
            self.entries.append((key, value, radius, target))
            return True
        d, near = min(distances), distances.index(min(distances))
        k, v, own, label = self.entries[near]
        if label == target:
            self.entries[near] = (k, v, max(own, d), label)
            return False
        self.entries[near] = (k, v, d / 2, label)
        self.entries.append((key, value, d / 2, target))
        return True


def plain(lm: LM, family: str, editor: GRACE, requests: list[EditRequest]) -> tuple[torch.nn.Module, Wrapped]:
    """The model and its wrapped layer after one edit after another."""
    model = copy.deepcopy(lm.model)
    wrapped = Wrapped(model.get_submodule(editor.site))
    model.set_submodule(editor.site, wrapped)
    for request in requests:
        text = lm.text(request.prompt, request.target)
        one_by_one(model, text)
        key = wrapped.read[0, text.prompt - 1]
        value = editor.random.double().clone().requires_grad_()
        if wrapped.add(key, value, editor.radius, text.answer):
            optimizer = torch.optim.Adam([value], lr=editor.lr)
            for _ in range(editor.steps):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(one_by_one(model, text), torch.tensor(text.answer)).backward()
                optimizer.step()
            value.requires_grad_(False)
    return model, wrapped


def real(rule: Codebook, slot: int) -> list[tuple[Tensor, Tensor, float, tuple[int, ...]]]:
    """A slot's entries as a list."""
    return [
        (key, value, float(radius), tuple(token for token in label.tolist() if token >= 0))
        for key, value, radius, label in zip(*(tensor[slot] for tensor in rule.tensors().values()), strict=True)
        if radius >= 0
    ]


def check_equal(found: Codebook, slot: int, wanted: Wrapped) -> None:
    entries = real(found, slot)
    assert len(entries) == len(wanted.entries)
    for one, other in zip(entries, wanted.entries, strict=True):
        assert one[3] == other[3]
        assert abs(one[2] - other[2]) < 1e-9
        assert torch.allclose(one[0], other[0], rtol=0, atol=1e-9)
        assert torch.allclose(one[1], other[1], rtol=0, atol=1e-6)  # values near 10, after 8 steps of length 1


def distances(lm: LM, site: str, requests: list[EditRequest]) -> Tensor:
    (rule,) = GRACE(lm, site, radius=0.0, steps=0).edit(lm, [[r] for r in requests]).rules.values()
    return torch.cdist(rule.keys[:, 0], rule.keys[:, 0])


def test_a_single_edit_is_the_plain_version(lm: LM, family: str, requests: list[EditRequest]) -> None:
    editor = GRACE(lm, DOWN[family], radius=0.5, steps=8)
    (found,) = editor.edit(lm, [[request] for request in requests]).rules.values()
    for slot, request in enumerate(requests):
        _, wanted = plain(lm, family, editor, [request])
        check_equal(found, slot, wanted)


def test_a_sequence_is_the_plain_version(lm: LM, family: str, requests: list[EditRequest]) -> None:
    same = [replace(r, target=requests[0].target) for r in requests[3:5]]
    told = [*requests[:3], *same, requests[5]]
    near = distances(lm, DOWN[family], told)
    near.fill_diagonal_(torch.inf)
    editor = GRACE(lm, DOWN[family], radius=float(near.min(0).values.median()) * 0.72, steps=8)
    ((edit, _),) = Sequential(len(told))(editor, lm, told)
    model, wanted = plain(lm, family, editor, told)
    (found,) = edit.rules.values()
    check_equal(found, 0, wanted)
    radii = [radius for _, _, radius, _ in wanted.entries]
    assert len(radii) == len(told) - 1  # one came to share a key,
    assert min(radii) < editor.radius < max(radii)  # some were split, one has grown,
    assert editor.radius in radii  # and some stand alone
    for request in requests:
        text = lm.text(request.prompt, request.target)
        with torch.no_grad(), applied(lm.sites(list(edit.rules)), edit, 0):
            found_logits = lm.logits(lm.batch([text], 2))
        assert torch.allclose(found_logits, one_by_one(model, text), rtol=0, atol=1e-5)


def test_a_batch_of_different_keys_is_its_single_edits_added(lm: LM, family: str, requests: list[EditRequest]) -> None:
    editor = GRACE(lm, DOWN[family], radius=0.4 * float(distances(lm, DOWN[family], requests[:2])[0, 1]), steps=8)
    (alone,) = editor.edit(lm, [[r] for r in requests[:2]]).rules.values()
    ((edit, _),) = Batch(2)(editor, lm, requests[:2])
    (batch,) = edit.rules.values()
    added = alone[torch.tensor([0])] + alone[torch.tensor([1])]
    for one, other in zip(real(batch, 0), real(added, 0), strict=True):
        assert one[2:] == other[2:]
        assert torch.allclose(one[0], other[0], rtol=0, atol=1e-9)
        assert torch.allclose(one[1], other[1], rtol=0, atol=1e-6)


def test_groups_of_different_sizes_do_not_disturb_each_other(lm: LM, family: str, requests: list[EditRequest]) -> None:
    editor = GRACE(lm, DOWN[family], radius=0.1, steps=4)
    groups = [requests[:1], requests[1:4], requests[4:]]
    (together,) = editor.edit(lm, groups).rules.values()
    for slot, group in enumerate(groups):
        (alone,) = editor.edit(lm, [group]).rules.values()
        for one, other in zip(real(together, slot), real(alone, 0), strict=True):
            assert one[3] == other[3]
            assert torch.allclose(one[1], other[1], rtol=0, atol=1e-7)
        assert len(real(together, slot)) == len(group)


def test_the_target_is_said_and_far_texts_keep_their_bits(
    make_lm: Callable[..., LM], family: str, requests: list[EditRequest]
) -> None:
    lm = make_lm(family, torch.float32)
    editor = GRACE(lm, DOWN[family], radius=1e-3, steps=100)
    edit = editor.edit(lm, [[request] for request in requests])
    short = [r for r in requests if len(lm.text(r.prompt, r.target).answer) < 4]  # one value steers few tokens
    far = [lm.text(r.rephrases[0], r.target) for r in requests]
    texts = [lm.text(r.prompt, r.target) for r in short] + far
    batch = lm.batch(texts, 2)
    with torch.no_grad():
        base = lm.logits(batch)
        with applied(lm.sites(list(edit.rules)), edit, [*(requests.index(r) for r in short), *range(len(far))]):
            found = lm.logits(batch)
    asked = batch.row < len(short)
    first = torch.cat([torch.ones(1, dtype=torch.bool), batch.row[1:] != batch.row[:-1]])
    assert torch.equal(found.argmax(-1)[asked & first], batch.labels[asked & first])
    assert torch.equal(found[~asked], base[~asked])
    assert len(short) > 0


def test_a_prompt_can_be_edited_again(lm: LM, family: str, requests: list[EditRequest]) -> None:
    editor = GRACE(lm, DOWN[family], radius=0.3, steps=30)
    again = replace(requests[0], target="Oslo")
    ((edit, _),) = Sequential(2)(editor, lm, [requests[0], again])
    (rule,) = edit.rules.values()
    ((_, _, radius, target),) = real(rule, 0)
    assert (radius, target) == (0.3, lm.text(again.prompt, "Oslo").answer)


def test_values_may_start_from_the_layers_output(lm: LM, family: str, requests: list[EditRequest]) -> None:
    edit = GRACE(lm, DOWN[family], radius=1e-6, steps=0, start="output").edit(lm, [[request] for request in requests])
    batch = lm.batch([lm.text(r.prompt, r.target) for r in requests], 2)
    base = lm.logits(batch)
    with applied(lm.sites(list(edit.rules)), edit, range(len(requests))):
        first = torch.cat([torch.ones(1, dtype=torch.bool), batch.row[1:] != batch.row[:-1]])
        assert torch.allclose(lm.logits(batch)[first], base[first], rtol=0, atol=1e-10)


def test_the_blocks_below_its_site_run_once_for_each_text(lm: LM, family: str, requests: list[EditRequest]) -> None:
    runs = {"below": 0, "site": 0}
    lm.blocks[1].register_forward_hook(lambda *_: runs.update(below=runs["below"] + 1))
    lm.blocks[2].register_forward_hook(lambda *_: runs.update(site=runs["site"] + 1))
    GRACE(lm, DOWN[family], steps=6).edit(lm, [[request] for request in requests])
    calls = 2  # the texts together, and the one row on which the blocks' call is recorded
    assert runs == {"below": calls, "site": 1 + 6}


def test_what_cannot_be_is_refused(lm: LM, family: str) -> None:
    with pytest.raises(UsageError, match="MLP, but this editor needs a linear map"):
        GRACE(lm, "-1.mlp")
    with pytest.raises(UsageError, match="editor.start is 'warm', but must be one of random, output"):
        GRACE(lm, DOWN[family], start="warm")
