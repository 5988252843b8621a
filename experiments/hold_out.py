"""Every method on ZsRE, which none of them was trained on.

    python experiments/hold_out.py scale=tiny seeds=0,1,2 jobs=2

Its lines of the main table, which is run first where it has not been.
"""

from editkit.analysis import figures
from editkit.studies import Study, main, paired, scores

MEASURES = ("reliability", "reliability_bare", "generalization", "locality", "portability")


def program(study: Study) -> None:
    folders = study.other("multi_task").over_seeds({"all": []})["all"]
    rows = [row for row in scores({"all": folders}, MEASURES) if row["task"] == "zsre"]
    caption = study.caption("ZsRE, on which no editor was trained.")
    study.write(rows, ("editor",), caption)
    differences = [row for row in paired(folders, "instructedit", "mend", MEASURES) if row["task"] == "zsre"]
    study.write(differences, ("task",), f"InstructEdit minus MEND, the same edits and seeds. {caption}", "paired")
    compared = [{**row, "condition": row["editor"]} for row in rows]
    study.draw(figures.conditions(compared, ("reliability", "generalization", "locality")), caption)


if __name__ == "__main__":
    main(program, "hold_out")
