"""Figures for papers: legible in print, told apart by colour-blind readers, drawn from ``results.csv`` alone.

matplotlib comes with ``pip install editkit[report]``; it is imported where something is drawn.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
TITLES = {"reliability": "edits still there (%)", "locality": "answers elsewhere unchanged (%)"}

Row = Mapping[str, str]
"""A line of ``results.csv``."""


def sequences(rows: Sequence[Row], metrics: Sequence[str] = ("reliability", "locality")) -> "Figure":
    """Scores after growing numbers of edits: a row of panels a metric, a column a task, a line an editor.

    Bands are 95 % intervals over edits. Raises UsageError if ``rows`` hold no sequence scored along the way.
    """
    plt = pyplot()
    points = [row for row in rows if row["regime"].startswith("sequential ") and row["protocol"] == "teacher_forced"]
    if len({row["regime"] for row in points}) < 2:
        raise UsageError("There is no sequence scored along the way to draw: run one with regime.every=10.")
    tasks, editors = (list(dict.fromkeys(row[key] for row in points)) for key in ("task", "editor"))
    size = (1.2 + 2.3 * len(tasks), 0.9 + 2.0 * len(metrics))
    figure, panels = plt.subplots(
        len(metrics), len(tasks), figsize=size, sharex=True, sharey="row", squeeze=False, layout="constrained"
    )
    for line, metric in zip(panels, metrics, strict=True):
        for panel, task in zip(line, tasks, strict=True):
            for editor, style in zip(editors, STYLES, strict=False):
                curve = [r for r in points if (r["metric"], r["task"], r["editor"]) == (metric, task, editor)]
                draw(panel, sorted(curve, key=edits), style, editor)
            panel.set(xscale="log", ylim=(-3, 103))
            panel.grid(alpha=0.25, linewidth=0.5)
            panel.spines[["top", "right"]].set_visible(False)
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


def save(figure: "Figure", path: Path) -> list[Path]:
    """Write ``path`` as PNG (200 dots an inch) and SVG; gives both names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in made:
        figure.savefig(file, dpi=200)
    return made


def pyplot():
    """matplotlib.pyplot, set to draw into files."""
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("Figures need matplotlib: pip install 'editkit[report]'") from error
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 8, "axes.titlesize": 9, "svg.fonttype": "none"})
    return plt
