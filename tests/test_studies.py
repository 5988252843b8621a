"""Studies: a table's numbers are those of its runs, a run is made once, and what fails is said in a sentence."""

import csv
import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

import hydra
import pytest
from omegaconf import OmegaConf

import editkit
from editkit import configs, studies
from editkit.errors import UsageError
from editkit.studies import Study, paired, results, scores
from editkit.tracking import COLUMNS

ROOT = Path(editkit.__file__).parents[1]
PROGRAMS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))
STUDIES = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
VALUES = {0: {"recent": (0.5, 0.25), "zsre": (1.0, 0.75)}, 1: {"recent": (0.75, 0.5), "zsre": (1.0, 1.0)}}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """A run of two editors for each of two seeds, each of two edits a task."""
    made = []
    for seed, tasks in VALUES.items():
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        rows, records = [], []
        for task, means in tasks.items():
            for editor, mean in zip(("instructedit", "mend"), means, strict=True):
                for protocol, metric in (
                    ("teacher_forced", "reliability"),
                    ("teacher_forced", "fluency"),
                    ("cost", "s"),
                ):
                    numbers = (mean, mean - 0.1, mean + 0.1, 2, seed)
                    rows.append((editor, task, "single", protocol, metric, *numbers))
                for edit, value in enumerate((mean - 0.25, mean + 0.25)):
                    fields = {"task": task, "protocol": "teacher_forced", "measure": "reliability", "asked": "same"}
                    texts = dict.fromkeys(("category", "prompt", "answer", "base", "edited", "regime"), "")
                    records.append({**fields, **texts, "editor": editor, "request": f"{edit}", "scores": {"": value}})
        with (folder / "results.csv").open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "records.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        made.append(folder)
    return made


def test_a_table_holds_the_numbers_of_its_runs(folders: list[Path], tmp_path: Path) -> None:
    study = Study("any", tmp_path, ("scale=tiny",), (0, 1))
    rows = scores({"both": folders, "first": folders[:1]}, ("reliability",))
    for row in rows:
        runs = folders if row["condition"] == "both" else folders[:1]
        same = [r for f in runs for r in results(f) if all(r[k] == row[k] for k in ("editor", "task", "metric"))]
        for number in ("mean", "ci_low", "ci_high"):
            assert row[number] == pytest.approx(fmean(float(r[number]) for r in same), abs=1e-12)
        assert (row["sd"] == "") == (row["condition"] == "first")
    study.write(rows, ("condition", "task", "editor"), study.caption("What was run."))
    with (tmp_path / "any" / "any.csv").open(newline="") as file:
        assert [float(row["mean"]) for row in csv.DictReader(file)] == [row["mean"] for row in rows]
    lines = (tmp_path / "any" / "any.md").read_text().splitlines()
    assert lines[0] == "| condition | task | editor | reliability |"
    assert "| both | recent | instructedit | 62.5 ±10.0 (17.7) |" in lines
    assert "| first | recent | instructedit | 50.0 ±10.0 |" in lines
    assert lines[-1] == "What was run. `python experiments/any.py scale=tiny seeds=0,1`; 2 seeds."
    assert r"first & recent & instructedit & 50.0 $\pm$10.0 \\" in (tmp_path / "any" / "any.tex").read_text()


def test_differences_are_of_the_same_edits_over_seeds(folders: list[Path]) -> None:
    found = {row["task"]: row for row in paired(folders, "instructedit", "mend", ("reliability", "locality"))}
    for task, row in found.items():
        assert row["mean"] == pytest.approx(fmean(VALUES[seed][task][0] - VALUES[seed][task][1] for seed in VALUES))
        assert (row["metric"], row["n"]) == ("reliability", 2)
    assert set(found) == {"recent", "zsre"}


FAST = ["debug=fast", "editor=ft_l", "tasks=zsre", "tracker.mode=disabled"]


def test_a_part_is_run_once_and_a_failure_is_said(tmp_path: Path) -> None:
    study = Study.of("hold_out", [*FAST, "baselines=none", f"folder={tmp_path}", "seeds=0"])
    (folder,) = study.over_seeds({"one": []})["one"]
    before = (folder / "status.json").stat().st_mtime_ns
    assert study.over_seeds({"one": []}) == {"one": [folder]}
    assert (folder / "status.json").stat().st_mtime_ns == before
    assert {row["editor"] for row in results(folder)} == {"ft_l"}
    with pytest.raises(
        UsageError, match=r"hold_out, two failed: evaluator.only is 'none', but must be one of .* \(all"
    ):
        study.run({"two": ["evaluator.only=[none]"]})


def test_a_part_of_changed_files_is_refused(tmp_path: Path) -> None:
    study = Study.of("hold_out", [*FAST, "baselines=none", f"folder={tmp_path}"])
    folder = study.part("one", ["seed=0"])
    with configs.sources():
        now = hydra.compose("config", [*FAST, "baselines=none", "seed=0", "experiment=hold_out"])
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps({"state": "finished"}))
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(now, resolve=True))
    assert study.run({"one": ["seed=0"]}) == {"one": folder}
    now.trainer.steps += 1
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(now, resolve=True))
    with pytest.raises(UsageError, match="was begun before a file of conf/ was changed"):
        study.run({"one": ["seed=0"]})


def test_other_settings_are_another_folder(tmp_path: Path) -> None:
    study = Study.of("hold_out", [f"folder={tmp_path}"])
    assert study.part("a", ["seed=0"]) != study.part("a", ["seed=1"])
    assert study.part("a") != Study.of("hold_out", [f"folder={tmp_path}", "trainer.steps=3"]).part("a")
    assert study.part("a") == Study.of("hold_out", [f"folder={tmp_path}", "jobs=2", "seeds=1,2"]).part("a")


@pytest.mark.parametrize("word", ["tiny", "seeds=first", "jobs=two"])
def test_a_word_that_cannot_be_read_is_refused(word: str) -> None:
    program = ROOT / "experiments" / "balance.py"
    process = subprocess.run([sys.executable, program, word], capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr.startswith("balance: ") and "Traceback" not in process.stderr


def test_what_figures_need_is_asked_for_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        studies.main(lambda study: pytest.fail("it ran"), "hold_out", [f"folder={tmp_path}"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "hold_out: A study's figures need matplotlib and scikit-learn: pip install 'editkit[report]'\n"
    )


@pytest.mark.parametrize("program", ["hold_out", "all"])
def test_what_ends_a_study_ends_its_runs(program: str, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "experiments" / f"{program}.py", "scale=tiny", "seeds=0", f"folder={tmp_path}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        begun = time.monotonic()
        while not (found := list(tmp_path.glob("**/runs/*/status.json"))):
            assert process.poll() is None and time.monotonic() < begun + 120
            time.sleep(0.2)
        process.terminate()
        told = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and b"interrupted; the same command goes on" in told and b"Trace" not in told
    assert json.loads(found[0].read_text())["state"] == "interrupted"


def test_every_experiment_has_its_program_and_is_among_all_of_them() -> None:
    assert set(STUDIES) <= set(PROGRAMS)
    listed = (ROOT / "experiments" / "all.py").read_text()
    assert all(f'"{name}",' in listed for name in STUDIES)
