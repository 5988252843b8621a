"""Averages with bootstrap intervals, derived from records alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from editkit.evaluation.records import Record


@dataclass(frozen=True)
class Row:
    """One line of ``results.csv``: a metric's mean over ``n`` edits with its 95 % bootstrap interval."""

    editor: str
    task: str
    regime: str
    protocol: str
    metric: str
    mean: float
    ci_low: float
    ci_high: float
    n: int
    seed: int


def metric_names(record: Record) -> list[tuple[str, str]]:
    """The (metric, variant of ``scores``) pairs that a record counts towards.

    A question that an instruction stood before counts towards ``reliability``, the same without it towards
    ``reliability_bare``; where the editor reads none, one record counts towards both. Locality is asked without one,
    and counts towards ``locality_instructed`` where it was asked with one.
    """
    suffixes = {"instructed": ("",), "bare": ("_bare",), "same": ("", "_bare")}[record.asked]
    if record.measure not in ("reliability", "generalization", "portability"):
        suffixes = ("_instructed",) if record.asked == "instructed" else ("",)
    return [
        (record.measure + (f"_{variant}" if variant else "") + suffix, variant)
        for variant in record.scores
        for suffix in suffixes
    ]


def summarise(records: Iterable[Record], editor: str, seed: int, resamples: int = 1000) -> list[Row]:
    """One row for each (task, regime, protocol, metric).

    The unit is the edit: its questions in a category are averaged first, then edits, then categories (only portability
    has several that count alike; other measures pool them). The interval resamples edits.
    """
    scores: dict[tuple[str, str, str, str], dict[str, dict[str, list[float]]]] = {}
    for record in records:
        category = record.category if record.measure == "portability" else ""
        for metric, variant in metric_names(record):
            edits = scores.setdefault((record.task, record.regime, record.protocol, metric), {})
            edits.setdefault(record.request, {}).setdefault(category, []).append(record.scores[variant])
    rows = []
    for (task, regime, protocol, metric), edits in scores.items():
        mean, low, high = interval(table(edits), resamples, seed)
        rows.append(Row(editor, task, regime, protocol, metric, mean, low, high, len(edits), seed))
    return rows


def table(edits: Mapping[str, Mapping[str, list[float]]]) -> np.ndarray:
    """Edits × categories: each edit's mean in each category, NaN where it has no question."""
    categories = sorted({category for found in edits.values() for category in found})
    return np.array(
        [[np.mean(found[c]) if c in found else np.nan for c in categories] for found in edits.values()], dtype=float
    )


def interval(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float, float]:
    """Mean over categories of the mean over edits, and its 95 % percentile bootstrap interval over edits."""
    generator = np.random.default_rng(seed)
    present, filled = ~np.isnan(values), np.nan_to_num(values)
    picks = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples)
    counts = picks @ present
    with np.errstate(invalid="ignore"):
        means = np.where(counts > 0, picks @ filled / np.maximum(counts, 1), np.nan)
    drawn = np.nanmean(means, axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float((filled.sum(0) / present.sum(0)).mean()), float(low), float(high)
