"""Sweeps: jobs that end in every way, folders that are found again, and launchers, those that are installed."""

import csv
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from editkit import cli, status, sweeps
from editkit.tracking import RunFolder, rewrite

# Stands in for a job's process: what it does is in the file "orders" beside the job's folder, by seed, once.
STAND_IN = """
import json, os, pathlib, signal, sys, time, yaml
from editkit.tracking import RunFolder
folder = pathlib.Path(sys.argv[1])
seed = yaml.safe_load((folder / "config.yaml").read_text())["seed"]
orders = folder.parent / f"order{seed}"
order = orders.read_text() if orders.exists() else "finish"
orders.unlink(missing_ok=True)
if order == "break":
    sys.exit(1)
signal.signal(signal.SIGTERM, signal.default_int_handler)
with RunFolder(folder, "", resume=True):
    with (folder / "runs").open("a") as runs:
        runs.write("x")
    (folder / "threads").write_text(os.environ.get("OMP_NUM_THREADS", ""))
    if order == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "wait":
        time.sleep(60)
    if order == "fail":
        raise ValueError("a bug")
"""


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """`editkit run -m` into the folder ``sweep``, with stand-ins for the jobs; gives the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["editkit"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sweeps, "command", lambda folder: [sys.executable, "-c", STAND_IN, str(folder)])
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda *words: cli.main(["run", "-m", "run.dir=sweep", *words])
    # Hydra's log of sweeps goes to this test's stderr.
    root.handlers[:], root.level = handlers, level


def order(**by_seed: str) -> None:
    for seed, what in by_seed.items():
        Path("sweep").mkdir(exist_ok=True)
        Path("sweep", seed.replace("seed", "order")).write_text(what)


def states() -> dict[str, tuple[str, str]]:
    """By editor and seed: the state, and how often the job was begun."""
    return {
        folder.name.rpartition("-")[0]: (
            status.of(folder)["state"],
            (folder / "runs").read_text() if (folder / "runs").exists() else "",
        )
        for folder in sorted(Path("sweep").iterdir())
        if folder.is_dir()
    }


def test_every_job_has_a_folder_named_by_its_settings(sweep: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("editor=mend,ft_l", "seed=0,1") == 0
    assert states() == {f"{e}-seed{s}": ("finished", "x") for e in ("mend", "ft_l") for s in (0, 1)}
    assert (
        f"4 jobs have finished; compare all with: editkit report {Path('sweep').absolute()}" in capsys.readouterr().out
    )


def test_the_cores_are_divided_among_jobs(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    sweeps.run_job(made("alone"), "seed: 0", threads=3)
    assert Path("alone/threads").read_text() == "3"
    sweeps.run_job(made("free"), "seed: 0")
    assert Path("free/threads").read_text() == ""


def made(folder: str) -> Path:
    Path(folder).mkdir()
    return Path(folder)


def test_a_job_that_ends_badly_stops_no_other(sweep: Any, capsys: pytest.CaptureFixture[str]) -> None:
    order(seed0="fail", seed1="kill", seed2="break")
    assert sweep("editor=mend", "seed=0,1,2,3") == 1
    assert [state for state, _ in states().values()] == ["failed", "failed", "failed", "finished"]
    said = capsys.readouterr().err
    for why in ("ValueError: a bug", "ended by SIGKILL (by hand, or for want of memory)", "ended with code 1"):
        assert why in said
    assert "go on with: editkit run -m editor=mend seed=0,1,2,3 run.dir=" in said


def test_a_sweep_goes_on_where_it_stopped_with_more_values(sweep: Any, capsys: pytest.CaptureFixture[str]) -> None:
    order(seed2="kill")
    assert sweep("editor=mend", "seed=1,2") == 1
    assert sweep("editor=mend", "seed=1,2") == 2
    assert "holds runs already: go on there with run.skip_finished=true" in capsys.readouterr().err
    # Other places, titles and trackers are the same job; renumbered jobs too.
    same = ["editor=mend", "run.skip_finished=true", "run.title=other", "tracker=none"]
    assert sweep(*same, "seed=0,1,2") == 0
    assert states() == {
        "mend-seed0": ("finished", "x"),
        "mend-seed1": ("finished", "x"),
        "mend-seed2": ("finished", "xx"),
    }


def test_a_running_job_is_left_alone(sweep: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("editor=mend", "seed=0") == 0
    folder = next(Path("sweep").glob("mend-*"))
    with RunFolder(folder, "", resume=True):
        assert sweep("editor=mend", "seed=0,1", "run.skip_finished=true") == 1
        assert states()["mend-seed0"] == ("running", "x") and states()["mend-seed1"] == ("finished", "x")
    assert "is running in another process, and is left alone" in capsys.readouterr().out


def test_what_stops_a_sweep_stops_its_job(tmp_path: Path) -> None:
    """SIGTERM, as a cluster sends it, to the process that waits for a job's."""
    folder = tmp_path / "job"
    folder.mkdir()
    (tmp_path / "order0").write_text("wait")
    code = (
        "import sys, pathlib, signal\nfrom editkit import sweeps\n"
        "from editkit.signals import handling, on_sigterm\n"
        f"sweeps.command = lambda folder: [sys.executable, '-c', {STAND_IN!r}, str(folder)]\n"
        "with handling({signal.SIGTERM: on_sigterm}):\n"
        f"    sweeps.run_job(pathlib.Path({str(folder)!r}), 'seed: 0')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        until(lambda: (folder / "runs").exists())
        process.terminate()
        assert b"Terminated" in process.communicate(timeout=20)[1]
    assert status.of(folder)["state"] == "interrupted"


def until(true: Callable[[], bool]) -> None:
    for _ in range(200):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("waited for 20 seconds")


def test_a_killed_run_is_told_from_a_running_one(tmp_path: Path) -> None:
    rewrite(tmp_path / "config.yaml", "seed: 0")
    with RunFolder(tmp_path, "", resume=True):
        assert status.of(tmp_path)["state"] == "running"
    said = json.loads((tmp_path / "status.json").read_text()) | {"state": "running"}
    rewrite(tmp_path / "status.json", json.dumps(said))
    assert status.of(tmp_path)["state"] == "killed"
    assert status.of(tmp_path)["why"] == f"process {os.getpid()} on {said['host']} is gone"


def test_a_launcher_that_is_not_installed_is_told_before_anything_else(
    sweep: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for launcher, extra in (("submitit_slurm", "slurm"), ("submitit_local", "slurm"), ("ray", "ray")):
        assert sweep("seed=0", f"hydra/launcher={launcher}") == 2
        assert (
            f"{launcher} needs a package that is not installed: pip install 'editkit[{extra}]'"
            in capsys.readouterr().err
        )
    assert not Path("sweep").exists()


LAUNCHERS = {
    "joblib": [],
    "submitit_local": [],
    "submitit_slurm": ["hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2"],
    "ray": [],
}


@pytest.fixture(params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest) -> list[str]:
    """Words for a launcher; skips it where it is not installed."""
    name = request.param
    if name.startswith("submitit") and importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is not installed: pip install 'editkit[slurm]'")
    if name == "submitit_slurm" and (
        not shutil.which("sinfo") or subprocess.run("sinfo", capture_output=True).returncode
    ):
        pytest.skip("there is no Slurm on this machine")
    if name == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'editkit[ray]'")
    return ["-m", f"hydra/launcher={name}", *LAUNCHERS[name]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Scores of a run that is no job of a sweep."""
    return scores(tmp_path_factory.mktemp("alone"))


def scores(folder: Path, *words: str) -> list[list[str]]:
    """Rows of a quick run's ``results.csv``, cost left out."""
    settings = ["editor=ft_l", "tasks=zsre", "debug=fast", "tracker.mode=disabled", f"run.dir={folder}"]
    command = [sys.executable, "-m", "editkit", "run", *settings, *words]
    told = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert told.returncode == 0, told.stderr
    (results,) = folder.rglob("results.csv")
    with results.open(newline="") as file:
        return [row for row in csv.reader(file) if row[3] != "cost"]


def test_every_launcher_gives_the_same_results(launcher: list[str], alone: list[list[str]], tmp_path: Path) -> None:
    assert scores(tmp_path / "sweep", *launcher) == alone
