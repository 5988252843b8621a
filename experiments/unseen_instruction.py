"""Seen and unseen instructions: each of a task's nine trained descriptions, and the tenth.

    python experiments/unseen_instruction.py scale=tiny jobs=2

The editor is that of the main table, with the first seed; it is run first where it has not been.
"""

from editkit.analysis import figures
from editkit.studies import Study, main, scores

METRICS = ("reliability", "reliability_bare", "generalization", "locality")


def program(study: Study) -> None:
    study = study.once()
    seed = study.seeds[0]
    editors = study.editors("multi_task", "all", seed)
    folders = study.run({f"{n}-seed{seed}": [f"editor.draw='{n}'", f"seed={seed}", editors] for n in range(10)})
    runs = {str(n): [folders[f"{n}-seed{seed}"]] for n in range(10)}
    seen = [row for row in scores(runs, METRICS, condition="description") if row["description"] != "9"]
    unseen = scores({"unseen": runs["9"]}, METRICS, condition="description")
    caption = study.caption(
        "InstructEdit edited with each trained description (0 to 8) and with the one it has not seen."
    )
    study.write([*seen, *unseen], ("description", "task"), caption)
    compared = [{**row, "condition": row["description"]} for row in (*seen, *unseen)]
    study.draw(figures.conditions(compared, ("reliability", "generalization", "locality")), caption)


if __name__ == "__main__":
    main(program, "unseen_instruction")
