"""Edits one after another: how many are still there, and what else has changed, as the sequence grows?

    python experiments/sequential.py scale=tiny jobs=2

The editors are those of the main table, which is run first where it has not been.
"""

from editkit.analysis import figures
from editkit.studies import Study, main, results, scores


def program(study: Study) -> None:
    study = study.once()
    seed = study.seeds[0]
    halves = {"learned": ["editor=instructedit", "baselines=[mend,ke]", study.editors("multi_task", "all", seed)]}
    halves["searched"] = ["editor=ft_l", "baselines=[ft_m,calinet,grace]"]
    folders = study.run({label: [*settings, f"seed={seed}"] for label, settings in halves.items()})
    along = [row for folder in folders.values() for row in results(folder)]
    caption = study.caption("Edits made one after another, scored on the way.")
    ends = [row for row in scores({folder.name: [folder] for folder in folders.values()}, ("reliability", "locality"))]
    longest = max((figures.edits(row) for row in ends), default=0)
    last = [row for row in ends if figures.edits(row) == longest]
    study.write(last, ("task", "editor"), f"After {longest} edits. {caption}")
    study.draw(figures.sequences(along), caption)


if __name__ == "__main__":
    main(program, "sequential")
