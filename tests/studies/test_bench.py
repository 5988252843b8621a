"""The benchmark at a toy size: the two ways it compares give the same numbers, and its table is printed whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import editkit

BENCH = Path(editkit.__file__).parents[1] / "experiments" / "bench.py"
METHODS = ("mend", "ke", "ft_l", "ft_m", "calinet", "grace")
BOUNDS = {"training": 1 / 5, "scoring": 1 / 4, "16 blocks beside 4": 1.2}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess, Path]:
    out = tmp_path_factory.mktemp("bench")
    sizes = ["--shape", "toy", "--edits", "4", "--scored", "5", "--alone", "3", "--repeat", "1"]
    command = [sys.executable, str(BENCH), *sizes, "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True), out


def test_both_ways_give_the_same_numbers(ran: tuple[subprocess.CompletedProcess, Path]) -> None:
    process, out = ran
    assert process.returncode == 0, process.stderr
    agreement = json.loads((out / "speed.json").read_text(encoding="utf-8"))["agreement"]
    # Three edits with seven questions each; two scores a question and one more for what was known.
    assert list(agreement) == ["training loss", "training gradient", "scores (45)", *METHODS]
    assert max(agreement.values()) < 1e-4


def test_every_figure_is_printed_and_written(ran: tuple[subprocess.CompletedProcess, Path]) -> None:
    process, out = ran
    rows = json.loads((out / "speed.json").read_text(encoding="utf-8"))["rows"]
    assert {row["what"]: row["bound"] for row in rows if row["bound"]} == BOUNDS
    for row in rows:
        assert row["ours"] > 0 and row["other"] > 0
        assert row["what"] in process.stdout
        assert f"| {row['what']} |" in (out / "speed.md").read_text(encoding="utf-8")
