"""Imports point down only, and what is heavy or configurable stays in its room."""

import ast
import configparser
from pathlib import Path

import pytest
import yaml

import editkit

PACKAGE = Path(editkit.__file__).parent
CONF = PACKAGE.parent / "conf"
# From the top down; rooms of one level do not know each other.
LEVELS = (
    {"__main__"},
    {"studies"},
    {"cli"},
    {"searching", "sweeps", "plan"},
    {"run"},
    {"configs"},
    {"training", "evaluation", "analysis", "reporting", "tracking", "regimes", "bundled"},
    {"objectives"},
    {"editors"},
    {"instructions"},
    {"tasks", "lm"},
    {"edits", "cache", "status"},
    {"requests", "parallel", "hub", "counting", "signals"},
    {"errors"},
)
DEPTH = {room: depth for depth, rooms in enumerate(LEVELS) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
CONFIGURED = {"cli", "searching", "plan", "run", "configs"}
ONLY_IN = {"hydra": CONFIGURED, "omegaconf": CONFIGURED, "wandb": {"tracking"}}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Full dotted names of the modules that a file imports anywhere; ``from a import b`` gives ``a`` and ``a.b``."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively, which this test cannot read"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_only(path: Path) -> None:
    own = room(path)
    assert own in DEPTH, f"{own} is not in the list of rooms"
    for name in imported(path):
        other = name.removeprefix("editkit.").split(".")[0]
        if name.startswith("editkit.") and other in DEPTH and other != own:
            assert DEPTH[other] > DEPTH[own], f"{path.relative_to(PACKAGE)} must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_configuration_and_wandb_stay_in_their_rooms(path: Path) -> None:
    found = {name.split(".")[0] for name in imported(path)}
    assert {name for name in found if room(path) not in ONLY_IN.get(name, {room(path)})} == set()


def test_no_method_imports_another() -> None:
    targets = [yaml.safe_load(path.read_text())["_target_"] for path in (CONF / "editor").glob("*.yaml")]
    methods = {target.rsplit(".", 1)[0] for target in targets}
    assert len(methods) > 1
    for method in methods:
        path = PACKAGE.joinpath(*method.split(".")[1:]).with_suffix(".py")
        assert imported(path) & methods == set()


def test_only_command_lines_print() -> None:
    for path in FILES:
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        prints = any(isinstance(function, ast.Name) and function.id == "print" for function in calls)
        assert not prints or path.name in ("cli.py", "studies.py"), f"{path.name} prints"


def test_every_package_is_shipped() -> None:
    setup = configparser.ConfigParser()
    setup.read(CONF.parent / "setup.cfg")
    listed = set(setup["options"]["packages"].split()) - {"editkit.conf"}
    found = {path.parent.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("__init__.py")}
    assert listed == {".".join(folder.parts) for folder in found}
