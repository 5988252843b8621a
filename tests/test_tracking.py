"""What a run leaves behind, whether it finishes, fails, is interrupted or goes on."""

import csv
import gzip
import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from editkit.errors import UsageError
from editkit.tracking import COLUMNS, NoTracker, RunFolder, WandbTracker

WANDB = Path(sys.executable).parent / "wandb"


@dataclass(frozen=True)
class Answer:
    request: str
    task: str
    scores: dict[str, float]


ANSWERS = [Answer(f"record {i}", "récent", {"": i / 10, "exact": 0.0}) for i in range(10)]


def row(editor: str, mean: float = 0.5) -> dict[str, Any]:
    return dict(
        zip(COLUMNS, (editor, "recent", "single", "generative", "locality", mean, 0.25, 0.75, 10, 0), strict=True)
    )


def lines(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def records(folder: RunFolder) -> list[dict[str, Any]]:
    with gzip.open(folder.path / "records.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def state(path: Path) -> dict[str, Any]:
    return json.loads((path / "status.json").read_text())


def test_a_finished_run_leaves_every_file(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "a" / "b", "seed: 0\n") as folder:
        assert state(folder.path)["state"] == "running"
        with NoTracker().follow(folder, "mend", "title", {}) as log:
            log.log({"loss": 1.0, "odd": float("nan")}, 0)
            log.log({"loss": 0.5}, 10)
            log.finish([row("mend", 1 / 3)], ANSWERS)
        logging.getLogger("editkit.anything").info("said in passing")
    assert state(folder.path)["state"] == "finished" and state(folder.path)["ended"]
    assert (folder.path / "config.yaml").read_text() == "seed: 0\n"
    assert "said in passing" in (folder.path / "run.log").read_text()
    assert lines(folder) == [
        {"editor": "mend", "step": 0, "loss": 1.0, "odd": None},
        {"editor": "mend", "step": 10, "loss": 0.5},
    ]
    with (folder.path / "results.csv").open() as file:
        assert file.readline().strip() == "editor,task,regime,protocol,metric,mean,ci_low,ci_high,n,seed"
        assert next(csv.reader(file))[5] == "0.333333"
    assert records(folder)[3] == {
        "editor": "mend",
        "request": "record 3",
        "task": "récent",
        "scores": {"": 0.3, "exact": 0.0},
    }
    assert folder.checkpoints.is_dir()
    assert not list(folder.path.rglob("*.part"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ValueError("a bug"), "failed"), (UsageError("bad input"), "failed"), (KeyboardInterrupt(), "interrupted")],
)
def test_an_unfinished_run_says_why(tmp_path: Path, error: BaseException, expected: str) -> None:
    with pytest.raises(type(error)), RunFolder(tmp_path, ""):
        raise error
    found = state(tmp_path)
    assert found["state"] == expected
    assert type(error).__name__ in found["why"] and str(error) in found["why"]
    assert ("Traceback" in (tmp_path / "run.log").read_text()) == isinstance(error, ValueError)


def test_a_folder_is_not_shared_by_two_runs(tmp_path: Path) -> None:
    with RunFolder(tmp_path, "first") as folder:
        folder.add("mend", [row("mend")], ANSWERS)
    with pytest.raises(UsageError, match="holds a run that is finished: set run.dir to a new folder"):
        RunFolder(tmp_path, "second").__enter__()
    assert (tmp_path / "config.yaml").read_text() == "first"


def test_a_folder_where_nothing_came_out_is_used_again(tmp_path: Path) -> None:
    with pytest.raises(UsageError), RunFolder(tmp_path, "first") as folder:
        folder.log({"loss": 1.0}, 0, "mend")
        raise UsageError("bad input")
    with RunFolder(tmp_path, "second"):
        pass
    assert (tmp_path / "config.yaml").read_text() == "second"
    assert not (tmp_path / "metrics.jsonl").exists()
    (tmp_path / "checkpoints" / "mend").mkdir()
    (tmp_path / "checkpoints" / "mend" / "last.safetensors").write_text("")
    with pytest.raises(UsageError):
        RunFolder(tmp_path, "third").__enter__()


def test_resuming_keeps_what_is_done(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path, "first") as folder:
        folder.add("mend", [row("mend")], ANSWERS)
        folder.add("ke", [row("ke")], ANSWERS)
        for step in (10, 20, 30):
            folder.log({"loss": 1.0}, step, "mend")
            folder.log({"loss": 1.0}, step, "ke")
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"editor": "ke", "st')  # killed in the middle of a line
        raise KeyboardInterrupt
    started = state(tmp_path)["started"]
    with RunFolder(tmp_path, "second", resume=True) as folder:
        folder.rewind("ke", 20)
        folder.add("ke", [row("ke", 0.9)], ANSWERS[:2])
    assert (tmp_path / "config.yaml").read_text() == "first"
    assert state(tmp_path)["started"] == started and state(tmp_path)["state"] == "finished"
    assert [(found["editor"], found["mean"]) for found in folder.results()] == [("mend", "0.5"), ("ke", "0.9")]
    assert [found["editor"] for found in records(folder)] == ["mend"] * 10 + ["ke"] * 2
    assert [(point["editor"], point["step"]) for point in lines(folder)] == [
        ("mend", 10),
        ("ke", 10),
        ("mend", 20),
        ("ke", 20),
        ("mend", 30),
    ]


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        with RunFolder(tmp_path / name, "") as folder:
            folder.add("mend", [row("mend")], ANSWERS)
        made.append((folder.path / "records.jsonl.gz").read_bytes())
    assert made[0] == made[1]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    with RunFolder(tmp_path, "") as folder:
        folder.add("mend", [row("mend")], ANSWERS)
        before = (tmp_path / "results.csv").read_text()
        with pytest.raises(ValueError):
            folder.add("ke", [{**row("ke"), "no such column": 1}], ANSWERS)
    assert (tmp_path / "results.csv").read_text() == before
    assert not list(tmp_path.glob("*.part"))


def test_a_full_disk_is_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage())
    with pytest.raises(UsageError, match="The disk of .* is full: free some space"):
        RunFolder(tmp_path, "").__enter__()


def test_a_folder_that_cannot_be_made_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Cannot write .*set run.dir elsewhere"):
        RunFolder(tmp_path / "file" / "run", "").__enter__()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield home


def inspected(run: Path) -> list[dict[str, Any]]:
    told = subprocess.run([WANDB, "leet", "inspect", "--json", run], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in told.stdout.splitlines()]


def test_wandb_has_config_curves_summary_and_table(
    tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = WandbTracker(project="p", group="study", tags=["one"], table_rows=4)
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path / "run", "") as folder:
        with tracker.follow(folder, "mend", "multi · tiny", {"trainer": {"steps": 3}}) as log:
            for step in range(3):
                log.log({"loss": 1.0 - step}, step)
            log.finish([row("mend", 0.25)], ANSWERS)
        with tracker.follow(folder, "ke", "multi · tiny", {}) as log:
            log.log({"loss": 1.0}, 0)
            raise KeyboardInterrupt
    out, err = capfd.readouterr()
    assert out == err == ""
    assert not list(home.iterdir())
    runs = {}
    for path in (folder.path / "wandb").glob("offline-run-*"):
        found = inspected(path)
        runs[next(record["run"]["job_type"] for record in found if record["type"] == "run")] = (path, found)
    path, found = runs["mend"]
    about = next(record["run"] for record in found if record["type"] == "run")
    assert about["config"]["update"]["trainer"] == {"steps": 3}
    assert (about["display_name"], about["run_group"], about["tags"]) == ("mend · multi · tiny", "study", ["one"])
    curve = [record["history"]["item"] for record in found if record["type"] == "history"]
    assert [point["loss"] for point in curve if "loss" in point] == [1, 0, -1]
    summary: dict[str, Any] = {}
    for record in found:
        summary.update(record.get("summary", {}).get("update", {}))
    assert summary["recent/generative/locality"] == 0.25
    table = json.loads(next(path.rglob("records*.table.json")).read_text())
    assert table["columns"] == ["request", "task", "scores"]
    assert [cells[0] for cells in table["data"]] == ["record 0", "record 3", "record 6", "record 9"]
    assert next(r["exit"]["exit_code"] for r in found if r["type"] == "exit") == 0
    assert next(r["exit"]["exit_code"] for r in runs["ke"][1] if r["type"] == "exit") == 130


def test_a_run_that_goes_on_has_its_whole_curve_on_wandb(tmp_path: Path, home: Path) -> None:
    tracker = WandbTracker(table_rows=0)
    for steps in ((1, 2), (2, 3)):  # stopped after step 2, gone on with from a checkpoint at 1
        with RunFolder(tmp_path / "run", "", resume=True) as folder, tracker.follow(folder, "mend", "", {}) as log:
            folder.rewind("mend", steps[0] - 1)
            for step in steps:
                log.log({"loss": float(step)}, step)
            log.finish([row("mend")], [])
        time.sleep(1)  # W&B names its files by the second
    newest = max((folder.path / "wandb").glob("offline-run-*"))
    curve = [record["history"]["item"] for record in inspected(newest) if record["type"] == "history"]
    assert [(point["step"], point["loss"]) for point in curve] == [(1, 1), (2, 2), (3, 3)]


def test_two_processes_cannot_have_one_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path, ""), pytest.raises(UsageError, match="holds a run that is running: wait for its end"):
        RunFolder(tmp_path, "", resume=True).__enter__()
    assert state(tmp_path)["state"] == "finished"


def test_a_killed_run_is_not_written_over(tmp_path: Path) -> None:
    with RunFolder(tmp_path, "first") as folder:
        folder.add("mend", [row("mend")], ANSWERS)
    (tmp_path / "status.json").write_text(json.dumps(state(tmp_path) | {"state": "running"}))
    with pytest.raises(UsageError, match="holds a run that is killed: set run.dir"):
        RunFolder(tmp_path, "second").__enter__()
    with RunFolder(tmp_path, "second", resume=True):
        pass


def test_wandb_online_needs_a_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="needs a W&B key: run `wandb login`"):
        WandbTracker(mode="online")
    monkeypatch.setattr("editkit.tracking.has_key", lambda: True)
    WandbTracker(mode="online")


def test_disabled_wandb_leaves_the_folder_alone(tmp_path: Path) -> None:
    with RunFolder(tmp_path, "") as folder, WandbTracker(mode="disabled").follow(folder, "mend", "", {}) as log:
        log.log({"loss": 1.0}, 0)
    assert lines(folder)[0]["loss"] == 1.0
    assert not (tmp_path / "wandb").exists()
