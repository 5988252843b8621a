"""One table for every editor: properties that hold whatever the method. A new method is one row."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from editkit.editors import Editor, Trainable
from editkit.editors.ft import FineTuning
from editkit.editors.ke import KE
from editkit.editors.mend import MEND
from editkit.edits import applied
from editkit.lm import LM
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


EDITORS: dict[str, Callable[[LM, str], Editor]] = {
    "mend": mend,
    "ke": ke,
    "ft_l": ft("prompt_last"),
    "ft_m": ft("target"),
}


@pytest.fixture(params=EDITORS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def editor(name: str, lm: LM, family: str) -> Editor:
    return EDITORS[name](lm, family)


def updates(edit, slot: int = 0) -> dict[str, torch.Tensor]:
    return {site: rule.update(slot) for site, rule in edit.rules.items()}


@torch.no_grad()
def test_edits_made_together_are_those_made_alone(editor: Editor, lm: LM, requests: list[EditRequest]) -> None:
    together = editor.edit(lm, [[request] for request in requests])
    for slot, request in enumerate(requests):
        alone = updates(editor.edit(lm, [[request]]))
        for site, update in updates(together, slot).items():
            assert update.abs().max() > 1e-6
            assert torch.allclose(update, alone[site], rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_the_order_of_requests_does_not_matter(editor: Editor, lm: LM, requests: list[EditRequest]) -> None:
    forward = editor.edit(lm, [requests[:2], requests[2:4]])
    backward = editor.edit(lm, [requests[3:1:-1], requests[1::-1]])
    for slot in (0, 1):
        for site, update in updates(forward, slot).items():
            assert torch.allclose(update, updates(backward, 1 - slot)[site], rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_the_model_is_left_alone_and_a_second_call_gives_the_same(
    editor: Editor, lm: LM, requests: list[EditRequest]
) -> None:
    before = {key: tensor.clone() for key, tensor in lm.model.state_dict().items()}
    first, second = (editor.edit(lm, [[request] for request in requests]) for _ in range(2))
    assert all(torch.equal(tensor, before[key]) for key, tensor in lm.model.state_dict().items())
    assert not any(module._forward_hooks for module in lm.model.modules())
    for site, update in updates(first, 3).items():
        assert torch.equal(update, updates(second, 3)[site])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_edit_takes(
    name: str, family: str, dtype: torch.dtype, make_lm: Callable[..., LM], requests: list[EditRequest]
) -> None:
    lm = make_lm(family, dtype)
    editor = EDITORS[name](lm, family)
    objective = Objective(outer="edit", edit_weight=1.0, locality_weight=0.0)
    if isinstance(editor, Trainable):
        editor = editor.float().train()
        optimizer = torch.optim.Adam([{**group, "lr": 0.01} for group in editor.parameter_groups()])
        for step in range(40):
            edit = editor.edit(lm, [[request] for request in requests])
            loss = objective(lm, edit, requests, random.Random(step))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        editor.train(False)
    with torch.no_grad():
        edit = editor.edit(lm, [[request] for request in requests])
        none = edit[torch.tensor([], dtype=torch.long)]
        assert none.slots == 0
        after = objective(lm, edit, requests, random.Random(0))["nll"]
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
    every = [updates(edit, slot) for edit, groups in Single(2)(editor, lm, requests) for slot in range(len(groups))]
    whole = [updates(edit, slot) for edit, groups in Single(64)(editor, lm, requests) for slot in range(len(groups))]
    for one, other in zip(every, whole, strict=True):
        assert all(torch.allclose(one[site], other[site], rtol=1e-9, atol=1e-12) for site in one)


@torch.no_grad()
def test_a_batch_of_one_and_a_sequence_of_one_are_a_single_edit(
    editor: Editor, lm: LM, requests: list[EditRequest]
) -> None:
    ways = [list(regime(editor, lm, requests)) for regime in (Single(), Batch(1), Sequential(1))]
    for (edit, _), (other, groups) in ((ways[0][0], way[0]) for way in ways[1:]):
        assert [group[0] for group in groups] == requests
        for slot in range(len(requests)):
            for site, update in updates(edit, slot).items():
                assert torch.allclose(update, updates(other, slot)[site], rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_a_sequence_is_edits_on_the_model_that_the_ones_before_left(
    editor: Editor, name: str, family: str, make_lm: Callable[..., LM], requests: list[EditRequest]
) -> None:
    lm = make_lm(family)
    ((edit, groups),) = Sequential(3)(editor, lm, requests)
    assert [len(group) for group in groups] == [3, 3]
    written = make_lm(family)  # the slow way: write each edit into the weights before the next
    total: dict[str, torch.Tensor] = {}
    for request in requests[3:]:
        fresh = LM(written.model, written.tokenizer, written.layout, "written")  # its stores know nothing of the edits
        step = updates(editor.edit(fresh, [[request]]))
        for site, update in step.items():
            module = written.model.get_submodule(site)
            module.weight.data += update.mT if isinstance(module, torch.nn.Linear) else update
            total[site] = total.get(site, 0) + update
    for site, update in updates(edit, 1).items():
        assert torch.allclose(update, total[site], rtol=1e-8, atol=1e-11)


@torch.no_grad()
def test_an_instruction_changes_the_edit(editor: Editor, lm: LM, requests: list[EditRequest]) -> None:
    told = [replace(request, instruction="Task: toys\nInput: ") for request in requests]
    plain, instructed = editor.edit(lm, [requests[:1]]), editor.edit(lm, [told[:1]])
    assert any((update - updates(instructed)[site]).abs().max() > 1e-6 for site, update in updates(plain).items())
