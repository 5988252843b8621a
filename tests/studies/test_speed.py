"""The speed study at a toy size: the two ways it compares give the same numbers, and everything is written."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

import editkit

PROGRAM = Path(editkit.__file__).parents[1] / "experiments" / "speed.py"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess, Path]:
    out = tmp_path_factory.mktemp("speed")
    sizes = [
        "--shapes",
        "toy",
        "llama-2-7b:32",
        "--batches",
        "1",
        "3",
        "--scored",
        "4",
        "--alone",
        "2",
        "--repeat",
        "1",
    ]
    command = [sys.executable, str(PROGRAM), *sizes, "--profile", "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True), out


def test_both_ways_give_the_same_numbers(ran: tuple[subprocess.CompletedProcess, Path]) -> None:
    process, _ = ran
    assert process.returncode == 0, process.stdout + process.stderr
    said = [line for line in process.stdout.splitlines() if "difference of both ways" in line]
    assert [line.split(":")[0] for line in said[:2]] == ["toy, training", "toy, scoring"]
    assert sum("training loss" in line and "gradient" in line for line in said) == 2


def test_every_figure_is_written(ran: tuple[subprocess.CompletedProcess, Path]) -> None:
    process, out = ran
    with (out / "speed.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(row["what"], row["batch"]) for row in rows if row["shape"] == "llama-2-7b:32"} == {
        ("training", "1"),
        ("training", "3"),
        ("training, first epoch", "1"),
        ("training, first epoch", "3"),
        ("scoring", "4"),
        ("scoring, again", "4"),
    }
    assert {row["what"] for row in rows if row["shape"] == "toy"} >= {"ke", "ft_l", "ft_m", "calinet", "grace"}
    for row in rows:
        assert float(row["ms"]) > 0 and float(row["obvious_ms"]) > 0
        assert 0 < float(row["floor_share"]) < 1
        assert f"| {row['shape']} | {row['what']} | {row['batch']} |" in (out / "speed.md").read_text(encoding="utf-8")
    assert (out / "speed.png").stat().st_size and (out / "speed.svg").stat().st_size
    assert "Self CPU" in process.stdout
