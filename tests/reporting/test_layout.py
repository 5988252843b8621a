"""A sweep on W&B, read back, and the workspace that shows it: what the local page shows, under the same names."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import editkit
from editkit.reporting import page, runs
from editkit.reporting.layout import HEADINGS, layout
from editkit.reporting.runs import Found

WANDB = Path(sys.executable).parent / "wandb"
WORKSPACE = Path(editkit.__file__).parents[1] / "experiments" / "workspace.py"


@dataclass
class Logged:
    """A W&B run as its offline file has it."""

    about: dict[str, Any]
    config: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, Any]]
    step_metrics: list[tuple[str, str]]


def logged(path: Path) -> Logged:
    told = subprocess.run([WANDB, "leet", "inspect", "--json", path], capture_output=True, text=True, check=True)
    records: dict[str, list[dict[str, Any]]] = {}
    for line in told.stdout.splitlines():
        record = json.loads(line)
        records.setdefault(record["type"], []).append(record.get(record["type"]) or {})
    about = records["run"][0]
    summary: dict[str, Any] = {}
    for update in records["summary"]:
        summary.update(update.get("update", {}))
    steps = [(metric["glob_name"], metric["step_metric"]) for metric in records["metric"]]
    history = [record["item"] for record in records["history"]]
    return Logged(about, about["config"]["update"], summary, history, steps)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Found], dict[str, Logged]]:
    """A sweep of one job with two editors: its folder, its runs, and what W&B has of each editor."""
    folder = tmp_path_factory.mktemp("dashboards") / "sweep"
    sequence = ["regime=sequential", "regime.length=2", "regime.along=[1]"]
    words = [
        "editor=mend",
        "baselines=ft_l",
        "seed=3",
        "debug=fast",
        "tasks.test=[recent]",
        *sequence,
        f"run.dir={folder}",
    ]
    command = [sys.executable, "-m", "editkit", "run", "-m", *words]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    found = [logged(path) for path in folder.glob("*/wandb/offline-run-*")]
    return folder, runs.find([folder]), {run.config["editor_name"]: run for run in found}


def test_runs_have_their_group_job_name_and_settings(swept: Any) -> None:
    folder, _, found = swept
    assert sorted(found) == ["ft_l", "mend"]
    for editor, run in found.items():
        assert run.about["run_group"] == f"editkit · {folder.name}"
        assert run.about["job_type"] == editor
        assert run.about["display_name"] == f"{editor} · multi · tiny · seed 3"
        assert [run.config[key] for key in ("task_mix", "model_name", "seed")] == ["multi", "tiny", 3]
        assert "baselines" not in run.config
    assert found["ft_l"].config["editor"]["loss"] == "prompt_last" and "rank" in found["mend"].config["editor"]


def test_curves_scores_figures_and_records_are_there(swept: Any) -> None:
    _, (one,), found = swept
    assert found["mend"].step_metrics == [("*", "step")]
    assert [point["step"] for point in found["mend"].history if "train/loss" in point] == [1, 2]
    for row in one.run.rows:
        if row["regime"] == "sequential 2":
            key = f"{row['task']}/{row['protocol']}/{row['metric']}"
            assert found[row["editor"]].summary[key] == pytest.approx(float(row["mean"]), abs=1e-6)
    for path in one.folder.glob("wandb/offline-run-*"):
        assert list(path.glob("files/media/images/figures/sequence*.png"))
        assert json.loads(next(path.glob("files/media/table/records*.json")).read_text())["data"]


def test_everything_in_the_layout_is_there(swept: Any) -> None:
    _, runs_found, found = swept
    keys = {key for section in layout(runs_found) for panel in section.panels for key in panel.keys}
    there = {key for run in found.values() for point in [run.summary, *run.history] for key in point}
    assert {key for key in keys if key not in there and f"{key}._type" not in there} == set()


def test_the_page_has_the_same_parts_in_the_same_order(swept: Any) -> None:
    _, found, _ = swept
    text = page.html(found)
    places = [text.index(f">{heading}</h2>") for heading in HEADINGS.values()]
    assert places == sorted(places)
    assert list(dict.fromkeys(section.title.split(":")[0] for section in layout(found))) == list(HEADINGS.values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # W&B's own, on import
def test_the_workspace_has_a_section_a_part(swept: Any) -> None:
    pytest.importorskip("wandb_workspaces", reason="needs pip install 'editkit[workspaces]'")
    spec = importlib.util.spec_from_file_location("workspace", WORKSPACE)
    assert spec and spec.loader
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    folder, found, _ = swept
    made = program.workspace(found, "me", "editkit", "Comparison")
    assert [section.name for section in made.sections] == [section.title for section in layout(found)]
    written = made._to_model().spec.model_dump_json(by_alias=True)
    for section in layout(found):
        for panel in section.panels:
            assert all(key in written for key in panel.keys)
    assert f"editkit · {folder.name}" in str(json.loads(written)["section"]["runSets"])


@pytest.mark.parametrize("words", [[], ["entity=me"], [".", "nope=1", "entity=me"]])
def test_a_workspace_of_nothing_is_refused(words: list[str]) -> None:
    told = subprocess.run([sys.executable, WORKSPACE, *words], capture_output=True, text=True)
    assert told.returncode == 2 and told.stderr.startswith("workspace: name folders of runs")
