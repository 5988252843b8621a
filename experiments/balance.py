"""Does it help to train on tasks in equal parts?

    python experiments/balance.py scale=tiny seeds=0,1,2 jobs=2

InstructEdit, as many steps each: three tasks in equal parts, or ConvSent ten times as often as the others.
"""

from editkit.analysis import figures
from editkit.run import reopened
from editkit.studies import Study, directed, main, mapped, scores


def program(study: Study) -> None:
    conditions = {"balanced": "tasks.weights.convsent=1", "ten times convsent": "tasks.weights.convsent=10"}
    runs = study.over_seeds({name.split()[0]: [setting] for name, setting in conditions.items()})
    runs = {name: runs[name.split()[0]] for name in conditions}
    rows = scores(runs, ("reliability", "reliability_bare", "generalization", "locality"), condition="mix")
    caption = study.caption("InstructEdit trained on tasks in equal parts or not; zsre is in no training.")
    study.write(rows, ("task", "mix"), caption)
    compared = [{**row, "condition": row["mix"]} for row in rows]
    study.draw(figures.conditions(compared, ("reliability", "generalization", "locality")), caption)
    found = []
    for name, (folder, *_) in runs.items():
        lm, editors, splits = reopened(folder)
        found.append(directed(name, lm, editors["instructedit"], splits.test))
    mapped(study.once(), found, study.once().caption("Directions of InstructEdit's edits."), "gradients")


if __name__ == "__main__":
    main(program, "balance")
