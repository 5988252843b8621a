"""What does each further training task bring on ZsRE, which is in none?

    python experiments/task_scaling.py scale=tiny seeds=0,1,2 jobs=2

InstructEdit trained on Recent, on CounterFact too, and on ConvSent too (that one is the main table's).
"""

from editkit.analysis import figures
from editkit.studies import Study, main, scores


def program(study: Study) -> None:
    few = {"1": "tasks.train=[recent]", "2": "tasks.train=[recent,counterfact]"}
    parts = {}
    for seed in study.seeds:
        parts |= {f"{count}-seed{seed}": [tasks, f"seed={seed}"] for count, tasks in few.items()}
        three = "tasks.train=[recent,counterfact,convsent]"
        parts[f"3-seed{seed}"] = [three, f"seed={seed}", study.editors("multi_task", "all", seed)]
    folders = study.run(parts)
    runs = {count: [folders[f"{count}-seed{seed}"] for seed in study.seeds] for count in ("1", "2", "3")}
    metrics = ("reliability", "reliability_bare", "generalization", "locality")
    rows = scores(runs, metrics, condition="training_tasks")
    caption = study.caption(
        "InstructEdit trained on one, two and three tasks; the figure shows zsre, on which it never is."
    )
    study.write(rows, ("task", "training_tasks"), caption)
    unseen = [row for row in rows if row["task"] == "zsre"]
    study.draw(figures.scaling(unseen, ("reliability", "generalization", "locality")), caption)


if __name__ == "__main__":
    main(program, "task_scaling")
