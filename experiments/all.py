"""Every study, one after another; stopping and starting again goes on where it stopped.

    python experiments/all.py scale=tiny                        within an hour on two cores
    python experiments/all.py scale=small model.path=DIR tasks.root=DIR seeds=0

Three seeds and as many runs at once as there are cores, unless `seeds=` or `jobs=` say otherwise; every other word goes
to every study. At tiny scale trainings have 100 steps, so that an hour is enough. All tables are joined in `results.md`
in the folder of the studies.
"""

import os
import sys
from importlib import import_module

from editkit import studies
from editkit.studies import Study

# In this order each finds the editors that it shares with others trained.
STUDIES = (
    "multi_task",
    "hold_out",
    "single_task",
    "task_scaling",
    "balance",
    "unseen_instruction",
    "wrong_instruction",
    "gradients",
    "task_gradients",
    "instruction_search",
    "sequential",
)


def main(words: list[str]) -> None:
    keys = {word.partition("=")[0] for word in words}
    words += [] if "scale" in keys else ["scale=tiny"]
    words += [] if "seeds" in keys else ["seeds=0,1,2"]
    words += [] if "jobs" in keys else [f"jobs={os.cpu_count()}"]
    if "scale=tiny" in words and not keys & {"trainer.steps", "debug"}:
        words.append("trainer.steps=100")
    for name in STUDIES:
        studies.main(import_module(name).program, name, words)
    parts = [part for name in STUDIES for part in tables(Study.of(name, words))]
    target = Study.of("all", words).root / "results.md"
    target.write_text("# Results\n\n" + "\n".join(parts), encoding="utf-8")
    print(target)


def tables(study: Study) -> list[str]:
    """A study's tables and figures, as they stand in its folder."""
    found = [f"## {study.name}\n"]
    for path in sorted(study.folder.glob("*.md")):
        found.append(path.read_text(encoding="utf-8"))
    for path in sorted(study.folder.glob("*.png")):
        found.append(f"![{path.stem}]({path.relative_to(study.root)})\n")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
