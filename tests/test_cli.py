"""The command line from outside: what it answers, how fast, with which exit code."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from editkit import cli
from editkit.errors import UsageError
from editkit.tracking import COLUMNS, RunFolder

HEAVY = {"torch", "transformers", "wandb", "numpy"}
HEADER = ",".join(COLUMNS) + "\n"
RESULT = "mend,recent,single,generative,locality,1,1,1,9,0\n"


def light(*words: str) -> tuple[int, str, set[str]]:
    """Exit code, what was said on stderr and which heavy modules were imported, in a process of its own."""
    code = (
        "import sys\nfrom editkit.cli import main\ntry: code = main(sys.argv[1:])\n"
        "except SystemExit as e: code = e.code\n"
        "print('\\n', code or 0, *(m for m in sys.modules if '.' not in m))"
    )
    told = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    exit_code, *modules = told.stdout.splitlines()[-1].split()
    return int(exit_code), told.stderr, set(modules) & HEAVY


@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        (["--help"], 0, ""),
        (["run", "--help"], 0, ""),
        (["run", "--cfg"], 0, ""),
        (
            ["run", "trainer.steps=many"],
            2,
            "editkit: trainer.steps is 'many', but must be a whole number such as ",
        ),
        (["run", "editor=mendd"], 2, "did you mean mend?\n"),
        (["run", "run.resume=nowhere"], 2, "that is no run's folder: it has no config.yaml\n"),
        (["run", "run.dir=/dev/null/x"], 2, "set run.dir to another folder\n"),
        (["run", "hydra.nope=1"], 2, "hydra.nope"),
        (["run", "hydra/launcher=joblib"], 2, "hydra/launcher=joblib launches the jobs of a sweep: add -m\n"),
        (["run", "-m", "hydra.sweep.subdir=x"], 2, "hydra.sweep.subdir names each job's folder by its settings: leave"),
        (["run", "run.skip_finished=true"], 2, "name it with run.dir=…\n"),
        (["run", "-m", "run.resume=x"], 2, "leave out -m\n"),
        (["run", "--config-dir", "nowhere"], 2, "--config-dir takes one that holds groups such as editor/\n"),
        (["instructions", "search", "--cfg"], 0, ""),
        (["instructions", "search", "search.rounds=0"], 2, "search.rounds is 0, but must be at least 1.\n"),
        (["instructions", "search", "writer.script=nowhere.yaml"], 2, "which is no recording (No such file"),
        (["instructions", "search", "writer=openai"], 2, "writer.model has no value: set writer.model=…\n"),
        (["instructions", "search", "writer=openai", "writer.model=x", "writer.key=NO_KEY"], 2, "NO_KEY is not set"),
        (["instructions", "search", "editor=mend"], 2, "MEND reads no descriptions: set editor to one that does"),
        (["instructions", "search", "regime=batch"], 2, "regime"),
        (["instructions", "show"], 0, ""),
        (["report", "nowhere"], 2, "name the folder of a run that has scored an editor\n"),
    ],
)
def test_help_and_bad_input_are_answered_without_heavy_imports(words: list[str], exit_code: int, said: str) -> None:
    code, stderr, heavy = light(*words)
    assert code == exit_code
    assert said in stderr and "Traceback" not in stderr and stderr.count("\n") <= 1
    assert heavy == set()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[DictConfig]]]:
    """Runs the command line with the given stand-in for a whole run; gives the exit code and the configurations run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["editkit"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def call(action: Callable[[DictConfig], None], *words: str) -> tuple[int, list[DictConfig]]:
        seen = []

        def stand_in(config: DictConfig) -> None:
            seen.append(config)
            with RunFolder(config.run.dir, "seed: 0\nrun: {resume: null, dir: x}\n", bool(config.run.resume)) as folder:
                (folder.path / "results.csv").write_text(HEADER + RESULT)
                action(config)

        monkeypatch.setattr("editkit.run.run", stand_in)
        try:
            code = cli.main(["run", *words])
        except SystemExit as error:
            code = int(error.code or 0)
        return code, seen

    return call


def nothing(config: DictConfig) -> None:
    pass


def keep_settings(config: DictConfig) -> None:
    Path(config.run.dir, "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))


def refuse(config: DictConfig) -> None:
    raise UsageError("The file is not there: set tasks.root")


def test_a_run_ends_with_its_table_and_its_places(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, (config,) = run(nothing, "seed=3", "run.dir=here")
    assert code == 0 and config.seed == 3
    assert config.run.dir == str(Path("here").absolute())
    assert (config.run.editor, config.run.title) == ("instructedit", "multi · tiny · seed 3")
    said = capsys.readouterr().out
    assert "100.0 ±0.0" in said and "Everything is in here" in said and "results.csv" in said
    assert sorted(path.name for path in Path("here").iterdir()) == [
        "checkpoints",
        "config.yaml",
        "results.csv",
        "run.log",
        "status.json",
    ]


def test_bad_input_found_by_the_run_is_one_sentence(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = run(refuse)
    assert code == 2
    assert capsys.readouterr().err == "editkit: The file is not there: set tasks.root\n"


def test_a_bug_keeps_its_traceback(run: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda config: 1 / 0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_the_run_as_interrupted(
    run: Any, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    # A shell that starts the tests in the background has them ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    exit_code, (config,) = run(lambda config: os.kill(os.getpid(), number), "run.dir=here")
    assert exit_code == code
    assert json.loads(Path("here/status.json").read_text())["state"] == "interrupted"
    assert f"go on with: editkit run run.resume={config.run.dir}" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_interrupted_run_goes_on_with_its_own_settings(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda config: os.kill(os.getpid(), signal.SIGTERM), "seed=5", "run.dir=here")[0] == 143
    kept = {"seed": 5, "kept": True, "model": {"path": "bundled"}, "run": {"resume": None, "dir": "x"}}
    Path("here/config.yaml").write_text(yaml.safe_dump(kept))
    code, (config,) = run(nothing, "run.resume=here")
    assert code == 0 and config.kept and config.seed == 5
    assert config.run.dir == config.run.resume == str(Path("here").absolute())
    assert json.loads(Path("here/status.json").read_text())["state"] == "finished"
    assert run(nothing, "run.resume=here", "seed=1")[0] == 2
    assert "leave out seed=1" in capsys.readouterr().err


def test_a_finished_run_is_not_run_again(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("run.dir=here", "run.skip_finished=true", "seed=5")
    assert run(keep_settings, *words)[0] == 0
    assert run(nothing, *words) == (0, [])
    assert run(nothing, "run.dir=here", "run.skip_finished=true", "seed=6")[0] == 2
    assert "holds a run of other settings: set run.dir to a new folder" in capsys.readouterr().err


def test_an_interrupted_run_is_gone_on_with(run: Any) -> None:
    words = ("run.dir=here", "run.skip_finished=true", "seed=5")

    def interrupt(config: DictConfig) -> None:
        keep_settings(config)
        raise KeyboardInterrupt

    assert run(interrupt, *words)[0] == 130
    code, (config,) = run(nothing, *words)
    assert code == 0 and config.run.resume == str(Path("here").absolute())


def test_groups_of_ones_own(run: Any, tmp_path: Path) -> None:
    (tmp_path / "mine" / "editor").mkdir(parents=True)
    (tmp_path / "mine" / "editor" / "mine.yaml").write_text("_target_: somewhere.Mine\nstrength: 2\n")
    code, (config,) = run(nothing, "--config-dir", "mine", "editor=mine", "editor.strength=3")
    assert code == 0 and config.editor.strength == 3


def test_a_disk_that_fills_up_is_one_sentence(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def fill(config: DictConfig) -> None:
        raise OSError(28, "No space left on device", "checkpoint")

    assert run(fill)[0] == 2
    assert "editkit: Cannot read or write 'checkpoint' (No space left on device)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("form", "part"),
    [("table", "100.0 ±0.0"), ("md", "| recent | mend |"), ("latex", r"\toprule"), ("csv", "mend,locality")],
)
def test_a_report_prints_and_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, part: str) -> None:
    (tmp_path / "results.csv").write_text(HEADER + RESULT)
    assert cli.main(["report", str(tmp_path), "--format", form]) == 0
    assert part in capsys.readouterr().out


def test_a_real_run_keeps_the_contract(tmp_path: Path) -> None:
    """Everything at once, on the bundled world: what a user types, and what is there afterwards."""
    folder = tmp_path / "run"
    command = [
        Path(sys.executable).parent / "editkit",
        "run",
        "debug=fast",
        "baselines=[mend,ft_l]",
        f"run.dir={folder}",
    ]
    told = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path / "home")})
    assert told.returncode == 0, told.stderr
    assert told.stderr == "" and not (tmp_path / "home").exists()
    for name in ("config.yaml", "results.csv", "records.jsonl.gz", "metrics.jsonl", "run.log", "status.json"):
        assert (folder / name).stat().st_size > 0
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["editor"] for row in rows} == {"instructedit", "mend", "ft_l"}
    assert {row["task"] for row in rows} == {"recent", "counterfact", "convsent", "zsre"}
    assert {row["protocol"] for row in rows} >= {"teacher_forced", "generative"}
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 3
    assert "instructedit" in told.stdout and "teacher_forced" in told.stdout
