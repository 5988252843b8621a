"""Does a search find better instructions, and are they better than the bare names of the tasks?

    python experiments/instruction_search.py scale=tiny seeds=0,1,2 jobs=2

`editkit instructions search` with the recorded writer (any setting of it is taken, such as writer=openai), its score by
round, and then the whole training with what it found and with the bare names.
"""

from dataclasses import replace

import yaml

from editkit.analysis import figures
from editkit.studies import Study, main, scores

SEARCHED = ("scale", "model", "tasks", "cache", "debug", "writer", "search")


def program(study: Study) -> None:
    def room(word: str) -> str:
        return word.partition("=")[0].split(".")[0]

    searched = replace(study, settings=tuple(word for word in study.settings if room(word) in SEARCHED))
    runs = replace(study, settings=tuple(word for word in study.settings if room(word) not in ("writer", "search")))
    folder = searched.run({"search": []}, ("instructions", "search"))["search"]
    found = folder / "descriptions.yaml"
    history = yaml.safe_load(found.read_text(encoding="utf-8"))["history"]
    rounds = [{"round": 0, "score": history["bare_names"]["score"]}]
    rounds += [{"round": one["round"], "score": score} for one in history["rounds"] for score in one["scores"]]
    bare = min((folder / "candidates").glob("round-0*.yaml"))
    sets = {"found": found, "bare names": bare}
    parts = {name.split()[0]: [f"editor.descriptions={file}"] for name, file in sets.items()}
    trained = dict(zip(sets, runs.over_seeds(parts).values(), strict=True))
    rows = scores(trained, ("reliability", "reliability_bare", "generalization", "locality"), condition="descriptions")
    caption = study.caption(
        f"InstructEdit trained with descriptions found in {len(history['rounds'])} rounds, and others."
    )
    study.write(rows, ("task", "descriptions"), caption)
    study.draw(
        figures.conditions([{**r, "condition": r["descriptions"]} for r in rows], ("reliability", "locality")), caption
    )
    text = "Score of each trial by round; round 0 is the bare names of the tasks."
    study.draw(figures.rounds([{"task": "all tasks", **row} for row in rounds]), study.caption(text), "rounds")


if __name__ == "__main__":
    main(program, "instruction_search")
