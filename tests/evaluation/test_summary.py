"""Averages and intervals from records."""

import numpy as np
import pytest

from editkit.evaluation.records import Record
from editkit.evaluation.summary import interval, metric_names, summarise


def record(
    request: str, measure: str, value: float, asked: str = "same", category: str = "", **variants: float
) -> Record:
    scores = {"": value, **variants}
    return Record(request, "toy", "teacher_forced", measure, asked, category, "p", "a", "b", "e", scores)


@pytest.mark.parametrize(
    ("asked", "measure", "names"),
    [
        ("instructed", "reliability", ["reliability", "reliability_exact"]),
        ("bare", "reliability", ["reliability_bare", "reliability_exact_bare"]),
        ("same", "portability", ["portability", "portability_bare", "portability_exact", "portability_exact_bare"]),
        ("same", "locality", ["locality", "locality_exact"]),
    ],
)
def test_names(asked: str, measure: str, names: list[str]) -> None:
    assert [name for name, _ in metric_names(record("r", measure, 1.0, asked, exact=1.0))] == names


def test_probes_are_averaged_within_an_edit_first() -> None:
    found = [record("a", "generalization", v) for v in (1.0, 0.0, 0.5)] + [record("b", "generalization", 0.9)]
    row = summarise(found, "x", 0)[0]
    assert (row.metric, row.n) == ("generalization", 2)
    assert row.mean == pytest.approx((0.5 + 0.9) / 2)


def test_portability_is_averaged_by_category_then_over_categories() -> None:
    found = [record(r, "portability", v, category="Reasoning") for r, v in (("a", 1.0), ("b", 0.0), ("c", 0.0))]
    found += [record("a", "portability", 1.0, category="Subject_Aliasing")]
    row = summarise(found, "x", 0)[0]
    assert row.mean == pytest.approx((1 / 3 + 1) / 2)
    assert row.n == 3


def test_locality_pools_its_categories() -> None:
    found = [record("a", "locality", v, category=c) for v, c in ((1.0, "x"), (1.0, "x"), (0.0, "y"))]
    assert summarise(found, "x", 0)[0].mean == pytest.approx(2 / 3)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for trial in range(300):
        _, low, high = interval(generator.binomial(1, 0.7, size=(60, 1)).astype(float), 400, trial)
        inside += low <= 0.7 <= high
    # 95 % nominal; the percentile bootstrap of 60 records falls a little short, and 300 trials scatter by 1.3 %.
    assert 0.89 <= inside / 300 <= 0.98


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(1).random((30, 2))
    values[3, 1] = np.nan
    assert interval(values, 200, 5) == interval(values, 200, 5)
    mean, low, high = interval(values, 200, 5)
    assert low <= mean <= high
    assert mean == pytest.approx(np.nanmean(values, axis=0).mean())


def test_a_single_edit_has_no_spread() -> None:
    assert interval(np.array([[0.4]]), 100, 0) == pytest.approx((0.4, 0.4, 0.4))
