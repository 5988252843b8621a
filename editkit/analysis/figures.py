"""Figures for papers: legible in print, told apart by colour-blind readers, drawn from rows of tables alone.

Widths are in inches: ``PAGE`` across a page, ``COLUMN`` in one of two columns. Type is at 7 to 9 points at that width,
so a figure is to be set unscaled. ``save`` writes one with its caption.

matplotlib comes with ``pip install editkit[report]``; it is imported where something is drawn.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from editkit.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, dark enough for lines on white, each with a marker of its own.
STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#000000", "v"),
    ("#E69F00", "P"),
    ("#56B4E9", "X"),
)
TASKS = ("recent", "counterfact", "convsent", "zsre")
"""The first styles are these tasks' in every figure, whichever of them it shows."""
TITLES = {"reliability": "edits still there (%)", "locality": "answers elsewhere unchanged (%)"}
PLAIN = {"silhouette": "silhouette", "cosine": "mean cosine", "fluency": "fluency (bits)"}
SHARES = {"probe": "linear probe (%)", "neighbours": "nearest neighbours (%)"}
COLUMN, PAGE = 3.3, 6.8

Row = Mapping[str, Any]
"""A line of a table, such as ``results.csv``: numbers may be text. Means and intervals of shares are from 0 to 1."""


def sequences(rows: Sequence[Row], metrics: Sequence[str] = ("reliability", "locality")) -> "Figure":
    """Scores after growing numbers of edits: a row of panels a metric, a column a task, a line an editor.

    Bands are 95 % intervals over edits. Raises UsageError if ``rows`` hold no sequence scored along the way.
    """
    points = [row for row in rows if row["regime"].startswith("sequential ") and row["protocol"] == "teacher_forced"]
    if len({row["regime"] for row in points}) < 2:
        raise UsageError("There is no sequence scored along the way to draw: run one with regime.along=[1,10].")
    tasks, editors = unique(points, "task"), unique(points, "editor")
    size = (1.2 + 2.3 * len(tasks), 0.9 + 2.0 * len(metrics))
    figure, panels = grid(len(metrics), len(tasks), size, sharex=True, sharey="row")
    for line, metric in zip(panels, metrics, strict=True):
        for panel, task in zip(line, tasks, strict=True):
            for editor, style in zip(editors, STYLES, strict=False):
                curve = [r for r in points if (r["metric"], r["task"], r["editor"]) == (metric, task, editor)]
                draw(panel, sorted(curve, key=edits), style, editor)
            panel.set(xscale="log", ylim=(-3, 103))
            unframed(panel)
        line[0].set_ylabel(TITLES.get(metric, metric))
    ticks = sorted({edits(row) for row in points if edits(row) in (1, 3, 10, 30, 100, 300, 1000)})
    for panel, task in zip(panels[0], tasks, strict=True):
        panel.set_title(task)
    for panel in panels[-1]:
        panel.set(xlabel="edits made", xticks=ticks, xticklabels=ticks)
        panel.minorticks_off()
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def draw(panel: "Axes", curve: Sequence[Row], style: tuple[str, str], label: str) -> None:
    """One editor's curve of percentages with its band."""
    x = [edits(row) for row in curve]
    mean, low, high = ([100 * float(row[key]) for row in curve] for key in ("mean", "ci_low", "ci_high"))
    colour, marker = style
    panel.plot(x, mean, color=colour, marker=marker, markersize=4, linewidth=1.4, label=label)
    panel.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)


def edits(row: Row) -> int:
    return int(row["regime"].removeprefix("sequential "))


def maps(
    rows: Sequence[Row], notes: Mapping[str, str] = MappingProxyType({}), width: float = PAGE, across: int = 4
) -> "Figure":
    """Points by task, of rows with ``panel, task, x, y``: a panel for each name, at most ``across`` beside each other.

    Axes have no numbers, as those of a t-SNE map mean nothing. A panel's ``notes`` stand below it.
    """
    names, styles = unique(rows, "panel"), task_styles(unique(rows, "task"))
    across = min(across, len(names))
    down = -(-len(names) // across)
    size = (width, 0.35 + down * (width / across + (0.35 if notes else 0.2)))
    figure, panels = grid(down, across, size)
    for panel, name in zip(panels.flat, names, strict=False):
        own = [row for row in rows if row["panel"] == name]
        for task, (colour, marker) in styles.items():
            x, y = ([float(row[axis]) for row in own if row["task"] == task] for axis in "xy")
            area = 14 if len(own) <= 400 else 7
            panel.scatter(x, y, area, colour, marker=marker, lw=0.25, edgecolors="white", alpha=0.9, label=task)
        panel.set(title=name, xticks=[], yticks=[], box_aspect=1)
        panel.set_xlabel(notes.get(name, ""), fontsize=7)
    for panel in panels.flat[len(names) :]:
        panel.remove()
    key(figure, panels[0, 0])
    return figure


def conditions(rows: Sequence[Row], metrics: Sequence[str], width: float = PAGE) -> "Figure":
    """Conditions compared by task: a line a condition, a panel a metric, a point with its interval a task.

    Reads ``condition, task, metric, mean, ci_low, ci_high``; where rows have a ``chance``, grey ticks show it.
    """
    names, styles = unique(rows, "condition"), task_styles(unique(rows, "task"))
    shifts = dict(zip(styles, spread(len(styles), 0.7), strict=True))

    def place(row: Row) -> float:
        return names.index(row["condition"]) + shifts[row["task"]]

    size = (width, 0.8 + len(names) * (0.12 + 0.11 * len(styles)))
    figure, panels = grid(1, len(metrics), size, sharey=True)
    for panel, metric in zip(panels[0], metrics, strict=True):
        shown = [row for row in rows if row["metric"] == metric]
        for task, (colour, marker) in styles.items():
            own = [row for row in shown if row["task"] == task]
            y = [place(row) for row in own]
            panel.hlines(y, numbers(own, "ci_low"), numbers(own, "ci_high"), colors=colour, linewidth=1.2)
            panel.plot(numbers(own, "mean"), y, marker, color=colour, markersize=4, label=task)
        if known := [row for row in shown if "chance" in row]:
            y = [place(row) for row in known]
            panel.plot(numbers(known, "chance"), y, "|", color="0.5", markersize=5, zorder=0, label="chance")
        for boundary in range(1, len(names)):
            panel.axhline(boundary - 0.5, color="0.85", linewidth=0.6, zorder=0)
        panel.set(xlabel=label(metric), ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)), yticklabels=names)
        unframed(panel, "x")
    key(figure, panels[0, 0])
    return figure


def scaling(rows: Sequence[Row], metrics: Sequence[str], width: float = PAGE) -> "Figure":
    """Scores by the number of tasks trained on: a panel a metric, a line an editor, bars for the intervals.

    Reads ``training_tasks, editor, metric, mean, ci_low, ci_high``.
    """
    editors, counts = unique(rows, "editor"), sorted({int(row["training_tasks"]) for row in rows})
    size = (width, 0.55 + min(2.2, width / len(metrics)))
    figure, panels = grid(1, len(metrics), size)
    for panel, metric in zip(panels[0], metrics, strict=True):
        for shift, editor, (colour, marker) in zip(spread(len(editors), 0.12), editors, STYLES, strict=False):
            own = [row for row in rows if (row["metric"], row["editor"]) == (metric, editor)]
            own.sort(key=lambda row: int(row["training_tasks"]))
            x = [int(row["training_tasks"]) + shift for row in own]
            panel.vlines(x, numbers(own, "ci_low"), numbers(own, "ci_high"), colors=colour, linewidth=1.2)
            panel.plot(x, numbers(own, "mean"), color=colour, marker=marker, markersize=4, linewidth=1.2, label=editor)
        panel.set(xlabel="tasks trained on", ylabel=label(metric), xticks=counts)
        panel.margins(x=0.1)
        unframed(panel)
    key(figure, panels[0, 0])
    return figure


def rounds(rows: Sequence[Row], width: float = COLUMN) -> "Figure":
    """A search's candidates as dots and the best so far as a line: of rows ``task, round, score``, a panel a task."""
    styles = task_styles(unique(rows, "task"))
    size = (width, 0.55 + min(2.0, width / len(styles)))
    figure, panels = grid(1, len(styles), size, sharey=True)
    for panel, (task, (colour, marker)) in zip(panels[0], styles.items(), strict=True):
        own = [(int(row["round"]), float(row["score"])) for row in rows if row["task"] == task]
        ended = sorted({made for made, _ in own})
        best = [max(score for made, score in own if made <= last) for last in ended]
        panel.step(ended, best, where="post", color="black", linewidth=1.2, label="best so far")
        panel.plot(*zip(*own, strict=True), marker, color=colour, markersize=4, alpha=0.7, markeredgewidth=0)
        panel.set(title=task, xlabel="round", xticks=ended[:: -(-len(ended) // 8)])
        panel.margins(0.08)
        unframed(panel)
    panels[0, 0].set_ylabel("candidate's score")
    key(figure, panels[0, 0])
    return figure


def matrix(
    rows: Sequence[Row], metric: str, down: str = "task", across: str = "other_task", width: float = COLUMN
) -> "Figure":
    """A heat map with its numbers: ``metric``'s mean for each value of the keys ``down`` and ``across``.

    Rows that have a ``panel`` are drawn in as many, on one scale of colours: 0 to 100 % for shares.
    """
    shown = [row for row in rows if row["metric"] == metric]
    lines, columns = ordered(unique(shown, down)), ordered(unique(shown, across))
    names = list(dict.fromkeys(row.get("panel", "") for row in shown))
    size = (width, 0.9 + 0.8 * (width - 1) / len(names) / len(columns) * len(lines))
    figure, panels = grid(1, len(names), size, sharey=True)
    means = numbers(shown, "mean")
    low, high = (min(means), max(means)) if metric in PLAIN else (0, 100)
    for panel, name in zip(panels[0], names, strict=True):
        cells = {(row[down], row[across]): number(row, "mean") for row in shown if row.get("panel", "") == name}
        values = [[cells.get((line, column), float("nan")) for column in columns] for line in lines]
        image = panel.imshow(values, cmap="cividis", vmin=low, vmax=high, aspect="auto")
        for (line, column), value in cells.items():
            ink = "black" if luminance(image.to_rgba(value)) > 0.18 else "white"
            text = f"{value:.2f}" if metric in PLAIN else f"{value:.0f}"
            panel.text(columns.index(column), lines.index(line), text, color=ink, ha="center", va="center")
        panel.set(title=name, xlabel=across.replace("_", " "), yticks=range(len(lines)), yticklabels=lines)
        panel.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    panels[0, 0].set_ylabel(down.replace("_", " "))
    bar = figure.colorbar(image, ax=panels, label=label(metric), aspect=30, pad=0.02)
    bar.outline.set_visible(False)
    return figure


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour, by WCAG 2: above 0.18 black type stands out more than white."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def unique(rows: Sequence[Row], key: str) -> list[Any]:
    """The values under ``key``, in the order of their first."""
    return list(dict.fromkeys(row[key] for row in rows))


def task_styles(tasks: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each task: the same in every figure for ``TASKS``, the next free ones for others."""
    styles = dict(zip(dict.fromkeys((*TASKS, *tasks)), STYLES * (1 + len(tasks)), strict=False))
    return {task: styles[task] for task in ordered(tasks)}


def ordered(tasks: Sequence[Any]) -> list[Any]:
    """Each once: those of ``TASKS`` in their order, then the others in the order of their first."""
    return [task for task in dict.fromkeys((*TASKS, *tasks)) if task in tasks]


def number(row: Row, field: str) -> float:
    """The value as it is drawn: a share in per cent, anything else as it is."""
    return float(row[field]) * (1 if row["metric"] in PLAIN or row["metric"].endswith("_kl") else 100)


def numbers(rows: Sequence[Row], field: str) -> list[float]:
    return [number(row, field) for row in rows]


def label(metric: str) -> str:
    """What an axis says."""
    words = metric.replace("_", " ")
    return PLAIN.get(metric) or SHARES.get(metric) or (f"{words} (nats)" if metric.endswith("_kl") else f"{words} (%)")


def spread(count: int, width: float) -> list[float]:
    """``count`` shifts around 0 that keep neighbours apart, ``width`` between the first and the last."""
    return [width * (place / (count - 1) - 0.5) if count > 1 else 0.0 for place in range(count)]


def grid(down: int, across: int, size: tuple[float, float], **shared: Any) -> tuple["Figure", Any]:
    """A figure and its empty panels, in type and lines for print."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("Figures need matplotlib: pip install 'editkit[report]'") from error
    matplotlib.rcParams.update(
        {
            "font.size": 8,
            "axes.titlesize": 9,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "axes.linewidth": 0.6,
            "figure.constrained_layout.h_pad": 0.07,
            "svg.fonttype": "none",
        }
    )
    figure = Figure(size, layout="constrained")
    return figure, figure.subplots(down, across, squeeze=False, **shared)


def unframed(panel: "Axes", lines: Literal["both", "x", "y"] = "both") -> None:
    panel.grid(axis=lines, alpha=0.25, linewidth=0.5)
    panel.spines[["top", "right"]].set_visible(False)


def key(figure: "Figure", panel: "Axes") -> None:
    """What ``panel``'s colours and markers mean, below all panels."""
    handles, labels = panel.get_legend_handles_labels()
    columns = min(len(labels), int(figure.get_figwidth() / 0.8))
    narrow = {"columnspacing": 1.2, "handletextpad": 0.3, "handlelength": 1.5}
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, **narrow)


def save(figure: "Figure", path: Path, caption: str = "") -> list[Path]:
    """Write ``path`` as PNG (300 dots an inch), SVG and, with a caption, text; gives their names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in made:
        figure.savefig(file, dpi=300)
    if caption:
        made.append(path.with_suffix(".txt"))
        made[-1].write_text(caption + "\n", encoding="utf-8")
    return made
