"""Where do the edits of an unseen task lie as the editor is trained on more tasks?

    python experiments/task_gradients.py scale=tiny jobs=2

InstructEdit trained on one, two and three tasks, the editors of task_scaling and multi_task, which are run first where
they have not been; the tasks of its training and ZsRE, which is in none.
"""

from editkit.run import reopened
from editkit.studies import TRAINED, Study, directed, main, mapped


def program(study: Study) -> None:
    study = study.once()
    seed = study.seeds[0]
    found = []
    for count in (1, 2, 3):
        tasks = f"tasks.train=[{','.join(TRAINED[:count])}]"
        few = study.editors("task_scaling", str(count), seed, tasks) if count < 3 else ""
        part = [tasks, f"seed={seed}", few or study.editors("multi_task", "all", seed)]
        lm, editors, splits = reopened(study.run({str(count): part})[str(count)])
        asked = [request for request in splits.test if request.task in (*TRAINED[:count], "zsre")]
        panel = f"{count} task{'s' if count > 1 else ''} and zsre"
        found.append(directed(panel, lm, editors["instructedit"], asked))
    text = "Directions of InstructEdit's edits: trained on recent, on counterfact too, on convsent too; never on zsre."
    mapped(study, found, study.caption(text))


if __name__ == "__main__":
    main(program, "task_gradients")
