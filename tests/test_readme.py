"""What the README says to type works as it says."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from editkit import cli, configs

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TYPED = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("editkit ") and "…" not in line
]


@pytest.mark.parametrize("words", TYPED, ids=" ".join)
def test_commands_are_understood(words: list[str]) -> None:
    options = cli.build_parser().parse_args(words[1:])
    if words[1] == "run":
        with configs.sources():
            configs.checked(options.settings, options.multirun)


def test_the_python_example_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    assert printed.getvalue().splitlines() == re.findall(r"print\(.*\)  # (.*)", code)
    assert (tmp_path / "mine.safetensors").exists()
