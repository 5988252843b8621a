"""One editor for each task: how far does what it has learned carry to other tasks?

    python experiments/single_task.py scale=tiny seeds=0,1,2 jobs=2

MEND trained on each task and tested on all four; a matrix of reliability and one of locality.
"""

from editkit.analysis import figures
from editkit.studies import TRAINED, Study, main, scores


def program(study: Study) -> None:
    runs = study.over_seeds({task: [f"tasks={task}"] for task in TRAINED})
    rows = scores(runs, ("reliability", "generalization", "locality"), condition="trained_on")
    caption = study.caption("MEND trained on one task (rows) and tested on each (columns).")
    study.write(rows, ("trained_on", "task"), caption)
    panels = [{**row, "panel": row["metric"], "metric": "score"} for row in rows if row["metric"] != "generalization"]
    study.draw(figures.matrix(panels, "score", "trained_on", "task", figures.PAGE), caption)


if __name__ == "__main__":
    main(program, "single_task")
