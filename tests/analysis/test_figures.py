"""What a figure of sequences shows is what ``results.csv`` holds."""

from pathlib import Path

import pytest

from editkit.analysis import figures
from editkit.errors import UsageError


def row(editor: str, made: int, mean: float, task: str = "recent", metric: str = "reliability") -> dict[str, str]:
    low, high = mean - 0.1, mean + 0.05
    return {
        "editor": editor,
        "task": task,
        "regime": f"sequential {made}",
        "protocol": "teacher_forced",
        "metric": metric,
        "mean": str(mean),
        "ci_low": str(low),
        "ci_high": str(high),
    }


def test_each_line_is_an_editors_curve() -> None:
    points = {("mend", 1): 1.0, ("mend", 10): 0.5, ("mend", 100): 0.25, ("grace", 100): 0.9, ("grace", 1): 0.95}
    rows = [row(editor, made, mean) for (editor, made), mean in points.items()]
    panel = figures.sequences(rows, ["reliability"]).axes[0]
    shown = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in panel.get_lines()}
    assert shown == {"mend": ([1, 10, 100], [100, 50, 25]), "grace": ([1, 100], [95, 90])}
    assert panel.get_title() == "recent"


def test_panels_are_measures_by_tasks() -> None:
    rows = [row("mend", made, 0.5, t, m) for made in (1, 10) for t in ("a", "b") for m in ("reliability", "locality")]
    figure = figures.sequences(rows)
    assert len(figure.axes) == 4
    assert all(len(panel.get_lines()) == 1 for panel in figure.axes)


def test_without_a_curve_there_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="regime.every=10"):
        figures.sequences([row("mend", 100, 0.5)])


def test_a_figure_is_saved_as_png_and_svg(tmp_path: Path) -> None:
    figure = figures.sequences([row("mend", 1, 1.0), row("mend", 10, 0.5)], ["reliability"])
    png, svg = figures.save(figure, tmp_path / "new" / "curves")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert ">mend</text>" in svg.read_text(encoding="utf-8")
