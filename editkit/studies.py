"""Studies: several runs of one experiment, each made once, and the tables and figures drawn of what they logged."""

import csv
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from editkit import configs, status
from editkit.analysis import gradients
from editkit.editors import Editor
from editkit.errors import UsageError
from editkit.evaluation.records import Record
from editkit.evaluation.summary import metric_names
from editkit.lm import LM
from editkit.reporting import pairs
from editkit.requests import EditRequest
from editkit.run import told
from editkit.signals import Terminated, handling, on_sigterm
from editkit.tracking import rewrite, unzipped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
"""A line of a study's table: words, and a score's ``mean``, ``ci_low``, ``ci_high``, ``sd`` and ``seeds``."""
TRAINED = ("recent", "counterfact", "convsent")
"""The tasks that are trained on, in the order in which they are added."""
KEYS = ("editor", "task", "regime", "protocol", "metric")
"""What a score is of, in ``results.csv``."""
SCALES = {"fluency": (1, 1), "silhouette": (1, 2)}
"""How a score is shown, its factor and digits, where it is no share in per cent."""
PRIMARIES = {"run": "config", "instructions": "instructions"}
"""The file that a command's settings are composed into."""
NAMES = {"reliability_bare": "asked bare", "locality_instructed": "locality, instructed"}


@dataclass(frozen=True)
class Study:
    """One experiment's runs under a folder of its own.

    Attributes:
        name: of ``conf/experiment/NAME.yaml``, and of the folder.
        root: what holds the folders of all studies of one scale.
        settings: of every run, as on the command line of ``editkit run``.
        seeds: what is repeated is repeated with these.
        jobs: runs at once; the machine's cores are divided among them.
    """

    name: str
    root: Path
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    jobs: int = 1

    @classmethod
    def of(cls, name: str, words: Sequence[str]) -> "Study":
        """From a program's command line: settings of ``editkit run``, and ``seeds=``, ``jobs=`` and ``folder=``.

        Raises:
            UsageError: a word without ``=``, or seeds or jobs that are no whole numbers.
        """
        given = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals:
                raise UsageError(f"Cannot read '{word}': write key=value, such as scale=tiny, seeds=0,1,2 or jobs=2.")
            given[key] = value
        try:
            seeds = tuple(int(seed) for seed in given.pop("seeds", "0").split(","))
            jobs = int(given.pop("jobs", "1"))
        except ValueError:
            raise UsageError("seeds= takes whole numbers such as 0,1,2, and jobs= one, such as 2.") from None
        scale = given.setdefault("scale", "tiny")
        root = Path(given.pop("folder", f"outputs/studies/{scale}"))
        return cls(name, root, tuple(f"{key}={value}" for key, value in given.items()), seeds, max(1, jobs))

    @property
    def folder(self) -> Path:
        return self.root / self.name

    def other(self, name: str) -> "Study":
        """The study ``name`` of the same root, settings and seeds."""
        return replace(self, name=name)

    def once(self) -> "Study":
        """The same with its first seed alone."""
        return replace(self, seeds=self.seeds[:1])

    # -- runs ----------------------------------------------------------------------------------------------------

    def part(self, label: str, settings: Sequence[str] = ()) -> Path:
        """The folder of one run: other settings, another folder."""
        digest = hashlib.sha256("\n".join([*self.settings, *settings]).encode()).hexdigest()[:6]
        return self.folder / "runs" / f"{label}-{digest}"

    def editors(self, name: str, label: str, seed: int, *settings: str) -> str:
        """The setting that takes trained editors from another study's part, which is run if it has not been."""
        part = f"{label}-seed{seed}"
        return f"run.editors_from={self.other(name).run({part: [*settings, f'seed={seed}']})[part]}"

    def run(self, parts: Mapping[str, Sequence[str]], command: Sequence[str] = ("run",)) -> dict[str, Path]:
        """The folders of ``parts`` (label → settings): those that have not finished before are run or gone on with.

        What a run prints goes to a file beside its folder, ``LABEL….log``. ``command`` is that of editkit.

        Raises:
            UsageError: a run failed; the others of this call are ended, and all can be continued. Or one was begun
                before a file of ``conf/`` that it depends on was changed.
        """
        folders = {label: self.part(label, settings) for label, settings in parts.items()}
        self._check({folders[label]: self._words(settings, command) for label, settings in parts.items()}, command)
        waiting = [label for label, folder in folders.items() if state(folder) != "finished"]
        running: dict[str, subprocess.Popen[bytes]] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("{task.fields[now]}"), console=Console(stderr=True)) as bar:
            shown = bar.add_task(self.name, total=len(folders), completed=len(folders) - len(waiting), now="")
            try:
                while waiting or running:
                    while waiting and len(running) < self.jobs:
                        label = waiting.pop(0)
                        running[label] = self._started(folders[label], parts[label], command)
                    bar.update(shown, now=", ".join(running))
                    time.sleep(0.2)
                    for label in [label for label, process in running.items() if process.poll() is not None]:
                        if running.pop(label).returncode:
                            raise UsageError(self._failure(label, folders[label]))
                        bar.advance(shown)
            finally:
                for process in running.values():
                    process.terminate()
                for process in running.values():
                    process.wait()
            bar.update(shown, now="")
        return folders

    def over_seeds(self, parts: Mapping[str, Sequence[str]]) -> dict[str, list[Path]]:
        """The folders of ``parts``, each run with every seed."""
        words = {f"{label}-seed{s}": [*settings, f"seed={s}"] for label, settings in parts.items() for s in self.seeds}
        folders = self.run(words)
        return {label: [folders[f"{label}-seed{seed}"] for seed in self.seeds] for label in parts}

    def _words(self, settings: Sequence[str], command: Sequence[str]) -> list[str]:
        """A run's settings, those of its study before its own."""
        return [*self.settings, *settings, *([f"experiment={self.name}"] if command == ("run",) else [])]

    def _check(self, runs: Mapping[Path, Sequence[str]], command: Sequence[str]) -> None:
        """Refuses runs (folder → settings) that began with other settings: those of a file that has changed since."""
        with configs.sources():
            for folder, words in runs.items():
                if begun(folder) and not configs.begun_as(folder, words, PRIMARIES[command[0]]):
                    raise UsageError(
                        f"'{folder}' was begun before a file of conf/ was changed that it depends on: "
                        "remove it, or set folder= to a new one"
                    )

    def _started(self, folder: Path, settings: Sequence[str], command: Sequence[str]) -> "subprocess.Popen[bytes]":
        words = [*self._words(settings, command), f"run.dir={folder}"]
        if begun(folder):
            words = [f"run.resume={folder}"]
        folder.parent.mkdir(parents=True, exist_ok=True)
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        with self._log(folder).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "editkit", *command, *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )

    def _log(self, folder: Path) -> Path:
        return folder.with_name(f"{folder.name}.log")

    def _failure(self, label: str, folder: Path) -> str:
        log = self._log(folder)
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = lines[-1].removeprefix("editkit: ") if lines else "it said nothing"
        return f"{self.name}, {label} failed: {said} (all it said is in {log})"

    # -- tables and figures --------------------------------------------------------------------------------------

    def write(self, rows: Sequence[Row], by: Sequence[str], caption: str, more: str = "") -> None:
        """``NAME.csv`` with every row, ``NAME.md`` and ``NAME.tex`` with a line for each value of the keys ``by``.

        ``more`` is put behind the name, for a study of several tables; without rows, there is none.
        """
        if not rows:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path, lines = self.file(more), table(rows, by)
        with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        rewrite(path.with_suffix(".md"), markdown(lines, len(by)) + f"\n{caption}\n")
        rewrite(path.with_suffix(".tex"), latex(lines, len(by), caption))

    def draw(self, figure: "Figure", caption: str, more: str = "") -> None:
        """The figure as PNG and SVG, and its caption, in the study's folder."""
        from editkit.analysis import figures

        figures.save(figure, self.file(more), caption)

    def file(self, more: str = "") -> Path:
        """Where a table or figure goes, its ending left out."""
        return self.folder / (f"{self.name}_{more}" if more else self.name)

    def caption(self, text: str) -> str:
        """``text`` with what was run and how often."""
        seeds = f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else f"seed {self.seeds[0]}"
        settings = " ".join(self.settings)
        return f"{text} `python experiments/{self.name}.py {settings} seeds={','.join(map(str, self.seeds))}`; {seeds}."


def main(program: Callable[[Study], None], name: str, words: Sequence[str] | None = None) -> None:
    """Runs a study's ``program`` on ``words``, by default the command line's, and shows what it has written.

    Exits with 2 where ``words`` are wrong or a run failed, told in one sentence, with 130 after Ctrl-C and with 143
    after SIGTERM, when its runs have ended too.
    """
    try:
        with handling({signal.SIGTERM: on_sigterm}):
            study = Study.of(name, sys.argv[1:] if words is None else words)
            if not all(map(importlib.util.find_spec, ("matplotlib", "sklearn"))):  # needed only once its runs are done
                raise UsageError("A study's figures need matplotlib and scikit-learn: pip install 'editkit[report]'")
            program(study)
    except UsageError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as why:
        print(f"{name}: interrupted; the same command goes on", file=sys.stderr)
        raise SystemExit(143 if isinstance(why, Terminated) else 130) from None
    for path in sorted(study.folder.glob(f"{name}*.*")):
        print(path)


def begun(folder: Path) -> bool:
    """Whether a run's folder holds something to go on with."""
    return bool(state(folder)) and (folder / "config.yaml").is_file()


def state(folder: Path) -> str:
    """What a run's folder says of it: running, killed, finished, failed or interrupted; empty where there is none."""
    return status.of(folder).get("state", "")


def results(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's ``results.csv``."""
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def scores(
    conditions: Mapping[str, Sequence[Path]],
    metrics: Sequence[str],
    protocols: Sequence[str] = ("teacher_forced",),
    condition: str = "condition",
) -> list[dict[str, Any]]:
    """Rows of a study's table: of each condition (name → one run's folder a seed), its scores averaged over seeds.

    ``mean``, ``ci_low`` and ``ci_high`` are averages of those columns of the runs' ``results.csv`` (so the interval is
    of one run, over edits), ``sd`` the standard deviation of the seeds' means (empty for one seed). ``condition`` is
    what its column is called.
    """
    found: list[dict[str, Any]] = []
    for name, folders in conditions.items():
        runs = [results(folder) for folder in folders]
        chosen = [row for metric in metrics for row in runs[0] if row["metric"] == metric]
        for first in (row for row in chosen if row["protocol"] in protocols):
            words = {key: first[key] for key in KEYS}
            same = [row for run in runs for row in run if all(row[key] == words[key] for key in KEYS)]
            numbers = {number: fmean(float(row[number]) for row in same) for number in ("mean", "ci_low", "ci_high")}
            sd = stdev(float(row["mean"]) for row in same) if len(same) > 1 else ""
            seeds = " ".join(row["seed"] for row in same)
            found.append({condition: name, **words, **numbers, "sd": sd, "n": first["n"], "seeds": seeds})
    return found


def paired(folders: Sequence[Path], first: str, second: str, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """``first`` minus ``second`` on the same edits of the same runs, task by task (teacher forced).

    An edit's scores are averaged over the runs (its seeds) before edits are resampled; p-values are corrected (Holm)
    for all measures of a task.
    """
    found: dict[str, dict[str, dict[str, dict[str, dict[str, list[float]]]]]] = {}
    for line in (line for folder in folders for line in unzipped(folder / "records.jsonl.gz")):
        fields = json.loads(line)
        editor = fields.pop("editor")
        record = Record(**fields)
        if editor not in (first, second) or record.protocol != "teacher_forced":
            continue
        category = record.category if record.measure == "portability" else ""
        for metric, variant in metric_names(record):
            if metric in metrics:
                edits = found.setdefault(record.task, {}).setdefault(metric, {}).setdefault(editor, {})
                edits.setdefault(record.request, {}).setdefault(category, []).append(record.scores[variant])
    return [
        {
            "task": task,
            "first": first,
            "second": second,
            "metric": one.measure,
            "mean": one.mean,
            "ci_low": one.low,
            "ci_high": one.high,
            "p": one.p,
            "p_holm": one.p_holm,
            "n": one.edits,
        }
        for task, measures in found.items()
        for one in pairs.differences(
            {m: {e: measures[m][e] for e in (first, second)} for m in metrics if m in measures}
        )
    ]


@dataclass(frozen=True)
class Directed:
    """Directions of one panel's edits, by site, and the task of each edit."""

    panel: str
    tasks: tuple[str, ...]
    sites: Mapping[str, Float[np.ndarray, "edits d"]]

    def __add__(self, other: "Directed") -> "Directed":
        sites = {site: np.concatenate([points, other.sites[site]]) for site, points in self.sites.items()}
        return Directed(self.panel, self.tasks + other.tasks, sites)


def directed(panel: str, lm: LM, editor: Editor, requests: Sequence[EditRequest]) -> Directed:
    """The directions of the edits that ``editor`` makes of ``requests``, site by site."""
    found = gradients.directions(lm, editor, told(editor, requests))
    return Directed(panel, tuple(request.task for request in requests), found)


def mapped(study: Study, found: Sequence[Directed], caption: str, more: str = "") -> None:
    """Maps and numbers of directions: how well tasks are told apart with all sites side by side, and at each.

    The figure shows t-SNE at a perplexity of 30, one named ``…_perplexities`` a sweep, ``…_overlap`` which tasks lie
    among each other. The table has silhouette, probe and the share of neighbours of other tasks, and the variance that
    the first principal components explain.
    """
    from editkit.analysis import figures

    seed, rows, overlap, notes = study.seeds[0], [], [], {}
    maps: dict[float, list[dict[str, Any]]] = {}
    for one in found:
        whole = {EVERY: np.hstack(list(one.sites.values()))}
        for row in gradients.separation(whole | dict(one.sites), one.tasks, seed):
            rows.append({"editor": one.panel, **asdict(row)})
        explained = gradients.principal(whole[EVERY]).explained
        for count in (1, 2, 10):
            share = float(explained[:count].sum())
            words = {"editor": one.panel, "site": EVERY, "task": gradients.ALL, "other_task": ""}
            numbers = {"mean": share, "ci_low": "", "ci_high": "", "chance": "", "n": len(one.tasks)}
            rows.append({**words, "metric": f"variance_in_{count}", **numbers, "seed": seed})
        overlap += [{"panel": one.panel, **asdict(row)} for row in gradients.overlap(whole, one.tasks, seed)]
        together = {row["metric"]: row["mean"] for row in rows if row["editor"] == one.panel and whole_of(row)}
        notes[one.panel] = f"silhouette {together['silhouette']:.2f}, probe {100 * together['probe']:.0f} %"
        for perplexity, points in gradients.tsne(whole[EVERY], seed).items():
            maps.setdefault(perplexity, []).extend(gradients.placed(points, one.tasks, one.panel))
    rows.sort(key=lambda row: row["task"] != gradients.ALL)
    study.write([row for row in rows if row["site"] == EVERY], ("editor", "task"), caption, more)
    study.write(
        [row for row in rows if row["task"] == gradients.ALL], ("editor", "site"), caption, f"{more}_sites".strip("_")
    )
    main_one = min(maps, key=lambda perplexity: abs(perplexity - 30))
    study.draw(figures.maps(maps[main_one], notes), f"{caption} t-SNE, perplexity {main_one:g}.", more)
    sweep = [
        {**row, "panel": f"{row['panel']}, {perplexity:g}"} for perplexity, points in maps.items() for row in points
    ]
    across = len({row["panel"] for row in maps[main_one]})
    study.draw(figures.maps(sweep, across=across), f"{caption} t-SNE by perplexity.", f"{more}_perplexities".strip("_"))
    nearest = f"{caption} Share of an edit's ten nearest neighbours (columns) by its task (rows)."
    study.draw(figures.matrix(overlap, "neighbours", width=figures.PAGE), nearest, f"{more}_overlap".strip("_"))


EVERY = "all sites"


def whole_of(row: Row) -> bool:
    return row["site"] == EVERY and row["task"] == gradients.ALL


def table(rows: Sequence[Row], by: Sequence[str]) -> list[list[str]]:
    """Head and lines: a line for each value of the keys ``by``, a column a metric."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    cells = {(*(str(row[name]) for name in by), row["metric"]): cell(row) for row in rows}
    order = [list(dict.fromkeys(str(row[name]) for row in rows)) for name in by]
    keys = sorted({key[:-1] for key in cells}, key=lambda key: [o.index(k) for o, k in zip(order, key, strict=True)])
    head = [*(name.replace("_", " ") for name in by), *(NAMES.get(m, m.replace("_", " ")) for m in metrics)]
    return [head, *([*key, *(cells.get((*key, metric), "–") for metric in metrics)] for key in keys)]


def cell(row: Row) -> str:
    """A mean with half its interval: a share in per cent; then its standard deviation over seeds, or its p-value."""
    scale, digits = SCALES.get(row["metric"], (100, 1))
    said = f"{scale * float(row['mean']):.{digits}f}"
    if row["ci_low"] != "":
        said += f" ±{scale * (float(row['ci_high']) - float(row['ci_low'])) / 2:.{digits}f}"
    if row.get("sd", "") != "":
        said += f" ({scale * float(row['sd']):.{digits}f})"
    return said + (f" (p {p_value(row['p_holm'])})" if "p_holm" in row else "")


def p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def markdown(lines: Sequence[Sequence[str]], words: int) -> str:
    """``lines`` as a Markdown table, its first ``words`` columns of words and the rest of numbers."""
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    marks = ["---"] * words + ["---:"] * (len(lines[0]) - words)
    return "\n".join([head, "|" + "|".join(marks) + "|", *body, ""])


def latex(lines: Sequence[Sequence[str]], words: int, caption: str) -> str:
    """``lines`` as a LaTeX table (package booktabs)."""

    def escaped(text: str) -> str:
        for mark in "\\&%$#_{}":
            text = text.replace(mark, f"\\{mark}" if mark != "\\" else "/")
        return text.replace("±", "$\\pm$").replace("→", "$\\to$").replace("–", "--").replace("`", "")

    head, *body = [" & ".join(map(escaped, line)) + r" \\" for line in lines]
    columns = "l" * words + "r" * (len(lines[0]) - words)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{escaped(caption)}}}",
            r"\end{table}",
            "",
        ]
    )
