"""Edits one after another: how many are still there, and what else has changed, as the sequence grows.

    python experiments/sequential.py outputs/sequential/first               # all editors, the bundled world
    python experiments/sequential.py outputs/sequential/mine scale=small    # any setting of `editkit run`

Runs `conf/experiment/sequential.yaml` into the folder, unless it has finished there, and draws its figure.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

from editkit.analysis import figures
from editkit.errors import UsageError


def main(folder: Path, settings: list[str]) -> None:
    status = folder / "status.json"
    state = json.loads(status.read_text(encoding="utf-8"))["state"] if status.exists() else None
    if state != "finished":
        words = [f"run.resume={folder}"] if state else ["experiment=sequential", f"run.dir={folder}", *settings]
        subprocess.run([sys.executable, "-m", "editkit", "run", *words], check=True)
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for path in figures.save(figures.sequences(rows), folder / "sequential"):
        print(path)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except UsageError as error:
        sys.exit(f"sequential: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
