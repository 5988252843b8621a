"""One table for every editor: properties that hold whatever the method. A new method is one row."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from editkit.editors import Editor, Trainable
from editkit.editors.calinet import CaliNet
from editkit.editors.ft import FineTuning
from editkit.editors.grace import GRACE
from editkit.editors.instructedit import InstructEdit
from editkit.editors.ke import KE
from editkit.editors.mend import MEND
from editkit.edits import Edit, WeightRule, applied
from editkit.lm import LM, weight
from editkit.objectives import Objective
from editkit.regimes import Batch, Sequential, Single
from editkit.requests import EditRequest
from tests.conftest import SITES

DOWN = {"llama": "-2.mlp.down_proj", "gpt2": "-2.mlp.c_proj"}


def mend(lm: LM, family: str) -> MEND:
    """With networks off the identity and statistics of some edits, as after training."""
    editor = MEND(lm, SITES[family], rank=8, step_size=0.01).to(lm.head.weight.dtype)
    generator = torch.Generator().manual_seed(2)
    for parameter in editor.networks.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
    editor.train()
    requests = [EditRequest(f"w{i}", "t", "s", f"Warm {i} is", "up") for i in range(4)]
    with torch.no_grad():
        editor.edit(lm, [[request] for request in requests])
    return editor.train(False)


def ke(lm: LM, family: str) -> KE:
    return KE(lm, SITES[family], hidden=12, condition=10).to(lm.head.weight.dtype).train(False)


def ft(loss: str) -> Callable[[LM, str], FineTuning]:
    return lambda lm, family: FineTuning(lm, DOWN[family], loss, lr=0.02, steps=12, clamp=0.05)


def calinet(lm: LM, family: str) -> CaliNet:
    activation, gated = {"llama": ("silu", True), "gpt2": ("gelu_new", False)}[family]
    return CaliNet(lm, "-2.mlp", activation, gated, width=8, steps=12)


def grace(lm: LM, family: str) -> GRACE:
    return GRACE(lm, DOWN[family], radius=0.1, steps=12)


def instructedit(lm: LM, family: str) -> InstructEdit:
    return InstructEdit(lm, lambda lm: mend(lm, family), "editkit")


EDITORS: dict[str, Callable[[LM, str], Editor]] = {
    "instructedit": instructedit,
    "mend": mend,
    "ke": ke,
    "ft_l": ft("prompt_last"),
    "ft_m": ft("target"),
    "calinet": calinet,
    "grace": grace,
}


@pytest.fixture(params=EDITORS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def editor(name: str, lm: LM, family: str) -> Editor:
    return EDITORS[name](lm, family)


every_type = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])


def made(make_lm: Callable[..., LM], name: str, family: str, dtype: torch.dtype) -> tuple[LM, Editor]:
    """A model of this type and an editor for it; networks are in fp32 at least."""
    lm = make_lm(family, dtype)
    editor = EDITORS[name](lm, family)
    return lm, editor.float() if dtype == torch.bfloat16 and isinstance(editor, torch.nn.Module) else editor


def answers(lm: LM, edit: Edit, requests: list[EditRequest], slot: int = 0) -> torch.Tensor:
    """What one slot's model says at the answers of all requests; slot -1: the base model."""
    batch = lm.batch([lm.text(r.instruction + r.prompt, r.target) for r in requests], lm.block_of(edit.rules))
    with applied(lm.sites(list(edit.rules)), edit, slot):
        return lm.logits(batch)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-8)


# In fp32 twelve steps of Adam, whose first is as long as the rate whatever the gradient, carry rounding on.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
@torch.no_grad()
def test_edits_made_together_are_those_made_alone(
    name: str,
    family: str,
    dtype: torch.dtype,
    tolerance: float,
    make_lm: Callable[..., LM],
    requests: list[EditRequest],
) -> None:
    lm, editor = made(make_lm, name, family, dtype)
    together = editor.edit(lm, [[request] for request in requests])
    base = answers(lm, together, requests, -1)
    for slot, request in enumerate(requests):
        found = answers(lm, together, requests, slot)
        assert (found - base).abs().max() > 1e-6
        alone = answers(lm, editor.edit(lm, [[request]]), requests)
        assert torch.allclose(found, alone, rtol=0, atol=tolerance)


@torch.no_grad()
def test_the_blocks_below_the_site_read_a_text_once(editor: Editor, lm: LM, requests: list[EditRequest]) -> None:
    read: list[int] = []
    lm.blocks[0].register_forward_hook(lambda _module, inputs, _y: read.append(inputs[0].shape[1]))
    edit = editor.edit(lm, [[request] for request in requests])
    answers(lm, edit, requests)
    first = len(read)
    editor.edit(lm, [[request] for request in requests[::-1]])
    answers(lm, edit, requests)
    assert 0 < first == len(read)


@torch.no_grad()
def test_the_order_of_requests_does_not_matter(editor: Editor, lm: LM, requests: list[EditRequest]) -> None:
    forward = editor.edit(lm, [requests[:2], requests[2:4]])
    backward = editor.edit(lm, [requests[3:1:-1], requests[1::-1]])
    for slot in (0, 1):
        assert same(answers(lm, forward, requests, slot), answers(lm, backward, requests, 1 - slot))


@every_type
@torch.no_grad()
def test_the_model_is_left_alone_and_a_second_call_gives_the_same(
    name: str, family: str, dtype: torch.dtype, make_lm: Callable[..., LM], requests: list[EditRequest]
) -> None:
    lm, editor = made(make_lm, name, family, dtype)
    before = {key: tensor.clone() for key, tensor in lm.model.state_dict().items()}
    first, second = (editor.edit(lm, [[request] for request in requests]) for _ in range(2))
    assert all(torch.equal(tensor, before[key]) for key, tensor in lm.model.state_dict().items())
    assert not any(module._forward_hooks for module in lm.model.modules())
    for site, rule in first.rules.items():
        other = second.rules[site].tensors()
        assert all(torch.equal(tensor, other[key]) for key, tensor in rule.tensors().items())


@every_type
@torch.no_grad()
def test_a_saved_edit_gives_the_same_answers(
    name: str,
    family: str,
    dtype: torch.dtype,
    make_lm: Callable[..., LM],
    requests: list[EditRequest],
    tmp_path: Path,
) -> None:
    lm, editor = made(make_lm, name, family, dtype)
    edit = editor.edit(lm, [[request] for request in requests])
    edit.save(tmp_path / "edit.safetensors")
    loaded, _ = Edit.load(tmp_path / "edit.safetensors")
    assert torch.equal(answers(lm, loaded, requests, 3), answers(lm, edit, requests, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_edit_takes(
    name: str, family: str, dtype: torch.dtype, make_lm: Callable[..., LM], requests: list[EditRequest]
) -> None:
    lm = make_lm(family, dtype)
    editor = EDITORS[name](lm, family)
    objective = Objective(outer="edit", edit_weight=1.0, locality_weight=0.0)
    if isinstance(editor, Trainable):
        editor = editor.float().train()
        optimizer = torch.optim.Adam([{**group, "lr": 0.02} for group in editor.parameter_groups()])
        for step in range(16):
            edit = editor.edit(lm, [[request] for request in requests])
            loss = objective(lm, edit, objective.questions(lm, requests, random.Random(step)))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        editor.train(False)
    with torch.no_grad():
        edit = editor.edit(lm, [[request] for request in requests])
        none = edit[torch.tensor([], dtype=torch.long)]
        assert none.slots == 0
        after = objective(lm, edit, objective.questions(lm, requests, random.Random(0)))["nll"]
        texts = [lm.text(request.prompt, request.target) for request in requests]
        batch = lm.batch(texts, lm.block_of(edit.rules))
        with applied(lm.sites(list(edit.rules)), edit, -1):
            logits = lm.logits(batch)
        nll = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
        before = torch.stack([part.mean() for part in nll.split([len(text.answer) for text in texts])]).mean()
    assert after < before - 0.1


@torch.no_grad()
def test_single_edits_do_not_depend_on_how_many_run_at_once(
    editor: Editor, lm: LM, requests: list[EditRequest]
) -> None:
    def by_request(at_once: int) -> list[torch.Tensor]:
        made = Single(at_once)(editor, lm, requests)
        return [answers(lm, edit, requests, slot) for edit, groups in made for slot in range(len(groups))]

    assert all(same(one, other) for one, other in zip(by_request(2), by_request(64), strict=True))


@torch.no_grad()
def test_a_batch_of_one_and_a_sequence_of_one_are_a_single_edit(
    editor: Editor, lm: LM, requests: list[EditRequest]
) -> None:
    ways = [list(regime(editor, lm, requests)) for regime in (Single(), Batch(1), Sequential(1))]
    for (edit, _), (other, groups) in ((ways[0][0], way[0]) for way in ways[1:]):
        assert [group[0] for group in groups] == requests
        for slot in range(len(requests)):
            assert same(answers(lm, edit, requests, slot), answers(lm, other, requests, slot))


@pytest.mark.parametrize("name", sorted(set(EDITORS) - {"calinet", "grace"}))  # whose edits are no change of weights
@torch.no_grad()
def test_a_sequence_is_edits_on_the_model_that_the_ones_before_left(
    editor: Editor, name: str, family: str, make_lm: Callable[..., LM], requests: list[EditRequest]
) -> None:
    lm = make_lm(family)
    ((edit, groups),) = Sequential(3)(editor, lm, requests)
    assert [len(group) for group in groups] == [3, 3]
    written = make_lm(family)  # the slow way: write each edit into the weights before the next
    for request in requests[3:]:
        fresh = LM(written.model, written.tokenizer, written.layout, "written")  # its stores know nothing of the edits
        for site, rule in editor.edit(fresh, [[request]]).rules.items():
            assert isinstance(rule, WeightRule)
            weight(written.model.get_submodule(site)).data += rule.update(0)
    last = LM(written.model, written.tokenizer, written.layout, "written")
    assert same(answers(lm, edit, requests, 1), answers(last, edit, requests, -1))


@torch.no_grad()
def test_a_sequence_is_scored_along_the_way(editor: Editor, lm: LM, requests: list[EditRequest]) -> None:
    part, end = Sequential(3, along=[1, 2])(editor, lm, requests[:3]), Sequential(2)(editor, lm, requests[:2])
    points = {edit.regime: (edit, groups) for edit, groups in part}
    assert {name: [len(group) for group in groups] for name, (_, groups) in points.items()} == {
        "sequential 1": [1],
        "sequential 2": [2],
        "sequential 3": [3],
    }
    ((shorter, _),) = end
    assert same(answers(lm, points["sequential 2"][0], requests, 0), answers(lm, shorter, requests, 0))


@torch.no_grad()
def test_an_instruction_changes_the_edit(editor: Editor, lm: LM, requests: list[EditRequest]) -> None:
    told = [replace(request, instruction="Task: toys\nInput: ") for request in requests]
    plain, instructed = editor.edit(lm, [requests[:1]]), editor.edit(lm, [told[:1]])
    every = [*requests, *told]
    assert (answers(lm, plain, every) - answers(lm, instructed, every)).abs().max() > 1e-6
