"""Tables from results alone: what is joined, what is kept apart, what is marked."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from editkit.errors import UsageError
from editkit.reporting import table
from editkit.reporting.results import COLUMNS, read

TASKS = ("recent", "counterfact", "convsent", "zsre")
METRICS = ("reliability", "reliability_bare", "generalization", "locality", "portability", "fluency", "locality_kl")


def write(folder: Path, rows: list[tuple[Any, ...]], **config: Any) -> Path:
    folder.mkdir()
    with (folder / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def row(editor: str, mean: float, metric: str = "reliability", task: str = "recent", seed: int = 0) -> tuple[Any, ...]:
    return (editor, task, "single", "teacher_forced", metric, mean, mean - 0.02, mean + 0.04, 100, seed)


def spread(metric: str, share: float) -> tuple[float, float, float]:
    """Mean and interval, as wide as such numbers get."""
    return (540 * share, 500, 720) if metric == "fluency" else (share, 0.25, 0.75)


def full(editors: tuple[str, ...]) -> list[tuple[Any, ...]]:
    return [
        (editor, task, "single", protocol, metric, *spread(metric, 1.0 - 0.1 * index), 100, 0)
        for index, editor in enumerate(editors)
        for task in TASKS
        for protocol in ("teacher_forced", "generative")
        for metric in METRICS
    ]


def printed(renderable: Any, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_one_run_is_shown_with_half_its_interval(tmp_path: Path) -> None:
    scores = read([write(tmp_path / "a", [row("mend", 0.905), row("ft_l", 0.5)])])
    assert [(score.editor, score.mean, score.n, score.seeds) for score in scores] == [
        ("mend", 0.905, 100, (0,)),
        ("ft_l", 0.5, 100, (0,)),
    ]
    shown = printed(table.comparison(scores))
    assert "90.5 ±3.0*" in shown and "50.0 ±3.0\n" in shown


def test_seeds_are_averaged_and_counted(tmp_path: Path) -> None:
    for seed, mean in enumerate((0.8, 0.9, 1.0)):
        config = {"seed": seed, "trainer": {"seed": seed, "steps": 5}, "run": {"dir": str(seed)}}
        write(tmp_path / str(seed), [row("mend", mean, seed=seed)], **config)
    (score,) = read([tmp_path])
    assert score.mean == pytest.approx(0.9) and score.half == pytest.approx(0.1) and score.seeds == (0, 1, 2)
    assert "means over seeds 0, 1, 2, ± standard deviation" in printed(table.comparison([score]))


def test_runs_under_other_conditions_are_kept_apart(tmp_path: Path) -> None:
    for steps in (5, 50):
        write(tmp_path / str(steps), [row("mend", 0.8)], trainer={"steps": steps, "batch": 2})
    assert sorted(score.condition for score in read([tmp_path])) == ["trainer.steps=5", "trainer.steps=50"]


def test_editors_of_one_name_with_other_settings_are_kept_apart(tmp_path: Path) -> None:
    write(tmp_path / "a", [row("mend", 0.8), row("ft_l", 0.1)], editor={"rank": 1}, baselines={"ft_l": {"lr": 1}})
    write(tmp_path / "b", [row("mend", 0.9)], editor={"rank": 2}, baselines={})
    assert [(score.editor, score.condition) for score in read([tmp_path])] == [
        ("mend rank=1", ""),
        ("ft_l", ""),
        ("mend rank=2", ""),
    ]


def test_protocols_are_never_mixed(tmp_path: Path) -> None:
    write(tmp_path / "a", full(("mend", "ft_l")))
    panels = table.panels(read([tmp_path]))
    assert [panel.protocol for panel in panels] == ["teacher_forced", "generative"]
    for panel in panels:
        assert {score.protocol for block in panel.blocks for score in block.scores} == {panel.protocol}


def test_the_best_is_marked_unless_all_are_equal(tmp_path: Path) -> None:
    rows = [
        row(e, m, metric)
        for metric, pair in (("locality", (0.5, 0.9)), ("locality_kl", (0.5, 0.9)), ("reliability", (0.9, 0.9001)))
        for e, m in zip(("mend", "ke"), pair, strict=True)
    ]
    (block,) = table.panels(read([write(tmp_path / "a", rows)]), everything=True)[0].blocks
    best = {(score.editor, score.metric) for score in block.scores if block.is_best(score)}
    assert best == {("ke", "locality"), ("mend", "locality_kl")}


def test_what_was_not_trained_on_is_marked(tmp_path: Path) -> None:
    write(tmp_path / "a", full(("mend",)), tasks={"train": ["recent", "counterfact", "convsent"]})
    shown = printed(table.comparison(read([tmp_path])))
    assert "zsre †" in shown and "recent †" not in shown
    assert "† not trained on" in shown


def test_four_editors_fit_in_a_hundred_columns(tmp_path: Path) -> None:
    write(tmp_path / "a", full(("instructedit", "mend", "ft_l", "ft_m")))
    shown, wide = (printed(table.comparison(read([tmp_path]), True), width) for width in (100, 300))
    assert shown == wide, "a line was folded or cut"


def test_the_default_shows_six_measures_and_all_shows_the_rest(tmp_path: Path) -> None:
    scores = read([write(tmp_path / "a", full(("mend", "ke")))])
    assert {metric for panel in table.panels(scores) for metric in panel.metrics} == set(METRICS) - {"locality_kl"}
    assert {metric for panel in table.panels(scores, True) for metric in panel.metrics} == set(METRICS)


def test_text_forms_hold_the_same_numbers(tmp_path: Path) -> None:
    scores = read([write(tmp_path / "a", [row("ft_l", 0.5), row("mend", 0.905)])])
    assert "| recent | mend | **90.5** ±3.0 |" in table.text(scores, "md")
    assert r"recent & ft\_l & 50.0 $\pm$ 3.0 \\" in table.text(scores, "latex")
    (first, second) = csv.DictReader(io.StringIO(table.text(scores, "csv")))
    assert (first["editor"], first["mean"], second["mean"]) == ("ft_l", "0.5", "0.905")


def test_missing_or_malformed_results_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No results.csv lies under"):
        read([tmp_path])
    (tmp_path / "results.csv").write_text("editor,task\nmend,recent\n")
    with pytest.raises(UsageError, match="has no column regime, protocol"):
        read([tmp_path])
