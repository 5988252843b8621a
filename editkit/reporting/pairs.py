"""Differences between editors on the same edits, with intervals and p-values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

CHUNK = 500  # resamples drawn at once: 500 × 10,000 edits are 40 MB

# One editor's scores in one measure: of each edit, by category, the values of its questions in all runs.
Scores = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class Difference:
    """``first`` minus ``second`` on the edits that both were scored on.

    Attributes:
        low, high: of the 95 % percentile interval over edits.
        p: of the two-sided test against no difference, which takes the resampled means as normal around ``mean``:
            counting those beyond zero could show no p under 1 / resamples, too coarse where many are corrected.
        p_holm: the same after Holm's correction for all differences given together.
    """

    first: str
    second: str
    measure: str
    mean: float
    low: float
    high: float
    p: float
    p_holm: float
    edits: int


def differences(
    measures: Mapping[str, Mapping[str, Scores]], resamples: int = 5_000, seed: int = 0
) -> list[Difference]:
    """All pairs of editors in each measure (name → editor → scores), by the paired bootstrap over edits.

    An edit's questions in a category are averaged first, then edits, then categories, as in ``results.csv``; a
    resample takes the same edits for both editors. Holm's correction counts every difference that is returned.
    """
    pairs = [(name, *pair) for name, editors in measures.items() for pair in combinations(editors, 2)]
    tables = [table(measures[name][first], measures[name][second]) for name, first, second in pairs]
    kept = [index for index, found in enumerate(tables) if found.size]
    drawn = bootstrap([tables[index] for index in kept], resamples, seed)
    means = [float(np.nanmean(tables[index], axis=0).mean()) for index in kept]
    p = [chance(m, float(d.std()), len(tables[index])) for m, d, index in zip(means, drawn, kept, strict=True)]
    found = []
    for index, values, mean, raw, corrected in zip(kept, drawn, means, p, holm(p), strict=True):
        name, first, second = pairs[index]
        low, high = np.percentile(values, [2.5, 97.5])
        edits = len(tables[index])
        found.append(Difference(first, second, name, mean, float(low), float(high), raw, corrected, edits))
    return found


def table(first: Scores, second: Scores) -> np.ndarray:
    """Edits × categories: the difference of the two means, NaN where one of them has no question."""
    common = [edit for edit in first if edit in second and first[edit].keys() & second[edit].keys()]
    categories = sorted({category for edit in common for category in first[edit].keys() & second[edit].keys()})
    values = np.full((len(common), len(categories)), np.nan)
    for row, edit in enumerate(common):
        for column, category in enumerate(categories):
            if category in first[edit] and category in second[edit]:
                values[row, column] = np.mean(first[edit][category]) - np.mean(second[edit][category])
    return values


def bootstrap(tables: Sequence[np.ndarray], resamples: int, seed: int) -> list[np.ndarray]:
    """Of each table, ``resamples`` means over categories of means over edits drawn with replacement.

    Tables of as many edits get the same draws: what is drawn depends on ``seed`` and the number of edits alone.
    """
    drawn = [np.empty(resamples) for _ in tables]
    for edits in {len(values) for values in tables}:
        alike = [index for index, values in enumerate(tables) if len(values) == edits]
        wide = np.concatenate([tables[index] for index in alike], axis=1)
        ends = np.cumsum([tables[index].shape[1] for index in alike])
        filled, present = np.nan_to_num(wide), (~np.isnan(wide)).astype(float)
        generator = np.random.default_rng(seed)
        for start in range(0, resamples, CHUNK):
            size = min(CHUNK, resamples - start)
            picks = generator.multinomial(edits, np.full(edits, 1 / edits), size=size).astype(float)
            counts = picks @ present
            means = np.where(counts > 0, picks @ filled / np.maximum(counts, 1), np.nan)
            for index, columns in zip(alike, np.split(means, ends[:-1], axis=1), strict=True):
                drawn[index][start : start + size] = mean_of_present(columns)
    return drawn


def mean_of_present(columns: np.ndarray) -> np.ndarray:
    """Each row's mean without NaN; a row of NaN alone, of which no question was drawn, says no difference."""
    there = ~np.isnan(columns)
    return np.nan_to_num(columns).sum(1) / np.maximum(there.sum(1), 1)


def chance(mean: float, deviation: float, edits: int) -> float:
    """How often a difference as large comes of none: two-sided, no less than all edits agreeing in sign by chance."""
    if mean == 0:
        return 1.0
    tail = math.erfc(abs(mean) / deviation / math.sqrt(2)) if deviation else 0.0
    return max(tail, 2.0 ** (1 - edits))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: as many tests as there are values.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    corrected, least = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = least
    return corrected
