"""The jobs of a sweep. Each runs in a process of its own, so that one that is killed takes no other with it.

A job's folder is named by its settings. So a sweep that is called again, or a job that a cluster puts back into its
queue, finds what there is already: finished jobs are left as they are, and others go on from their last checkpoint.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from editkit import status
from editkit.tracking import rewrite


def run_job(folder: Path, config_yaml: str, threads: int | None = None) -> str:
    """Runs the job of ``folder``, unless it has finished or is running; gives its end in words.

    However the job ends, ``status.json`` says so. It has ``threads`` threads; ``None``: as many as this process is to
    have.
    """
    state = status.of(folder).get("state")
    if state == "finished":
        return "had finished before"
    if state == "running":
        return "is running in another process, and is left alone"
    if not (folder / "config.yaml").exists():
        rewrite(folder / "config.yaml", config_yaml)
    code = ended(folder, {"OMP_NUM_THREADS": str(threads)} if threads else {})
    said = status.of(folder)
    if said.get("state") in (None, "killed"):
        why = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code} before it began"
        if code == -signal.SIGKILL:
            why += " (by hand, or for want of memory)"
        said |= {"state": "failed", "why": why, "ended": datetime.now(UTC).isoformat(timespec="seconds")}
        rewrite(folder / "status.json", json.dumps(said, indent=1) + "\n")
    return f"{said['state']} {said.get('why', '')}".rstrip()


def ended(folder: Path, variables: Mapping[str, str]) -> int:
    """Exit code of the job's process, which has this one's environment and ``variables``; stopped, if this one is."""
    environment = {**os.environ, **variables}
    # Ctrl-C reaches it through this process alone: twice would cut off its last words.
    with subprocess.Popen(
        command(folder), stdout=subprocess.DEVNULL, env=environment, start_new_session=True
    ) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def command(folder: Path) -> list[str]:
    """What runs the job; its settings are in the folder."""
    quoted = str(folder).replace("'", r"\'")
    return [sys.executable, "-m", "editkit", "run", f"run.resume='{quoted}'"]


def begun(folder: Path) -> bool:
    """Whether a sweep's folder holds jobs."""
    return any(folder.glob("*/status.json"))
