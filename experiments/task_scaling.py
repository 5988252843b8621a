"""What does each further training task bring on ZsRE, which is in none?

    python experiments/task_scaling.py scale=tiny seeds=0,1,2 jobs=2

InstructEdit trained on Recent, on CounterFact too, and on ConvSent too (that one is the main table's).
"""

from editkit.analysis import figures
from editkit.studies import TRAINED, Study, main, scores


def program(study: Study) -> None:
    runs = study.over_seeds({str(n): [f"tasks.train=[{','.join(TRAINED[:n])}]"] for n in (1, 2)})
    three = {f"3-seed{s}": [f"tasks.train=[{','.join(TRAINED)}]", f"seed={s}"] for s in study.seeds}
    for seed, part in zip(study.seeds, three.values(), strict=True):
        part.append(study.editors("multi_task", "all", seed))
    runs["3"] = list(study.run(three).values())
    rows = scores(runs, ("reliability", "reliability_bare", "generalization", "locality"), condition="training_tasks")
    caption = study.caption(
        "InstructEdit trained on one, two and three tasks; the figure shows zsre, which is in none."
    )
    study.write(rows, ("task", "training_tasks"), caption)
    unseen = [row for row in rows if row["task"] == "zsre"]
    study.draw(figures.scaling(unseen, ("reliability", "generalization", "locality")), caption)


if __name__ == "__main__":
    main(program, "task_scaling")
