"""What a run's folder says of itself: ``status.json``, and a lock on ``run.log`` that ends with the run's process."""

import fcntl
import json
from pathlib import Path
from typing import IO, Any

from editkit.errors import UsageError


def of(folder: Path) -> dict[str, Any]:
    """What ``status.json`` says, empty if there is none: ``killed`` in place of ``running`` if no process is at work.

    Raises:
        UsageError: the file is damaged.
    """
    said = read(folder / "status.json")
    if said.get("state") == "running" and not held(folder):
        said |= {"state": "killed", "why": f"process {said.get('pid')} on {said.get('host')} is gone"}
    return said


def claim(folder: Path, log: IO[str]) -> str | None:
    """Takes the folder for this process until ``log``, its ``run.log``, is closed; gives the state it was left in.

    Raises:
        UsageError: a process is at work in it.
    """
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except BlockingIOError:
        alone = False
    except OSError:  # a file system without locks: what the file says is believed
        alone = read(folder / "status.json").get("state") != "running"
    if not alone:
        raise UsageError(
            f"'{folder}' holds a run that is running: wait for its end, or set run.dir to a new folder; if its "
            "process is surely gone, delete its status.json"
        )
    state = read(folder / "status.json").get("state")
    return "killed" if state == "running" else state


def held(folder: Path) -> bool:
    """Whether a process has claimed the folder."""
    try:
        with (folder / "run.log").open(encoding="utf-8") as log:
            fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def read(path: Path) -> dict[str, Any]:
    """A small file of JSON, empty if it is not there; raises UsageError if it is damaged."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(
            f"'{path}' is no JSON ({error}): mend it, or leave the run out by moving its folder"
        ) from error
