"""Do the edits of different tasks point in different directions?

    python experiments/gradients.py scale=tiny jobs=2

The edits that MEND (trained on the mix, or on each task alone) and InstructEdit make of test requests, as directions:
their factors summed over tokens, at length 1, all sites side by side. Maps (t-SNE), and how well tasks are told apart,
in numbers that no map distorts. The editors are those of multi_task and single_task, which are run first where they
have not been.
"""

from editkit.run import reopened
from editkit.studies import TRAINED, Study, directed, main, mapped


def program(study: Study) -> None:
    study = study.once()
    seed = study.seeds[0]
    mixed = study.run({"mixed": [f"seed={seed}", study.editors("multi_task", "all", seed)]})["mixed"]
    single = study.other("single_task").over_seeds({task: [f"tasks={task}"] for task in TRAINED})
    lm, editors, splits = reopened(mixed)
    alone = []
    for task, (folder,) in single.items():
        own = [request for request in splits.test if request.task == task]
        other_lm, other, _ = reopened(folder)
        alone.append(directed("MEND, one task each", other_lm, other["mend"], own))
    found = [
        alone[0] + alone[1] + alone[2],
        directed("MEND, the mix", lm, editors["mend"], splits.test),
        directed("InstructEdit, the mix", lm, editors["instructedit"], splits.test),
    ]
    text = (
        "Directions of the edits of test records; zsre is in no training. Silhouette: from -1 to 1, at 0 nothing is "
        "apart; probe: how many edits' task a linear model names, 25 % by chance (33 % of three tasks)."
    )
    mapped(study, found, study.caption(text))


if __name__ == "__main__":
    main(program, "gradients")
