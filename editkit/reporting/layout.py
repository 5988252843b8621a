"""The parts of the comparison, in their order: headings of the local page, and what a W&B workspace shows there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from editkit.reporting import runs
from editkit.reporting.runs import Found
from editkit.reporting.table import MEASURES

HEADINGS = {
    "leaderboard": "Leaderboard",
    "sequences": "Sequences of edits",
    "training": "Training",
    "cost": "Cost and reliability",
    "edits": "Single edits",
}


@dataclass(frozen=True)
class Panel:
    """One drawing, of values that W&B has under ``keys``.

    ``bars``: one value an editor; ``curves``: over steps; ``points``: the second value over the first, a point a run;
    ``images`` and ``table``: as they were logged.
    """

    kind: Literal["bars", "curves", "points", "images", "table"]
    title: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


def layout(found: Sequence[Found]) -> list[Section]:
    """The comparison of ``found`` runs: a leaderboard a task and protocol, then each other part that they have."""
    scores = runs.scores(found)
    tasks = list(dict.fromkeys(score.task for score in scores))
    sections = []
    for task in tasks:
        own = [score for score in scores if score.task == task]
        mark = " †" if all(score.unseen for score in own) else ""
        for protocol in dict.fromkeys(score.protocol for score in own if score.protocol != "cost"):
            there = {score.metric for score in own if score.protocol == protocol}
            bars = tuple(Panel("bars", name, (f"{task}/{protocol}/{name}",)) for name in MEASURES if name in there)
            sections.append(Section(f"{HEADINGS['leaderboard']}: {task}{mark}, {protocol}", bars))
    cost = ("cost/seconds_per_edit", "teacher_forced/reliability")
    parts = {
        "sequences": [Panel("images", "sequence", ("figures/sequence",))] if any(map(along, found)) else [],
        "training": curves(found),
        "cost": [Panel("points", task, tuple(f"{task}/{key}" for key in cost)) for task in tasks],
        "edits": [Panel("table", "records", ("records",))],
    }
    return sections + [Section(HEADINGS[name], tuple(drawn)) for name, drawn in parts.items() if drawn]


def along(one: Found) -> bool:
    """Whether a run's sequences were scored along the way."""
    return len({row["regime"] for row in one.run.rows if row["regime"].startswith("sequential ")}) > 1


def curves(found: Sequence[Found]) -> list[Panel]:
    """A panel a measure, with its values while training and in validations."""
    names = dict.fromkeys(
        name for one in found for line in runs.lines(one.folder / "metrics.jsonl") for name in line if "/" in name
    )
    measures: dict[str, list[str]] = {}
    for name in names:
        measures.setdefault(name.rpartition("/")[2], []).append(name)
    return [Panel("curves", measure, tuple(keys)) for measure, keys in measures.items()]
