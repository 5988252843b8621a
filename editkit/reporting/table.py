"""Comparison tables, for the terminal and for a paper, from logged results only."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from editkit.instructions.search import said
from editkit.reporting.results import Score

MEASURES = ("reliability", "reliability_bare", "generalization", "locality", "portability", "fluency")
PROTOCOLS = {
    "teacher_forced": "is each token of the target predicted, given those before it?",
    "generative": "does the model say the target when it writes freely?",
    "cost": "what editing took, training left out",
}
FILES = {
    "results.csv": "every measure with its interval",
    "records.jsonl.gz": "every question, and what was answered before and after",
    "metrics.jsonl": "training curves",
    "checkpoints": "trained editors",
    "config.yaml": "every setting of this run",
    "inputs.json": "fingerprints of the model and the data",
    "run.log": "what happened when",
}
UNITS = {"fluency": "fluency in bits × 100", "seconds_per_edit": "time in s", "peak_memory_mib": "memory in MiB"}
LESS_IS_BETTER = ("_kl", "seconds_per_edit", "peak_memory_mib")
WIDEST = 6  # measures side by side in 100 columns


@dataclass(frozen=True)
class Block:
    """The scores of one task under one protocol: one row an editor."""

    task: str
    unseen: bool
    scores: tuple[Score, ...]

    def name(self) -> str:
        return f"{self.task} †" if self.unseen else self.task

    @property
    def editors(self) -> list[str]:
        return list(dict.fromkeys(score.editor for score in self.scores))

    def get(self, editor: str, metric: str) -> Score | None:
        return next((s for s in self.scores if (s.editor, s.metric) == (editor, metric)), None)

    def is_best(self, score: Score) -> bool:
        """Whether no editor of the block scores better, but some score worse, as far as the table shows."""
        means = [number(s, s.mean) for s in self.scores if s.metric == score.metric]
        best = (min if score.metric.endswith(LESS_IS_BETTER) else max)(means, key=float)
        return number(score, score.mean) == best and any(mean != best for mean in means)


@dataclass(frozen=True)
class Panel:
    """One table: everything under one protocol, in one regime and condition."""

    condition: str
    regime: str
    protocol: str
    metrics: tuple[str, ...]
    blocks: tuple[Block, ...]

    def title(self) -> str:
        kind, _, edits = self.regime.partition(" ")
        said = {"single": "one edit at a time", "batch": f"{edits} edits as one", "sequential": f"after {edits} edits"}
        return f"{self.protocol}, {said.get(kind, self.regime)}"

    def heading(self) -> str:
        return f"{self.title()}, {self.condition}" if self.condition else self.title()

    def note(self) -> str:
        """What the numbers are: units, how many edits, what stands behind the sign ±, and the marks."""
        scores = [score for block in self.blocks for score in block.scores]
        edits = {block.task: max(score.n for score in block.scores) for block in self.blocks}
        if len(set(edits.values())) == 1:
            counted = f"{next(iter(edits.values()))} edits a task"
        else:
            counted = "edits: " + ", ".join(f"{task} {n}" for task, n in edits.items())
        spread = "± half the 95 % interval"
        seeds = sorted({seed for score in scores for seed in score.seeds})
        if any(len(score.seeds) > 1 for score in scores):
            alone = ", of a single run half the 95 % interval" if any(len(score.seeds) == 1 for score in scores) else ""
            spread = f"means over seeds {', '.join(map(str, seeds))}, ± standard deviation{alone}"
        unseen = "; † not trained on" if any(block.unseen for block in self.blocks) else ""
        units = [unit for metric, unit in UNITS.items() if metric in self.metrics]
        if any(metric.endswith("_kl") for metric in self.metrics):
            units.append("KL in nats")
        if any(metric not in UNITS and not metric.endswith("_kl") for metric in self.metrics):
            units.insert(0, "in %")
        return f"{', '.join(units)}; {counted}; {spread}; * best{unseen}"


def panels(scores: Iterable[Score], everything: bool = False) -> list[Panel]:
    """Tables of the scores: the measures everyone compares, or every variant in tables of at most six columns.

    Of sequences scored along the way, the end alone, unless ``everything`` is asked for.
    """
    scores = list(scores)
    groups: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores if everything else ends(scores):
        groups.setdefault((score.condition, score.regime, score.protocol), []).append(score)
    made = []
    for key, found in groups.items():
        present = dict.fromkeys(score.metric for score in found)
        tables = [[metric for metric in MEASURES if metric in present]]
        if everything:
            others = [metric for metric in present if metric not in MEASURES]
            tables += [others[start : start + WIDEST] for start in range(0, len(others), WIDEST)]
        blocks = tuple(
            Block(task, unseen, tuple(s for s in found if s.task == task and s.unseen == unseen))
            for task, unseen in dict.fromkeys((score.task, score.unseen) for score in found)
        )
        made += [Panel(*key, tuple(metrics), blocks) for metrics in tables if metrics]
    return made


def ends(scores: Sequence[Score]) -> list[Score]:
    """``scores`` without those of sequences that go on under the same condition."""
    last: dict[tuple[str, str], int] = {}
    for score in scores:
        kind, _, edits = score.regime.partition(" ")
        if kind == "sequential":
            last[score.condition, score.task] = max(int(edits), last.get((score.condition, score.task), 0))
    return [
        score
        for score in scores
        if not score.regime.startswith("sequential ")
        or score.regime == f"sequential {last[score.condition, score.task]}"
    ]


def comparison(scores: Iterable[Score], everything: bool = False) -> RenderableType:
    """The comparison for a terminal of 100 columns: one table a protocol, one block a task, one row an editor."""
    parts: list[RenderableType] = []
    for panel in panels(scores, everything):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        table.add_column("", min_width=14)
        for metric in panel.metrics:
            table.add_column(metric.replace("_", "\n", 1), justify="right", no_wrap=True, vertical="bottom")
        for block in panel.blocks:
            table.add_row(Text(block.name(), "bold cyan"))
            for editor in block.editors:
                cells = [cell(block, block.get(editor, metric)) for metric in panel.metrics]
                table.add_row(Text(f"  {editor}"), *cells)
            table.add_section()
        parts += [
            Text(f"\n{panel.condition}", "bold") if panel.condition else Text(),
            Text.assemble((panel.title(), "bold"), (f"  {PROTOCOLS.get(panel.protocol, '')}", "dim")),
            table,
            Text(panel.note(), "dim"),
        ]
    return Group(*parts, Text())


def cell(block: Block, score: Score | None) -> Text:
    if score is None:
        return Text("–", "dim")
    best = block.is_best(score)
    return Text.assemble(
        (number(score, score.mean), "bold green" if best else ""),
        (f" ±{number(score, score.half)}", "dim"),
        ("*" if best else " ", "bold green"),
    )


def number(score: Score, value: float) -> str:
    """A value as the tables show it: a share in percent, everything else in the unit of `UNITS`."""
    if score.metric.endswith("_kl"):
        return f"{value:.3f}"
    if score.metric in UNITS:
        return f"{value:.3g}" if score.metric == "seconds_per_edit" else f"{value:.0f}"
    return f"{100 * value:.1f}"


def text(scores: Sequence[Score], form: str, everything: bool = False) -> str:
    """The comparison as ``md`` or ``latex`` tables (best in bold), or as one tidy ``csv`` of all measures."""
    if form == "csv":
        return tidy(scores)
    made = []
    for panel in panels(scores, everything):
        head = ["task", "editor", *panel.metrics]
        rows = [
            [block.name(), editor] + [formatted(form, block, block.get(editor, metric)) for metric in panel.metrics]
            for block in panel.blocks
            for editor in block.editors
        ]
        made.append((markdown if form == "md" else latex)(panel, head, rows))
    return "\n".join(made)


def tidy(scores: Iterable[Score]) -> str:
    buffer = io.StringIO()
    lines = csv.writer(buffer, lineterminator="\n")
    names = ("condition", "regime", "protocol", "task", "unseen", "editor", "metric", "mean", "half", "n", "seeds")
    lines.writerow(names)
    for score in scores:
        values = [getattr(score, name) for name in names[:-1]]
        lines.writerow([*values, " ".join(map(str, score.seeds))])
    return buffer.getvalue()


def formatted(form: str, block: Block, score: Score | None) -> str:
    if score is None:
        return "–" if form == "md" else "--"
    mean, half = number(score, score.mean), number(score, score.half)
    if form == "md":
        return f"**{mean}** ±{half}" if block.is_best(score) else f"{mean} ±{half}"
    return rf"\textbf{{{mean}}} $\pm$ {half}" if block.is_best(score) else rf"{mean} $\pm$ {half}"


def markdown(panel: Panel, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"**{panel.heading()}**: {panel.note()}", ""]
    lines += ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def latex(panel: Panel, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def escaped(words: Iterable[str]) -> str:
        return " & ".join(word.replace("_", r"\_").replace("†", r"\dag") for word in words) + r" \\"

    lines = [
        f"% {panel.heading()}: {panel.note()}",
        rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
        r"\toprule",
        escaped(head),
        r"\midrule",
    ]
    lines += [escaped(row) for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def places(folder: Path) -> RenderableType:
    """Where everything of a run lies, and what to do with it next."""
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    grid = Table.grid(padding=(0, 2))
    for name, meaning in FILES.items():
        if (folder / name).exists():
            grid.add_row(Text(f"  {name}"), Text(meaning, "dim"))
    if (folder / "wandb").exists():
        grid.add_row(Text("  wandb"), Text(f"the same for W&B: `wandb leet {shown}/wandb` shows it here", "dim"))
    return Group(Text.assemble("Everything is in ", (f"{shown}", "bold")), grid)


def splits(found: Any) -> RenderableType:
    """What a mix of tasks holds: requests by task and split, oddities met in the files, and the files' SHA-256."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("task", "train", "valid", "test"):
        table.add_column(name, justify="left" if name == "task" else "right")
    parts = {name: [request.task for request in getattr(found, name)] for name in ("train", "valid", "test")}
    for task in sorted({task for tasks in parts.values() for task in tasks}):
        table.add_row(task, *(str(tasks.count(task)) for tasks in parts.values()))
    read, files = Table.grid(padding=(0, 2)), Table.grid(padding=(0, 2))
    for where, kinds in sorted(found.counts.items()):
        met = {kind.replace("_", " "): count for kind, count in kinds.items() if kind != "records"}
        oddities = ", ".join(f"{kind} {count}" for kind, count in sorted(met.items()))
        read.add_row(Text(where), f"{kinds['records']} records", Text(oddities, "dim"))
    for name, digest in sorted(found.sha256.items()):
        files.add_row(Text(name), Text(digest, "dim", overflow="fold"))
    return Group(table, Text("\nRead, and what was mended or left out", "bold"), read, Text("\nSHA-256", "bold"), files)


def search(history: Mapping[str, Any], folder: Path | None = None) -> RenderableType:
    """How a search for descriptions went, from the history in its file: a row a round, what was counted, and the gain
    over the bare names of the tasks; with ``folder``, where the file lies and what to do with it."""
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("round", "mean", "best so far", "kept", "dropped", "failed calls", "calls", "s"):
        rows.add_column(name, justify="left" if name == "round" else "right")
    bare, best, gain = history["bare_names"], history["best"], history["gain"]
    rows.add_row("bare names", f"{bare['score']:.3f}", *["–"] * 6)
    for one in history["rounds"]:
        counts, scores = one["counts"], one["scores"]
        lost = [sum(counts[kind].values()) for kind in ("dropped", "failed")]
        rows.add_row(
            str(one["round"]),
            f"{sum(scores) / len(scores):.3f}" if scores else "–",
            "–" if one["best"] is None else f"{one['best']:.3f}",
            *(str(n) for n in (counts["kept"], *lost, counts["calls"])),
            f"{one['seconds']:.0f}",
        )
    if gain["sd"] is None:
        noise = "one seed, so that noise cannot be told from a gain"
    else:
        noise = f"standard deviation over seeds {gain['sd']:.3f}"
    reached = f"{gain['mean']:.3f} above" if gain["mean"] > 0 else f"no better than ({gain['mean']:+.3f})"
    parts: list[RenderableType] = [
        rows,
        Text(f"\nStopped: {history['stopped'] or 'not yet'}"),
        Text(f"Counted: {said(history['counts'])}"),
        Text(f"Best: round {best['round']}, {best['score']:.3f}, {reached} the bare names ({noise})"),
    ]
    if folder:
        shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        parts.append(
            Text.assemble(
                "\nEverything is in ",
                (f"{shown}", "bold"),
                f"; use what was found by:\n  editkit run editor.descriptions={shown}/descriptions.yaml",
            )
        )
    return Group(*parts)


def descriptions(tasks: Mapping[str, Any]) -> RenderableType:
    """Each task's name and descriptions; the last is kept for tests."""
    parts: list[RenderableType] = []
    for key, task in tasks.items():
        parts.append(Text.assemble((f"{key}", "bold cyan"), f"  {task.name}"))
        *seen, kept = task.descriptions
        parts += [Text(f"  {index} {text}") for index, text in enumerate(seen)]
        parts += [Text.assemble(f"  {len(seen)} {kept}", ("  (kept for tests)", "dim")), Text()]
    return Group(*parts)
