"""What a figure shows is what its rows hold."""

from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

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
    with pytest.raises(UsageError, match=r"regime.along=\[1,10\]"):
        figures.sequences([row("mend", 100, 0.5)])


def scored(metric: str, mean: float, **keys: object) -> dict[str, object]:
    return {"metric": metric, "mean": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.05, **keys}


def lines(panel: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in panel.get_lines()}


def test_a_task_looks_the_same_in_every_figure() -> None:
    tasks = [["zsre", "recent"], ["mine", "recent", "counterfact", "convsent", "zsre"]]
    points = [[{"panel": "a", "task": task, "x": 0.0, "y": 1.0} for task in each] for each in tasks]
    shown = [{dots.get_label(): dots for dots in figures.maps(rows).axes[0].collections} for rows in points]
    colours = [{task: to_hex(dots.get_facecolor()[0]) for task, dots in each.items()} for each in shown]
    shapes = [{task: dots.get_paths()[0].vertices.tobytes() for task, dots in each.items()} for each in shown]
    for task in tasks[0]:
        assert colours[0][task] == colours[1][task]
        assert shapes[0][task] == shapes[1][task]
    assert len(set(colours[1].values())) == len(set(shapes[1].values())) == 5
    bars = figures.conditions([scored("probe", 0.5, condition="a", task="zsre")], ["probe"]).axes[0]
    assert to_hex(bars.get_lines()[0].get_color()) == colours[0]["zsre"]


def test_a_map_has_every_point_and_its_note() -> None:
    rows = [{"panel": name, "task": t, "x": x, "y": -x} for name in "abcde" for t in ("recent", "zsre") for x in (1, 2)]
    figure = figures.maps(rows, {"b": "silhouette 0.10"})
    assert [panel.get_title() for panel in figure.axes] == list("abcde")
    assert [panel.get_xlabel() for panel in figure.axes] == ["", "silhouette 0.10", "", "", ""]
    for panel in figure.axes:
        assert [dots.get_offsets().tolist() for dots in panel.collections] == [[[1, -1], [2, -2]]] * 2
        assert not list(panel.get_xticks()) and not list(panel.get_yticks())
    rows_of_one = figures.maps(rows, across=1).axes[0].get_subplotspec().get_gridspec()
    assert (rows_of_one.nrows, rows_of_one.ncols) == (5, 1)


def test_conditions_are_points_with_intervals() -> None:
    means = {("one", "recent"): 0.2, ("two", "recent"): 0.6, ("two", "zsre"): 0.4}
    rows = [scored("probe", mean, condition=c, task=t, chance=0.5) for (c, t), mean in means.items()]
    rows += [scored("silhouette", -0.2, condition="two", task="zsre")]
    first, second = figures.conditions(rows, ["probe", "silhouette"]).axes
    shown = lines(first)
    assert shown["recent"][0] == [20, 60] and shown["zsre"][0] == [40] and shown["chance"][0] == [50, 50, 50]
    assert [round(y) for y in shown["recent"][1]] == [0, 1]
    assert shown["recent"][1][1] < shown["zsre"][1][0]
    ends = [bar[:, 0].tolist() for bar in first.collections[0].get_segments()]
    assert ends == [[pytest.approx(10), pytest.approx(25)], [pytest.approx(50), pytest.approx(65)]]
    assert [text.get_text() for text in first.get_yticklabels()] == ["one", "two"]
    assert lines(second)["zsre"][0] == [-0.2] and "chance" not in lines(second)
    assert (first.get_xlabel(), second.get_xlabel()) == ("linear probe (%)", "silhouette")


def test_lines_rise_with_the_number_of_tasks() -> None:
    rows = [
        scored("reliability", n / 4, training_tasks=str(n), editor=editor) for n in (3, 1, 2) for editor in ("a", "b")
    ]
    panel = figures.scaling(rows, ["reliability"]).axes[0]
    assert {label: y for label, (_, y) in lines(panel).items()} == {"a": [25, 50, 75], "b": [25, 50, 75]}
    assert [round(x) for x in lines(panel)["a"][0]] == [1, 2, 3] and list(panel.get_xticks()) == [1, 2, 3]
    assert panel.get_ylabel() == "reliability (%)"


def test_a_search_shows_candidates_and_the_best_so_far() -> None:
    scores = {0: [0.3, 0.2], 1: [0.5, 0.1], 2: [0.4]}
    rows = [{"task": "recent", "round": made, "score": score} for made, found in scores.items() for score in found]
    best, candidates = figures.rounds(rows).axes[0].get_lines()
    assert list(best.get_ydata()) == [0.3, 0.5, 0.5] and best.get_drawstyle() == "steps-post"
    assert list(candidates.get_ydata()) == [0.3, 0.2, 0.5, 0.1, 0.4]


def test_a_matrix_says_its_numbers_legibly() -> None:
    tasks = ("recent", "convsent", "zsre")
    rows = [
        scored("locality", (3 * line + column) / 8, task=task, other_task=other)
        for line, task in enumerate(tasks)
        for column, other in enumerate(tasks)
    ]
    panel, bar = figures.matrix(rows[1:], "locality").axes
    image = panel.images[0]
    cells = {text.get_position(): text for text in panel.texts}
    assert (0, 0) not in cells and len(cells) == 8
    for (column, line), text in cells.items():
        value = 100 * (3 * line + column) / 8
        assert text.get_text() == f"{value:.0f}" and image.get_array()[line, column] == value
        behind, ink = figures.luminance(image.to_rgba(value)), float(text.get_color() == "white")
        assert (max(behind, ink) + 0.05) / (min(behind, ink) + 0.05) > 4.5  # WCAG AA
    assert bar.get_ylabel() == "locality (%)" and image.get_clim() == (0, 100)


def test_panels_of_a_matrix_share_their_colours() -> None:
    rows = [scored("cosine", mean, task="a", other_task="a", panel=name) for name, mean in (("x", -0.1), ("y", 0.3))]
    panels = figures.matrix(rows, "cosine").axes[:2]
    assert [panel.get_title() for panel in panels] == ["x", "y"]
    assert {panel.images[0].get_clim() for panel in panels} == {(-0.1, 0.3)}
    assert [panel.texts[0].get_text() for panel in panels] == ["-0.10", "0.30"]


def drawn(name: str, width: float) -> Figure:
    tasks = (*figures.TASKS, "all")
    many = [scored("probe", 0.5, condition=c, task=t, chance=0.2) for t in tasks for c in ("MEND", "InstructEdit")]
    dots = [{"panel": "MEND, multi-task", "task": t, "x": i, "y": i * i} for i, t in enumerate(tasks)]
    grown = [
        scored("reliability", n / 4, training_tasks=n, editor=e) for n in (1, 2, 3) for e in ("instructedit", "ke")
    ]
    return {
        "maps": lambda: figures.maps(dots, {"MEND, multi-task": "silhouette 0.10, probe 90 %"}, width),
        "conditions": lambda: figures.conditions(many, ["probe"], width),
        "scaling": lambda: figures.scaling(grown, ["reliability"], width),
        "rounds": lambda: figures.rounds([{"task": "recent", "round": i, "score": i} for i in range(20)], width),
        "matrix": lambda: figures.matrix([{**row, "other_task": "counterfact"} for row in many], "probe", width=width),
    }[name]()


@pytest.mark.parametrize("width", [figures.COLUMN, figures.PAGE])
@pytest.mark.parametrize("name", ["maps", "conditions", "scaling", "rounds", "matrix"])
def test_nothing_is_cut_off(name: str, width: float) -> None:
    figure = drawn(name, width)
    figure.draw_without_rendering()
    page, needed = figure.bbox, figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert figure.get_figwidth() == width
    assert page.x0 <= needed.x0 and needed.x1 <= page.x1 and page.y0 <= needed.y0 and needed.y1 <= page.y1
    sizes = {text.get_fontsize() for panel in figure.axes for text in (panel.title, panel.xaxis.label, *panel.texts)}
    assert min(sizes) >= 7


def test_a_figure_is_saved_as_png_and_svg(tmp_path: Path) -> None:
    figure = figures.sequences([row("mend", 1, 1.0), row("mend", 10, 0.5)], ["reliability"])
    png, svg = figures.save(figure, tmp_path / "new" / "curves")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert ">mend</text>" in svg.read_text(encoding="utf-8")


def test_a_caption_lies_beside_its_figure(tmp_path: Path) -> None:
    figure = figures.maps([{"panel": "a", "task": "recent", "x": 0, "y": 1}])
    made = figures.save(figure, tmp_path / "map", "Four edits of MEND.")
    assert [path.name for path in made] == ["map.png", "map.svg", "map.txt"]
    assert made[-1].read_text(encoding="utf-8") == "Four edits of MEND.\n"
