"""The results of logged runs, joined over seeds: what every table is made from."""

import csv
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from editkit.errors import UsageError

# Where runs differ only here they are compared in one table: seeds are joined, editors are its rows.
WITHIN_A_TABLE = ("seed", "run", "tracker", "editor", "baselines")
NUMBERS = ("mean", "ci_low", "ci_high")
COLUMNS = ("editor", "task", "regime", "protocol", "metric", *NUMBERS, "n", "seed")


@dataclass(frozen=True)
class Score:
    """One editor's score in one measure of one task.

    Attributes:
        condition: in which settings this table's runs differ from others, e.g. ``trainer.steps=200``, or empty.
        editor: its name, with the settings that tell it from others of that name.
        unseen: whether the task was not trained on.
        half: half the 95 % interval of one run; over several, their standard deviation.
        n: the number of edits behind it, of one run.
        seeds: of each run that is averaged.
    """

    condition: str
    regime: str
    protocol: str
    task: str
    unseen: bool
    editor: str
    metric: str
    mean: float
    half: float
    n: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """One run's rows of ``results.csv`` and its configuration."""

    rows: tuple[Mapping[str, str], ...]
    config: Mapping[str, Any]

    def condition(self) -> dict[str, Any]:
        return dict(flat({k: v for k, v in self.config.items() if k not in WITHIN_A_TABLE}))

    def editor_config(self, editor: str) -> dict[str, Any]:
        baselines = self.config.get("baselines") or {}
        return dict(flat(baselines.get(editor) or self.config.get("editor") or {}))

    def trained_on(self) -> Sequence[str] | None:
        tasks = self.config.get("tasks")
        return tasks.get("train") if isinstance(tasks, Mapping) else None


def read(folders: Iterable[Path]) -> list[Score]:
    """The scores of all runs found under ``folders``, those of several seeds averaged.

    Raises:
        UsageError: a folder without results, or a file of another form.
    """
    runs = []
    for folder in folders:
        found = sorted(folder.rglob("results.csv"))
        if not found:
            raise UsageError(
                f"No results.csv lies under '{folder}': name the folder of a run that has scored an editor"
            )
        runs += [read_run(path) for path in found]
    joined: dict[tuple[str, str, str, str, bool, str, str], list[Mapping[str, str]]] = {}
    for run, (condition, names) in zip(runs, labels(runs), strict=True):
        trained_on = run.trained_on()
        for row in run.rows:
            unseen = trained_on is not None and row["task"] not in trained_on
            label = names[row["editor"]]
            key = (condition, row["regime"], row["protocol"], row["task"], unseen, label, row["metric"])
            joined.setdefault(key, []).append(row)
    return [
        Score(condition, regime, protocol, task, unseen, label, metric, *average(rows))
        for (condition, regime, protocol, task, unseen, label, metric), rows in joined.items()
    ]


def read_run(path: Path) -> Run:
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (table.fieldnames or ())]
        if missing:
            raise UsageError(f"'{path}' has no column {', '.join(missing)}: it must have {','.join(COLUMNS)}")
        rows = tuple(table)
    config = path.with_name("config.yaml")
    return Run(rows, yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else {})


def average(rows: Sequence[Mapping[str, str]]) -> tuple[float, float, int, tuple[int, ...]]:
    """Mean, half-width, edits and seeds of one score in several runs."""
    means = [float(row["mean"]) for row in rows]
    if len(rows) == 1:
        half = (float(rows[0]["ci_high"]) - float(rows[0]["ci_low"])) / 2
    else:
        half = statistics.stdev(means)
    seeds = tuple(sorted(int(row["seed"]) for row in rows))
    return statistics.fmean(means), half, max(int(row["n"]) for row in rows), seeds


def labels(runs: Sequence[Run]) -> list[tuple[str, dict[str, str]]]:
    """Of each run, its condition and its editors' labels, what tells it from the others."""
    conditions = differences([run.condition() for run in runs])
    names: list[dict[str, str]] = [{} for _ in runs]
    for editor in dict.fromkeys(row["editor"] for run in runs for row in run.rows):
        having = [index for index, run in enumerate(runs) if any(row["editor"] == editor for row in run.rows)]
        settings = differences([runs[index].editor_config(editor) for index in having])
        for index, text in zip(having, settings, strict=True):
            names[index][editor] = f"{editor} {text}".strip()
    return list(zip(conditions, names, strict=True))


def differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells each of these flat configurations from the others, as ``key=value`` words."""
    keys = [key for key in dict.fromkeys(k for c in configs for k in c) if len({repr(c.get(key)) for c in configs}) > 1]
    return [" ".join(f"{key}={config.get(key)}" for key in keys) for config in configs]


def flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values, seeds left out: they are what is averaged over."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif key != "seed":
            yield f"{prefix}{key}", value
