"""Directions of editing gradients: do an editor's edits for different tasks point different ways, and how far apart?

An edit of one linear map is ``Σ_t u_t ⊗ v_t`` over the request's tokens. ``directions`` makes one vector of length 1 of
each request at each site; everything else here reads such vectors and the task of each. Source of the question:
InstructEdit (arXiv 2402.16123), figure 4, which shows it as t-SNE maps; the numbers beside the maps are ours.

scikit-learn comes with ``pip install editkit[report]``; it is imported where something is fitted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from editkit.editors import Editor, Trainable
from editkit.editors.loss import edit_batch, nll_by_slot
from editkit.edits import LowRank, traced
from editkit.errors import UsageError, check_choice
from editkit.lm import LM, chunks
from editkit.requests import EditRequest

ALL = "all"
"""As a task: the mean over tasks, each of which counts alike."""


@dataclass(frozen=True)
class Row:
    """One number of a table: a mean over edits with its 95 % percentile bootstrap interval.

    Attributes:
        site: where the directions were taken.
        task: whose edits were averaged, or ``all``.
        other_task: the task they were held against; empty where that is all the others.
        metric: see ``separation`` and ``overlap``.
        chance: what directions that know nothing of tasks give.
        n: edits.
    """

    site: str
    task: str
    other_task: str
    metric: str
    mean: float
    ci_low: float
    ci_high: float
    chance: float
    n: int
    seed: int


@dataclass(frozen=True, eq=False)
class Principal:
    """Principal components, the largest first, and each one's share of the variance.

    With all components kept the coordinates have the distances of what they were made of.
    """

    coordinates: Float[np.ndarray, "edits components"]
    explained: Float[np.ndarray, " components"]


# -- directions ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def directions(
    lm: LM, editor: Editor, requests: Sequence[EditRequest], of: str = "edit", form: str = "sums", rows: int = 32
) -> dict[str, Float[np.ndarray, "edits d"]]:
    """For each site one vector of length 1 for each request, edited by itself (zeros where nothing is edited).

    Several sites put side by side (``numpy.hstack``) are directions too: all measures here divide by the length.

    Args:
        editor: any whose edits are ``LowRank``; one that learns is put into evaluation mode.
        requests: as the editor is to read them, with their instructions: ``run.told(editor, requests)``.
        of: ``edit``, the factors that the editor returns, or ``gradient``, those of the edit loss at the same sites.
        form: ``sums`` of each factor over tokens, see ``summed``; or whole ``matrices``, see ``spanned``, for which the
            factors of all tokens are held: edits × tokens × (d_in + d_out) numbers a site.
        rows: requests at once; changes nothing but speed and memory.

    Raises:
        UsageError: no request, or an edit that is not made of factors.
    """
    check_choice("of", of, ("edit", "gradient"))
    check_choice("form", form, ("sums", "matrices"))
    if not requests:
        raise UsageError("There is no request to take a direction of: give at least one.")
    if isinstance(editor, Trainable):
        editor.train(False)
    sites = low_rank(lm, editor, requests[:1]) if of == "gradient" else {}
    sums: dict[str, list[np.ndarray]] = {}
    held: dict[str, list[LowRank]] = {}
    for chunk in chunks(requests, rows):
        found = gradients(lm, list(sites), chunk) if of == "gradient" else low_rank(lm, editor, chunk)
        for site, factors in found.items():
            if form == "sums":
                sums.setdefault(site, []).append(summed(factors))
            else:
                held.setdefault(site, []).append(LowRank(factors.u.cpu(), factors.v.cpu()))
    if form == "sums":
        return {site: np.concatenate(parts) for site, parts in sums.items()}
    return {site: spanned(LowRank.join(parts)) for site, parts in held.items()}


def low_rank(lm: LM, editor: Editor, requests: Sequence[EditRequest]) -> dict[str, LowRank]:
    """The factors of each request's own edit; raises UsageError if the editor's edits are of another kind."""
    rules = editor.edit(lm, [[request] for request in requests]).rules
    found = {site: rule for site, rule in rules.items() if isinstance(rule, LowRank)}
    for site in rules.keys() - found.keys():
        raise UsageError(
            f"The edit at {site} is a {type(rules[site]).__name__}, but directions are taken of LowRank ones: give an "
            "editor that makes these, such as MEND, InstructEdit or KE."
        )
    return found


def gradients(lm: LM, sites: Sequence[str], requests: Sequence[EditRequest]) -> dict[str, LowRank]:
    """The factors of the edit loss's gradient at ``sites``: each one's input, and the gradient at its output."""
    with torch.enable_grad(), traced(lm.sites(sites)) as trace:
        batch, owner = edit_batch(lm, [[request] for request in requests], lm.block_of(sites))
        factors = trace.factors(nll_by_slot(lm.logits(batch), batch, owner, len(requests)).sum())
    return {site: LowRank(u, delta) for site, (u, delta) in factors.items()}


def summed(factors: LowRank) -> Float[np.ndarray, "edits d"]:
    """``[Σ_t u_t ; Σ_t v_t]`` over the tokens where both are non-zero, each half at the same length, the whole at 1.

    The halves are made equally long before they are joined: an edit stays the same when u grows as v shrinks, and
    lr_W, which MEND multiplies v by, would leave next to nothing of it beside u.
    """
    real = ((factors.u != 0).any(-1) & (factors.v != 0).any(-1))[..., None]
    halves = [unit((factor.double() * real).sum(1)) for factor in (factors.u, factors.v)]
    return unit(torch.cat(halves, -1)).float().cpu().numpy()


def spanned(factors: LowRank) -> Float[np.ndarray, "edits edits"]:
    """Each edit's whole matrix ``uᵀ v`` at length 1, as coordinates in an orthonormal basis of what they all span.

    Inner products, and so distances, are those of the flattened matrices.
    """
    values, vectors = np.linalg.eigh(cosines(factors))
    return vectors * np.sqrt(values.clip(0))


def cosines(factors: LowRank, inputs: int = 8) -> Float[np.ndarray, "edits edits"]:
    """Cosines between the matrices ``uᵀ v`` of all pairs of edits, exactly.

    ``inputs`` rows of all matrices are built at once: edits × inputs × d_out numbers. That costs edits² × d_in × d_out
    products; from the factors alone, ``Σ_tt' (u_t · u'_t') (v_t · v'_t')``, it would be edits² × tokens² × (d_in +
    d_out), which is more unless texts are short.
    """
    u, v = (unit(factor.flatten(1)).view_as(factor) for factor in (factors.u, factors.v))
    gram = torch.zeros(len(u), len(u), dtype=torch.float64)
    for part in u.split(inputs, -1):
        rows = (part.mT @ v).flatten(1)
        gram += rows @ rows.mT
    length = gram.diagonal().clamp(min=torch.finfo(gram.dtype).tiny).sqrt()
    return (gram / length / length[:, None]).numpy()


def unit(x: Float[Tensor, "edits d"]) -> Float[Tensor, "edits d"]:
    """``x`` at L2 norm 1, in fp32 at least; zeros stay."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = x / x.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)  # squares of small numbers vanish
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1)


# -- maps ------------------------------------------------------------------------------------------------------------


def principal(points: Float[np.ndarray, "edits d"], components: int | None = None) -> Principal:
    """Principal components of ``points``: at most ``components`` of them, and never more than there are edits.

    Their eigenvectors come of the products between centred edits, since there are far fewer edits than dimensions. Each
    component's sign is that which makes its largest coordinate positive.
    """
    centred = points.astype(np.float64) - points.mean(0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(len(values))])
    kept = slice(min(len(values), points.shape[1]) if components is None else components)
    explained = values / max(values.sum(), np.finfo(np.float64).tiny)
    return Principal((vectors * np.sqrt(values))[:, kept], explained[kept])


def tsne(
    points: Float[np.ndarray, "edits d"], seed: int, perplexities: Sequence[int | float] = (10, 30, 50)
) -> dict[float, Float[np.ndarray, "edits 2"]]:
    """A t-SNE map for each perplexity, capped at a third of the other edits; the same for the same seed.

    Distances are Euclidean between vectors of one length, so their squares are twice the cosine distances. What a map
    says of distances between groups hangs on the perplexity: look at several, and believe ``separation``.

    Raises:
        UsageError: fewer than four edits.
    """
    manifold = learn("manifold")
    edits = len(points)
    if edits < 4:
        raise UsageError(f"A t-SNE map of {edits} edits says nothing: give at least four.")
    exact = principal(points).coordinates  # the same distances, in at most as many dimensions as edits
    capped = dict.fromkeys(min(float(perplexity), (edits - 1) / 3) for perplexity in perplexities)
    return {p: manifold.TSNE(perplexity=p, init="pca", random_state=seed).fit_transform(exact) for p in capped}


def placed(points: Float[np.ndarray, "edits 2"], tasks: Sequence[str], panel: str) -> list[dict[str, str | float]]:
    """A map as rows of a table, ``panel, task, x, y``, which ``figures.maps`` draws."""
    return [
        {"panel": panel, "task": task, "x": float(x), "y": float(y)} for (x, y), task in zip(points, tasks, strict=True)
    ]


# -- numbers ---------------------------------------------------------------------------------------------------------


def separation(
    directions: Mapping[str, Float[np.ndarray, "edits d"]],
    tasks: Sequence[str],
    seed: int,
    folds: int = 5,
    neighbours: int = 10,
    resamples: int = 1000,
) -> list[Row]:
    """How well edits of different tasks are told apart at each site: each task's, and ``all``, their mean.

    - ``silhouette``: (b - a) / max(a, b) of each edit, with a its mean cosine distance to its own task's edits and b
      that to the nearest other task's; -1 to 1.
    - ``probe``: share of edits whose task a logistic regression names, fitted on other folds with tasks weighted alike.
    - ``neighbours_elsewhere``: share of an edit's nearest neighbours by cosine that belong to another task.

    The interval resamples edits within tasks; each edit's own value, once taken, stays.

    Args:
        directions: by site, as ``directions`` gives them.
        tasks: of each edit.
        seed: of the folds and the resamples.
        folds: of the cross-validation, stratified; at most the edits of the smallest task.
        neighbours: at most all other edits.
        resamples: of the bootstrap.

    Raises:
        UsageError: fewer than two tasks, or one with fewer than two edits.
    """
    metrics = learn("metrics")
    counts, labels = counted(tasks), np.array(tasks)
    chances = {
        "silhouette": [0.0] * len(counts),
        "probe": [1 / len(counts)] * len(counts),
        "neighbours_elsewhere": [(len(labels) - n) / (len(labels) - 1) for n in counts.values()],
    }
    rows = []
    for site, points in directions.items():
        near = labels[nearest(points, neighbours)]
        values = {
            "silhouette": metrics.silhouette_samples(points, labels, metric="cosine"),
            "probe": probed(points, labels, min(folds, *counts.values()), seed),
            "neighbours_elsewhere": (near != labels[:, None]).mean(1),
        }
        for metric, found in values.items():
            groups = [found[labels == task] for task in counts]
            for task, group, chance in zip(counts, groups, chances[metric], strict=True):
                rows.append(row(site, task, "", metric, [group], chance, seed, resamples))
            rows.append(row(site, ALL, "", metric, groups, float(np.mean(chances[metric])), seed, resamples))
    return rows


def overlap(
    directions: Mapping[str, Float[np.ndarray, "edits d"]],
    tasks: Sequence[str],
    seed: int,
    neighbours: int = 10,
    resamples: int = 1000,
) -> list[Row]:
    """A table task × task for each site: how near the edits of ``task`` are to those of ``other``.

    - ``cosine``: mean cosine between an edit and the other task's (its own task's without itself).
    - ``neighbours``: share of an edit's nearest neighbours that belong to the other task; a task's line adds up to 1.

    Arguments, intervals and errors as in ``separation``.
    """
    counts, labels = counted(tasks), np.array(tasks)
    rows = []
    for site, points in directions.items():
        products, near = similarities(points), labels[nearest(points, neighbours)]
        np.fill_diagonal(products, 0)
        for task in counts:
            own = labels == task
            for other in counts:
                there = counts[other] - (task == other)
                cosine = products[own][:, labels == other].sum(1) / there
                rows.append(row(site, task, other, "cosine", [cosine], 0.0, seed, resamples))
                share = (near[own] == other).mean(1)
                chance = there / (len(labels) - 1)
                rows.append(row(site, task, other, "neighbours", [share], chance, seed, resamples))
    return rows


def probed(
    points: Float[np.ndarray, "edits d"], labels: np.ndarray, folds: int, seed: int
) -> Float[np.ndarray, " edits"]:
    """1 for each edit whose task is named rightly by a logistic regression that has not seen it, else 0.

    It reads all principal components, scaled together to a total variance of 1: turning or scaling the directions
    changes nothing, and labels have no part in it. At that scale accuracies are the same within 1 % for strengths of
    regularisation from 1/100 to 1.
    """
    selection, linear = learn("model_selection"), learn("linear_model")
    exact = principal(points).coordinates
    scaled = exact / max(np.sqrt((exact**2).sum(1).mean()), np.finfo(np.float64).tiny)
    splits = selection.StratifiedKFold(folds, shuffle=True, random_state=seed)
    model = linear.LogisticRegression(class_weight="balanced", max_iter=1000)
    return (selection.cross_val_predict(model, scaled, labels, cv=splits) == labels).astype(np.float64)


def similarities(points: Float[np.ndarray, "edits d"]) -> Float[np.ndarray, "edits edits"]:
    """Cosines between all pairs."""
    wide = points.astype(np.float64)
    wide = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return wide @ wide.T


def nearest(points: Float[np.ndarray, "edits d"], neighbours: int) -> Int[np.ndarray, "edits neighbours"]:
    """Each edit's nearest others by cosine, the nearest first."""
    products = similarities(points)
    np.fill_diagonal(products, -np.inf)
    return np.argsort(-products, axis=1, kind="stable")[:, : min(neighbours, len(points) - 1)]


def row(
    site: str,
    task: str,
    other_task: str,
    metric: str,
    groups: Sequence[np.ndarray],
    chance: float,
    seed: int,
    resamples: int,
) -> Row:
    """The mean over ``groups`` of each one's mean over edits, with its interval."""
    generator = np.random.default_rng(seed)
    picks = [generator.integers(len(group), size=(resamples, len(group))) for group in groups]
    drawn = np.mean([group[pick].mean(1) for group, pick in zip(groups, picks, strict=True)], axis=0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    mean = float(np.mean([group.mean() for group in groups]))
    return Row(site, task, other_task, metric, mean, float(low), float(high), chance, sum(map(len, groups)), seed)


def counted(tasks: Sequence[str]) -> dict[str, int]:
    """Edits by task, in the order of their first; raises UsageError if they cannot be held against each other."""
    counts = dict(Counter(tasks))
    if len(counts) < 2 or min(counts.values()) < 2:
        raise UsageError(f"Directions by task are {counts}, but at least two tasks with two edits each are compared.")
    return counts


def learn(part: str) -> ModuleType:
    """A module of scikit-learn."""
    try:
        return import_module(f"sklearn.{part}")
    except ImportError as error:
        raise UsageError("This analysis needs scikit-learn: pip install 'editkit[report]'") from error
