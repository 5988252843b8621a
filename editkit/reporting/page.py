"""The comparison as one page for a browser: a file that needs no server and no network.

Here the runs' files are collected and written down as JSON; what is made of it is in ``page/``.
"""

import base64
import hashlib
import json
import math
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from editkit import __version__
from editkit.errors import UsageError
from editkit.reporting import pairs, results, runs
from editkit.reporting.layout import HEADINGS
from editkit.reporting.runs import Found, Group
from editkit.reporting.table import LESS_IS_BETTER, MEASURES, PROTOCOLS, UNITS

MOST_BYTES = 20 * 2**20  # of a page: more opens slowly
MOST_QUESTIONS = 150_000  # in the list of single edits
MOST_POINTS = 300  # of a training curve
ALL_POINTS = 400_000  # of all of them together
MOST_FIGURES_BYTES = 6_000_000  # of PNG files; a third more as text
MOST_COMPARED = 10  # editors that are compared in pairs: 45 differences a measure
LONGEST_PAUSE = 60.0  # seconds between two pages of runs that are watched


class Strings:
    """Texts, each kept once: calling it with a text gives its index."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.index.setdefault(text, len(self.index))


# An edit as one editor made it in one run: run, editor's label, task and regime.
Cell = tuple[int, str, str, str]


# Values of questions: by measure, editor, edit and category.
Measures = dict[str, dict[str, dict[str, dict[str, list[float]]]]]


class Sample:
    """Single edits to look at: as many as fit, and the same ones of every run and editor.

    Those edits are kept whose hash falls under a limit; the limit is halved whenever there are too many questions.
    """

    def __init__(self, most: int) -> None:
        self.kept: dict[Cell, dict[str, list[tuple[Any, ...]]]] = {}
        self.edits: dict[Cell, set[str]] = {}
        self._most = most
        self._questions = 0
        self._limit = 2**32

    def add(self, cell: Cell, record: dict[str, Any]) -> None:
        edit = record["request"]
        self.edits.setdefault(cell, set()).add(edit)
        if zlib.crc32(edit.encode()) < self._limit:
            asked = tuple(record[name] for name in ("protocol", "measure", "asked", "category"))
            texts = tuple(record[name] for name in ("prompt", "answer", "base", "edited"))
            self.kept.setdefault(cell, {}).setdefault(edit, []).append((*asked, *texts, record["scores"]))
            self._questions += 1
            if self._questions > self._most:
                self.halve()

    def halve(self) -> None:
        self._limit //= 2
        for cell, edits in self.kept.items():
            self.kept[cell] = {edit: q for edit, q in edits.items() if zlib.crc32(edit.encode()) < self._limit}
        self._questions = sum(len(q) for edits in self.kept.values() for q in edits.values())


def write(found: Sequence[Found], target: Path, refresh: int = 0, folders: Sequence[Path] = ()) -> None:
    """Put the page of ``found`` runs at ``target`` in one step; a browser reloads it every ``refresh`` seconds if any.

    Figures that lie under ``folders`` with a caption (studies' maps and curves) are shown too.

    Raises:
        UsageError: records or curves that cannot be read, or a place that cannot be written to.
    """
    text = html(found, refresh, pictures(folders)).encode("utf-8", "replace")
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(text)
        part.replace(target)
    except OSError as error:
        raise UsageError(
            f"Cannot write '{target}' ({error.strerror}): name another place for the page with --page"
        ) from error


def watch(folders: Sequence[Path], target: Path, say: Callable[[str], None], pause: float = 5.0) -> None:
    """Write the page anew while a run under ``folders`` is running; between two jobs of a sweep none may be.

    ``say`` takes a line whenever the number of runs in some state has changed.
    """
    told, quiet = "", 0
    while quiet < 3:
        began = time.monotonic()
        found = runs.find(folders)
        quiet = 0 if any(one.state == "running" for one in found) else quiet + 1
        if (line := states(found)) != told:
            say(line)
            told = line
        # A large page takes long to make: most of the time is left to the runs.
        write(found, target, max(5, round(2 * pause)), folders)
        pause = min(max(pause, 4 * (time.monotonic() - began)), LONGEST_PAUSE)
        time.sleep(pause)
    write(runs.find(folders), target, folders=folders)


def pictures(folders: Sequence[Path]) -> list[tuple[str, str]]:
    """Caption and file, as a data URL, of figures under ``folders``: the first ones, `MOST_FIGURES_BYTES` in all."""
    found, size = [], 0
    for file in sorted({file for folder in folders for file in folder.rglob("*.png") if "wandb" not in file.parts}):
        caption = file.with_suffix(".txt")
        size += file.stat().st_size
        if caption.is_file() and size <= MOST_FIGURES_BYTES:
            said = caption.read_text(encoding="utf-8", errors="replace").strip()
            found.append((said, f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"))
    return found


def states(found: Iterable[Found]) -> str:
    counts: dict[str, int] = {}
    for one in found:
        counts[one.state] = counts.get(one.state, 0) + 1
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def html(found: Sequence[Found], refresh: int = 0, figures: Sequence[tuple[str, str]] = ()) -> str:
    """The whole page; single edits are left out until it weighs no more than `MOST_BYTES`."""
    data, sample = collect(found, refresh), Sample(MOST_QUESTIONS)
    data["pairs"] = compare(found, data["labels"], sample)
    while True:
        page = joined(data | listed(sample), refresh, figures)
        if len(page.encode("utf-8", "replace")) <= MOST_BYTES or not any(sample.kept.values()):
            return page
        sample.halve()


def joined(data: dict[str, Any], refresh: int, figures: Sequence[tuple[str, str]]) -> str:
    """Template, style, script, figures and data as one file."""
    parts = {name: (files("editkit.reporting") / "page" / f"page.{name}").read_text("utf-8") for name in ("css", "js")}
    # The browser takes this style and this script, and nothing else from anywhere.
    digests = {f"{name}_hash": base64.b64encode(hashlib.sha256(t.encode()).digest()) for name, t in parts.items()}
    written = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<\u2028\u2029":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return Template((files("editkit.reporting") / "page" / "page.html").read_text("utf-8")).substitute(
        parts | HEADINGS,
        **{name: digest.decode() for name, digest in digests.items()},
        data=written,
        figures="".join(
            f'<figure><img src="{url}" alt=""><figcaption>{escape(caption)}</figcaption></figure>'
            for caption, url in figures
        )
        or "<p>None lie under the folders that were named. The programs in experiments/ draw some.</p>",
        reload=f'<meta http-equiv="refresh" content="{refresh}">' if refresh else "",
    )


def collect(found: Sequence[Found], refresh: int) -> dict[str, Any]:
    """All that the page shows but single edits: runs, groups, scores and curves; no number is rounded but curves'."""
    word = Strings()
    index = {id(one): number for number, one in enumerate(found)}
    groups = runs.groups(found)
    about = [described(one) for one in found]
    labels: list[dict[str, str]] = [{} for _ in found]
    rows = []
    for number, group in enumerate(groups):
        for one, (condition, names) in zip(group.runs, results.labels([one.run for one in group.runs]), strict=True):
            at = index[id(one)]
            labels[at] = names
            about[at] |= {"group": number, "condition": condition}
            for row in one.run.rows:
                keys = (names[row["editor"]], *(row[key] for key in ("task", "regime", "protocol", "metric")))
                means = (finite(float(row[key])) for key in ("mean", "ci_low", "ci_high"))
                rows.append([at, *map(word, keys), *means, int(row["n"]), int(row["seed"])])
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "refresh": refresh,
        "measures": MEASURES,
        "protocols": PROTOCOLS,
        "units": UNITS,
        "less": LESS_IS_BETTER,
        "runs": about,
        "groups": [{"name": group.name, "kind": different(group, groups)} for group in groups],
        "rows": rows,
        "words": list(word.index),
        "labels": labels,
        "curves": curves(found, labels),
    }


def described(one: Found) -> dict[str, Any]:
    config = one.run.config
    return {
        "name": one.name,
        "state": one.state,
        "why": one.status.get("why", ""),
        "started": one.status.get("started"),
        "ended": one.status.get("ended"),
        "silent": round(one.silent()) if one.state == "running" else None,
        "editors": one.editors(),
        "model": one.model(),
        "seed": config.get("seed"),
        "trained": one.run.trained_on(),
        "group": None,
        "condition": "",
    }


def different(group: Group, groups: Sequence[Group]) -> dict[str, str]:
    """Of what a group's scores depend on, that which is not the same in all groups."""
    names = dict.fromkeys(name for other in groups for name in other.kind)
    return {
        name: group.kind.get(name, "")[: None if name in ("protocols", "model") else 12]
        for name in names
        if len({other.kind.get(name) for other in groups}) > 1
    }


def curves(found: Sequence[Found], labels: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Of each run, editor and split (``train``, ``valid``): the steps, and each measure's value at them."""
    read: list[tuple[int, str, str, list[dict[str, Any]]]] = []
    for run, one in enumerate(found):
        points: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for line in runs.lines(one.folder / "metrics.jsonl"):
            editor, step = line.pop("editor"), line.pop("step")
            split: dict[str, dict[str, Any]] = {}
            for name, value in line.items():
                kind, _, measure = name.rpartition("/")
                split.setdefault(kind, {"step": step})[measure] = value
            for kind, values in split.items():
                points.setdefault((editor, kind), []).append(values)
        read += [(run, labels[run].get(editor, editor), kind, values) for (editor, kind), values in points.items()]
    drawn = sum(len(values[0]) - 1 for *_, values in read)
    most = min(MOST_POINTS, max(20, ALL_POINTS // max(drawn, 1)))
    return [
        {"run": run, "editor": editor, "split": kind, **thinned(values, most)} for run, editor, kind, values in read
    ]


def thinned(points: Sequence[dict[str, Any]], most: int) -> dict[str, Any]:
    """At most ``most`` points: means over neighbours, at the step of the last of them."""
    size = math.ceil(len(points) / most)
    bins = [points[start : start + size] for start in range(0, len(points), size)]
    names = dict.fromkeys(name for point in points for name in point if name != "step")
    values = {name: [mean([point.get(name) for point in some]) for some in bins] for name in names}
    return {"steps": [some[-1]["step"] for some in bins], "values": values}


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what there is, to four digits: a curve shows no more."""
    there = [value for value in values if value is not None]
    return float(f"{math.fsum(there) / len(there):.4g}") if there else None


def compare(found: Sequence[Found], labels: Sequence[dict[str, str]], sample: Sample) -> list[list[Any]]:
    """Paired differences within each group, condition, task and regime; every record passes through ``sample`` too.

    Of sequences scored along the way, only the end is compared.
    """
    number = {id(one): at for at, one in enumerate(found)}
    rows = []
    for at, group in enumerate(runs.groups(found)):
        scores: dict[tuple[str, str, str], Measures] = {}
        conditions = [condition for condition, _ in results.labels([one.run for one in group.runs])]
        for one, condition in zip(group.runs, conditions, strict=True):
            run = number[id(one)]
            for record in runs.lines(one.folder / "records.jsonl.gz"):
                label = labels[run].get(record["editor"])
                if label is None:  # scored, but its rows are not written yet
                    continue
                regime = record.get("regime", "")
                sample.add((run, label, record["task"], regime), record)
                category = record["category"] if record["measure"] == "portability" else ""
                for measure in measured(record):
                    measures = scores.setdefault((condition, record["task"], regime), {})
                    editors = measures.setdefault(f"{record['protocol']} {measure}", {})
                    edit = editors.setdefault(label, {}).setdefault(record["request"], {})
                    edit.setdefault(category, []).append(record["scores"][""])
        for (condition, task, regime), measures in scores.items():
            if regime != last([r for c, t, r in scores if (c, t) == (condition, task)], regime):
                continue
            chosen = {name: best(editors) for name, editors in measures.items()}
            rows += [
                [at, condition, task, regime, *d.measure.split(" "), d.first, d.second]
                + [round(value, 6) for value in (d.mean, d.low, d.high, d.p, d.p_holm)]
                + [d.edits]
                for d in pairs.differences(chosen)
            ]
    return rows


def measured(record: dict[str, Any]) -> list[str]:
    """The measures that a record counts towards, of those everyone compares; see `evaluation.summary.metric_names`."""
    asked = {"instructed": ("",), "bare": ("_bare",), "same": ("", "_bare")}[record["asked"]]
    names = [record["measure"] + suffix for suffix in asked]
    return [name for name in names if name in MEASURES and "" in record["scores"]]


def last(regimes: Iterable[str], regime: str) -> str:
    """The end of a sequence that ``regime`` is a part of."""
    sequence = [name for name in regimes if name.startswith("sequential ")]
    return max(sequence, key=lambda name: int(name.split()[1])) if regime in sequence else regime


def best(editors: Mapping[str, pairs.Scores]) -> Mapping[str, pairs.Scores]:
    """The editors, or where there are too many to compare in pairs, those of the highest means."""
    if len(editors) <= MOST_COMPARED:
        return editors

    def height(editor: str) -> float:
        values = [value for edit in editors[editor].values() for found in edit.values() for value in found]
        return math.fsum(values) / len(values)

    return {editor: editors[editor] for editor in sorted(editors, key=height, reverse=True)[:MOST_COMPARED]}


def listed(sample: Sample) -> dict[str, Any]:
    """Single edits as numbers: a cell's records name a question, what the edited model said, and a set of scores.

    Questions and texts repeat between runs, so each is kept once.
    """
    text = Strings()
    questions: dict[tuple[int, ...], int] = {}
    scores: dict[str, int] = {}
    cells = []
    for (run, label, task, regime), edits in sample.kept.items():
        flat: list[int] = []
        for edit, records in edits.items():
            for *asked, prompt, answer, base, edited, values in records:
                question = tuple(map(text, (edit, *asked, prompt, answer, base)))
                rounded = json.dumps({name: finite(round(value, 4)) for name, value in values.items()})
                flat.append(questions.setdefault(question, len(questions)))
                flat.append(text(edited))
                flat.append(scores.setdefault(rounded, len(scores)))
        total = len(sample.edits[run, label, task, regime])
        cells.append([run, text(label), text(task), text(regime), len(edits), total, flat])
    return {
        "cells": cells,
        "texts": list(text.index),
        "questions": list(questions),
        "scores": [json.loads(values) for values in scores],
    }


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
