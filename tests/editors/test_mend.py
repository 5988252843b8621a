"""MEND's arithmetic against a plain written-out version: loops over tokens, one edit at a time, a copied model."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from editkit.editors.mend import MEND, FactorNetwork, RunningNorm, Tokens
from editkit.lm import LM
from editkit.requests import EditRequest
from tests.conftest import SITES


def test_batched_merge_is_the_token_loop() -> None:
    tokens = torch.randn(37, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 2
    norm = RunningNorm(5).double()
    for part in tokens.split([1, 7, 20, 9]):
        # What is not real has no part in it.
        other = torch.full((3, 5), 1e3, dtype=torch.float64)
        norm.update(torch.cat([part, other]), torch.arange(len(part) + 3) < len(part))
    count, mean, squares = 0, torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for token in tokens:  # Welford
        count += 1
        step = token - mean
        mean = mean + step / count
        squares = squares + step * (token - mean)
    assert norm.count == count
    assert torch.allclose(norm.mean, mean, rtol=1e-12)
    assert torch.allclose(norm.squares, squares, rtol=1e-12)
    assert torch.allclose(norm(tokens), (tokens - mean) / ((squares / (count - 1)).sqrt() + 1e-7), rtol=1e-12)


def test_the_statistics_are_part_of_the_state() -> None:
    norm, real = RunningNorm(2), torch.tensor([True])
    norm.update(torch.tensor([[1.0, 2.0], [3.0, 5.0]]), real.expand(2))
    other = RunningNorm(2)
    other.load_state_dict(norm.state_dict())
    other.update(torch.tensor([[0.0, 1.0]]), real)
    norm.update(torch.tensor([[0.0, 1.0]]), real)
    assert torch.equal(other.mean, norm.mean)
    assert torch.equal(other.squares, norm.squares)
    assert other.count == 3


def test_at_the_start_the_network_is_the_identity_on_normalised_factors() -> None:
    network = FactorNetwork(3, 2, modes=2, layers=2, rank=4, generator=torch.Generator().manual_seed(0))
    u, delta = torch.randn(6, 3), torch.randn(6, 2)
    network.observe(u, delta, torch.ones(6, dtype=torch.bool))
    new_u, new_delta = network(u, delta, 1)
    assert torch.allclose(new_u, (u - u.mean(0)) / (u.std(0) + 1e-7), atol=1e-5)
    assert torch.allclose(new_delta, (delta - delta.mean(0)) / (delta.std(0) + 1e-7), atol=1e-5)


def test_the_zero_start_is_left_by_the_first_step() -> None:
    network = FactorNetwork(3, 2, modes=1, layers=2, rank=4, generator=torch.Generator().manual_seed(0))
    u, delta = torch.randn(6, 3), torch.randn(6, 2)
    network.observe(u, delta, torch.ones(6, dtype=torch.bool))
    u, delta = network(u, delta, 0)
    (u.sum() + delta.sum()).backward()
    assert all(layer.up.grad.abs().max() > 0 for layer in network.layers)


def plain_mend(editor: MEND, lm: LM, request: EditRequest) -> dict[str, Tensor]:
    """The update of each weight, as the formulas read: dense gradients, token by token, layer by layer."""
    model = copy.deepcopy(lm.model).requires_grad_(True)
    seen: dict[str, list[Tensor]] = {}
    for site in editor.sites:
        module = model.get_submodule(site)
        module.register_forward_hook(lambda _m, x, _y, site=site: seen.setdefault(site, []).append(x[0][0].detach()))
        module.register_full_backward_hook(lambda _m, _i, g, site=site: seen[site].append(g[0][0].detach()))
    text = lm.text(request.prompt, request.target)
    logits = model(torch.tensor([text.ids])).logits[0, text.prompt - 1 : -1]
    torch.nn.functional.cross_entropy(logits, torch.tensor(text.answer)).backward()
    found = {}
    for index, site in enumerate(editor.sites):
        key, mode = editor.network_of[site]
        network = editor.networks[key]
        update = torch.zeros(network.split, dtype=torch.float64)
        for u, delta in zip(*seen[site], strict=True):
            if not (u != 0).any() or not (delta != 0).any():
                continue
            parts = []
            for x, norm in ((u, network.norm_in), (delta, network.norm_out)):
                parts.append((x - norm.mean) / ((norm.squares / (norm.count - 1)).sqrt() + 1e-7))
            z = torch.cat(parts)
            for layer in network.layers:
                z = z + torch.relu(layer.scale[mode] * (layer.up @ (layer.down @ z) + layer.bias) + layer.shift[mode])
            update += torch.outer(z[: network.split[0]], z[network.split[0] :])
        found[site] = editor.step_sizes[index] * update
    return found


def test_the_update_is_the_formula(lm: LM, family: str, requests: list[EditRequest]) -> None:
    editor = MEND(lm, SITES[family], rank=8, step_size=0.01).double()
    generator = torch.Generator().manual_seed(3)
    for parameter in editor.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    editor.train()
    with torch.no_grad():
        editor.edit(lm, [requests[:3], requests[3:]])
        editor.train(False)
        edit = editor.edit(lm, [[request] for request in requests])
    for slot, request in enumerate(requests):
        for site, wanted in plain_mend(editor, lm, request).items():
            assert torch.allclose(edit.rules[site].update(slot), wanted, rtol=1e-9, atol=1e-12)


def test_gradient_factors_sum_to_the_loss_gradient(lm: LM, family: str, requests: list[EditRequest]) -> None:
    editor = MEND(lm, SITES[family], rank=8)
    factors = editor.gradient_factors(lm, [requests[:2], requests[2:]])
    model = copy.deepcopy(lm.model).requires_grad_(True)
    nll = []
    for request in requests[:2]:
        text = lm.text(request.prompt, request.target)
        logits = model(torch.tensor([text.ids])).logits[0, text.prompt - 1 : -1]
        nll.append(torch.nn.functional.cross_entropy(logits, torch.tensor(text.answer), reduction="none"))
    torch.cat(nll).mean().backward()
    for site, (u, delta, _) in factors.items():
        module = model.get_submodule(site)
        gradient = module.weight.grad.mT if isinstance(module, torch.nn.Linear) else module.weight.grad
        assert torch.allclose(u[0].mT @ delta[0], gradient, rtol=0, atol=1e-12)


def test_only_tokens_with_both_factors_count() -> None:
    u = torch.tensor([[[1.0], [0.0], [2.0], [9.0]], [[3.0], [4.0], [5.0], [9.0]]])
    delta = torch.tensor([[[1.0], [1.0], [0.0], [9.0]], [[0.0], [6.0], [7.0], [9.0]]])
    tokens = Tokens.of(u, delta, [(0, 3), (1, 3)], [0, 1], 2)
    assert tokens.by_slot(tokens.u).tolist() == [[[1.0], [0.0], [2.0]], [[4.0], [5.0], [0.0]]]
    assert tokens.by_slot(tokens.delta).tolist() == [[[1.0], [1.0], [0.0]], [[6.0], [7.0], [0.0]]]
    assert tokens.real.tolist() == [True, False, False, True, True]
    assert Tokens.of(u, delta, [(0, 1), (1, 3)], [0, 0], 1).by_slot(u.new_ones(3, 1)).tolist() == [[[1.0]] * 3]


@pytest.mark.parametrize(("training", "rate"), [("corrected", 1e-2), ("faithful", 1e-6)])
def test_step_sizes_learn_at_the_rate_the_switch_says(make_lm: Callable[..., LM], training: str, rate: float) -> None:
    editor = MEND(make_lm("gpt2"), SITES["gpt2"], step_size_lr=1e-2, step_size_training=training)
    networks, steps = editor.parameter_groups()
    assert networks["lr"] == 1e-6
    assert steps["lr"] == rate
    assert steps["params"] == [editor.step_sizes]


def test_weights_of_one_shape_share_a_network_and_differ_by_mode(make_lm: Callable[..., LM]) -> None:
    editor = MEND(make_lm("llama"), SITES["llama"])
    assert list(editor.networks) == ["24x16", "16x24"]
    modes = [editor.network_of[site] for site in editor.sites]
    assert modes == [("24x16", 0), ("16x24", 0), ("16x24", 1), ("24x16", 1)]
