"""The main table: every method on three tasks that those which learn are trained on together, and on ZsRE.

    python experiments/multi_task.py scale=tiny seeds=0,1,2 jobs=2

Ends with the table of all measures, a figure, and InstructEdit and MEND held against each other on the same edits.
"""

from editkit.analysis import figures
from editkit.studies import Study, main, paired, scores

MEASURES = ("reliability", "reliability_bare", "generalization", "locality", "portability")


def program(study: Study) -> None:
    runs = study.over_seeds({"all": []})
    rows = scores(runs, MEASURES)
    caption = study.caption("Every method, trained (where it learns) on three tasks; zsre is not among them.")
    study.write(rows, ("task", "editor"), caption)
    written = scores(runs, ("reliability", "reliability_bare", "locality", "fluency"), ("generative", "teacher_forced"))
    written = [row for row in written if row["protocol"] == "generative" or row["metric"] == "fluency"]
    study.write(written, ("task", "editor"), f"What the models write by themselves. {caption}", "written")
    differences = paired(runs["all"], "instructedit", "mend", MEASURES)
    study.write(differences, ("task",), f"InstructEdit minus MEND, the same edits and seeds. {caption}", "paired")
    compared = [{**row, "condition": row["editor"]} for row in rows]
    study.draw(figures.conditions(compared, ("reliability", "generalization", "locality")), caption)


if __name__ == "__main__":
    main(program, "multi_task")
