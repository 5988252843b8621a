"""Is the instruction read? The right one, none, another task's, and one with its words shuffled.

    python experiments/wrong_instruction.py scale=tiny seeds=0,1,2 jobs=2

`asked bare`: the edit has its instruction, the question none. `locality, instructed`: other questions behind the
instruction, beside the model without the edit asked in the same way. The editor is that of the main table.
"""

from editkit.analysis import figures
from editkit.studies import Study, main, scores

METRICS = ("reliability", "reliability_bare", "generalization", "locality", "locality_instructed")


def program(study: Study) -> None:
    draws = {"its own": "seen", "none": "none", "another task's": "other", "shuffled": "shuffled"}
    parts = {}
    for seed in study.seeds:
        editors = study.editors("multi_task", "all", seed)
        parts |= {f"{draw}-seed{seed}": [f"editor.draw={draw}", f"seed={seed}", editors] for draw in draws.values()}
    folders = study.run(parts)
    runs = {name: [folders[f"{draw}-seed{seed}"] for seed in study.seeds] for name, draw in draws.items()}
    rows = scores(runs, METRICS, condition="instruction")
    caption = study.caption("InstructEdit edited with the right instruction and with wrong ones.")
    study.write(rows, ("task", "instruction"), caption)
    compared = [{**row, "condition": row["instruction"]} for row in rows]
    study.draw(figures.conditions(compared, ("reliability", "reliability_bare", "locality")), caption)


if __name__ == "__main__":
    main(program, "wrong_instruction")
