"""Directions against dense matrices, and measures of separation on points whose answer is known."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from editkit.analysis import gradients
from editkit.editors import Editor
from editkit.edits import LowRank
from editkit.errors import UsageError
from editkit.lm import LM, weight
from editkit.requests import EditRequest
from tests.editors.test_editors import grace, instructedit, ke, mend

MAKE: dict[str, Callable[[LM, str], Editor]] = {"mend": mend, "ke": ke}


def drawn(edits: int, tokens: int, d_in: int, d_out: int) -> LowRank:
    """Random factors in float64, the last token of every edit but the first a padded one."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(edits, tokens, d, generator=generator, dtype=torch.float64) for d in (d_in, d_out))
    v[1:, -1] = 0
    return LowRank(u, v)


def dense_cosines(matrices: list[torch.Tensor]) -> np.ndarray:
    flat = torch.stack([matrix.flatten() for matrix in matrices])
    flat = flat / flat.norm(dim=1, keepdim=True)
    return (flat @ flat.mT).numpy()


def clusters(tasks: int, each: int, apart: float) -> tuple[np.ndarray, list[str]]:
    """Points of length 1 around as many orthogonal directions as tasks; with ``apart`` 0, around none."""
    points = np.random.default_rng(0).normal(size=(tasks * each, 12)) / np.sqrt(12)
    labels = [index // each for index in range(tasks * each)]
    points[np.arange(len(points)), labels] += apart
    return points / np.linalg.norm(points, axis=1, keepdims=True), [f"task {label}" for label in labels]


# -- directions ------------------------------------------------------------------------------------------------------


def test_cosines_are_those_of_the_flattened_matrices() -> None:
    factors = drawn(edits=7, tokens=4, d_in=5, d_out=3)
    dense = dense_cosines([factors.update(slot) for slot in range(7)])
    for inputs in (2, 8):
        assert np.allclose(gradients.cosines(factors, inputs), dense, rtol=0, atol=1e-12)
    coordinates = gradients.spanned(factors)
    assert np.allclose(coordinates @ coordinates.T, dense, rtol=0, atol=1e-12)


def test_sums_are_those_of_a_loop_over_real_tokens() -> None:
    factors = drawn(edits=3, tokens=4, d_in=5, d_out=3)
    for edit, found in enumerate(gradients.summed(factors)):
        real = range(4) if edit == 0 else range(3)
        halves = [sum(factor[edit, token] for token in real) for factor in (factors.u, factors.v)]
        expected = torch.cat([half / half.norm() for half in halves]) / 2**0.5
        assert np.allclose(found, expected, rtol=0, atol=1e-7)  # fp32


def test_an_edit_written_with_other_factors_has_the_same_direction() -> None:
    factors = drawn(edits=3, tokens=4, d_in=5, d_out=3)
    other = LowRank(factors.u * 1e4, factors.v * 1e-9)
    assert np.allclose(gradients.summed(other), gradients.summed(factors), rtol=0, atol=1e-7)
    assert np.allclose(gradients.cosines(other), gradients.cosines(factors), rtol=0, atol=1e-12)


def test_no_edit_has_no_direction() -> None:
    factors = drawn(edits=3, tokens=4, d_in=5, d_out=3)
    factors.v[1] = 0
    assert (gradients.summed(factors)[1] == 0).all()
    assert (gradients.cosines(factors)[1] == 0).all()


@pytest.mark.parametrize("name", MAKE)
def test_matrices_are_those_the_edit_adds_to_the_weights(
    name: str, lm: LM, family: str, requests: list[EditRequest]
) -> None:
    editor = MAKE[name](lm, family)
    found = gradients.directions(lm, editor, requests, form="matrices", rows=4)
    with torch.no_grad():
        alone = [editor.edit(lm, [[request]]).rules for request in requests]
    assert list(found) == list(alone[0])
    for site, points in found.items():
        dense = dense_cosines([rules[site].update(0) for rules in alone])  # type: ignore[attr-defined]
        assert np.allclose(points @ points.T, dense, rtol=0, atol=1e-8)


def test_gradients_are_those_of_the_dense_weights(lm: LM, family: str, requests: list[EditRequest]) -> None:
    found = gradients.directions(lm, mend(lm, family), requests, of="gradient", form="matrices", rows=4)
    model = copy.deepcopy(lm.model).requires_grad_(True)
    dense: dict[str, list[torch.Tensor]] = {site: [] for site in found}
    for request in requests:
        text = lm.text(request.prompt, request.target)
        logits = model(torch.tensor([text.ids])).logits[0, text.prompt - 1 : -1]
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.tensor(text.answer)).backward()
        for site in found:
            dense[site].append(model.get_submodule(site).weight.grad.clone())
    for site, points in found.items():
        assert np.allclose(points @ points.T, dense_cosines(dense[site]), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("of", ["edit", "gradient"])
def test_a_direction_does_not_depend_on_its_neighbours(
    name: str, of: str, lm: LM, family: str, requests: list[EditRequest]
) -> None:
    editor = MAKE[name](lm, family)
    together = gradients.directions(lm, editor, requests, of)
    alone = gradients.directions(lm, editor, requests[::-1], of, rows=1)
    for site, points in together.items():
        d_in, d_out = weight(lm.model.get_submodule(site)).shape
        assert points.shape == (len(requests), d_in + d_out)
        assert np.allclose(np.linalg.norm(points, axis=1), 1, rtol=0, atol=1e-6)
        assert np.allclose(points, alone[site][::-1], rtol=0, atol=1e-6)


def test_an_editor_left_in_training_mode_learns_nothing_from_being_read(
    lm: LM, family: str, requests: list[EditRequest]
) -> None:
    editor = mend(lm, family).train()
    before = {key: tensor.clone() for key, tensor in editor.state_dict().items()}
    gradients.directions(lm, editor, requests)
    assert all(torch.equal(tensor, before[key]) for key, tensor in editor.state_dict().items())


def test_an_instruction_turns_the_direction(lm: LM, family: str, requests: list[EditRequest]) -> None:
    editor = instructedit(lm, family)
    told = [
        [editor.instruct(replace(request, task=task)) for request in requests] for task in ("recent", "zsre", "zsre")
    ]
    bare = gradients.directions(lm, editor, requests)
    recent, zsre, again = (gradients.directions(lm, editor, each) for each in told)
    for site in bare:
        assert np.abs(recent[site] - zsre[site]).max(1).min() > 1e-3
        assert np.abs(recent[site] - bare[site]).max(1).min() > 1e-3
        assert np.array_equal(zsre[site], again[site])


def test_edits_of_another_kind_are_refused(lm: LM, family: str, requests: list[EditRequest]) -> None:
    with pytest.raises(UsageError, match="is a Codebook, but directions are taken of LowRank"):
        gradients.directions(lm, grace(lm, family), requests)
    with pytest.raises(UsageError, match="no request"):
        gradients.directions(lm, mend(lm, family), [])
    with pytest.raises(UsageError, match="of is 'edits'"):
        gradients.directions(lm, mend(lm, family), requests, of="edits")


# -- maps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [4, 30])
def test_principal_components_are_those_of_the_decomposed_points(d: int) -> None:
    points = np.random.default_rng(0).normal(size=(9, d)) + 3
    centred = points - points.mean(0)
    vectors, values, _ = np.linalg.svd(centred, full_matrices=False)
    found = gradients.principal(points, 3)
    assert np.allclose(found.explained, (values**2 / (values**2).sum())[:3])
    assert np.allclose(np.abs(found.coordinates), np.abs(vectors * values)[:, :3])
    every = gradients.principal(points)
    assert every.coordinates.shape == (9, min(9, d))
    assert np.allclose(every.coordinates @ every.coordinates.T, centred @ centred.T)


def test_the_same_seed_gives_the_same_maps() -> None:
    points, tasks = clusters(2, 10, 1.0)
    first, again = (gradients.tsne(points, seed=1, perplexities=[3]) for _ in range(2))
    assert np.array_equal(first[3], again[3])
    assert gradients.placed(first[3], tasks, "a")[12] == {
        "panel": "a",
        "task": "task 1",
        "x": float(first[3][12, 0]),
        "y": float(first[3][12, 1]),
    }


def test_a_perplexity_too_large_for_the_edits_is_capped() -> None:
    assert list(gradients.tsne(clusters(2, 5, 1.0)[0], seed=0, perplexities=(2, 10, 30))) == [2, 3]
    with pytest.raises(UsageError, match="at least four"):
        gradients.tsne(np.eye(3), seed=0)


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_tasks_that_point_apart_are_told_apart() -> None:
    points, tasks = clusters(3, 20, 4.0)
    rows = gradients.separation({"site": points}, tasks, seed=0)
    assert [row.task for row in rows[:4]] == ["task 0", "task 1", "task 2", gradients.ALL]
    for row in rows:
        least, most = {"silhouette": (0.8, 1), "probe": (1, 1), "neighbours_elsewhere": (0, 0)}[row.metric]
        assert least <= row.ci_low <= row.mean <= row.ci_high <= most
    table = {(r.task, r.other_task, r.metric): r.mean for r in gradients.overlap({"site": points}, tasks, seed=0)}
    assert table["task 0", "task 0", "neighbours"] == 1
    assert table["task 0", "task 1", "cosine"] < 0.2 < 0.8 < table["task 0", "task 0", "cosine"]


def test_tasks_that_point_alike_are_at_chance() -> None:
    points, tasks = clusters(3, 60, 0.0)
    found = {r.metric: r for r in gradients.separation({"site": points}, tasks, seed=0) if r.task == gradients.ALL}
    assert found["probe"].chance == pytest.approx(1 / 3)
    assert found["neighbours_elsewhere"].chance == pytest.approx(120 / 179)
    for row in found.values():
        assert row.n == 180
        assert abs(row.mean - row.chance) < 0.05
    for metric in ("probe", "neighbours_elsewhere"):
        assert found[metric].ci_low < found[metric].chance < found[metric].ci_high


def test_the_table_is_that_of_a_loop() -> None:
    points, tasks = clusters(3, 6, 0.5)
    points, tasks = points[:-2], tasks[:-2]
    products = points @ points.T
    for row in gradients.overlap({"site": points}, tasks, seed=0, neighbours=4):
        values = []
        for edit in (index for index, task in enumerate(tasks) if task == row.task):
            rest = [other for other in range(len(tasks)) if other != edit]
            near = sorted(rest, key=lambda other: -products[edit, other])[:4]
            theirs = [other for other in rest if tasks[other] == row.other_task]
            cosine = sum(products[edit, other] for other in theirs) / len(theirs)
            share = sum(tasks[other] == row.other_task for other in near) / 4
            values.append({"cosine": cosine, "neighbours": share}[row.metric])
        assert row.mean == pytest.approx(np.mean(values))
        if row.metric == "neighbours":
            assert row.chance == pytest.approx(len(theirs) / 15)


def test_the_probe_does_not_see_how_directions_are_turned_or_scaled() -> None:
    points, tasks = clusters(2, 15, 0.4)
    turned = points @ np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0] * 7
    found = gradients.probed(points, np.array(tasks), folds=5, seed=0)
    assert 0 < found.mean() < 1
    assert np.array_equal(found, gradients.probed(turned, np.array(tasks), folds=5, seed=0))


def test_every_task_counts_alike_however_many_edits_it_has() -> None:
    points, tasks = clusters(2, 40, 0.0)
    rows = gradients.separation({"site": points[:50]}, tasks[:50], seed=0)
    probe = {row.task: row for row in rows if row.metric == "probe"}
    assert probe[gradients.ALL].mean == pytest.approx((probe["task 0"].mean + probe["task 1"].mean) / 2)
    assert (probe["task 0"].n, probe["task 1"].n) == (40, 10)
    assert probe[gradients.ALL].chance == 0.5


def test_two_edits_a_task_are_enough_and_fewer_are_refused() -> None:
    points, tasks = clusters(2, 2, 4.0)
    assert len(gradients.separation({"site": points}, tasks, seed=0)) == 9
    with pytest.raises(UsageError, match="two tasks with two edits each"):
        gradients.separation({"site": points[:3]}, tasks[:3], seed=0)
    with pytest.raises(UsageError, match="two tasks with two edits each"):
        gradients.overlap({"site": points}, ["one"] * 4, seed=0)
