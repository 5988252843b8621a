"""Instructions: the form, the draw, the one kept back, the slots, and files that are not of the form."""

from pathlib import Path

import pytest
import yaml

from editkit.errors import UsageError
from editkit.instructions import Instructions
from editkit.requests import EditRequest

SHIPPED = Instructions()
TASKS = ("recent", "counterfact", "convsent", "zsre")


def request(task: str = "recent", number: int = 0, **details: str) -> EditRequest:
    return EditRequest(f"{task}/x.json#{number}", task, "Ada", "The home of Ada is", "Rom", **details)


def given(task: str, **options) -> str:
    edit = SHIPPED.give(request(task, label="positive"), 0, **options)
    return edit.instruction + edit.prompt


@pytest.mark.parametrize("task", TASKS)
def test_an_instruction_is_three_lines_that_end_in_the_prompt(task):
    first, second, third = given(task).split("\n")
    assert first.startswith("Task: ") and second.startswith("Description: ")
    assert third == "Input: The home of Ada is"


@pytest.mark.parametrize("task", TASKS)
def test_ten_descriptions_come_with_each_task_of_which_nine_are_seen(task):
    descriptions = SHIPPED.tasks[task].descriptions
    assert len(set(descriptions)) == 10
    instructions = [given(task, which=number) for number in range(10)]
    drawn = {SHIPPED.give(request(task, number, label="positive"), 0).instruction for number in range(200)}
    assert {text + "The home of Ada is" for text in drawn} == set(instructions[:9])
    assert given(task, which="unseen") == given(task, which="9") == instructions[9]


def test_the_draw_depends_on_seed_and_record_only():
    one, other = SHIPPED, Instructions()
    edits = [request(number=number) for number in range(30)]
    first = [one.give(edit, 0).instruction for edit in edits]
    assert first == [other.give(edit, 0).instruction for edit in reversed(edits)][::-1]
    assert first != [one.give(edit, 1).instruction for edit in edits]


def test_nothing_but_the_instruction_changes():
    edit = request(truth="Oslo")
    told = SHIPPED.give(edit, 0)
    assert told.instruction and told == EditRequest(**{**vars(edit), "instruction": told.instruction})


@pytest.mark.parametrize("number", range(10))
def test_convsent_names_its_sentiment_and_topic(number):
    text = given("convsent", which=number)
    assert "positive" in text and "Ada" in text.split("\n")[1] and "[" not in text


def test_a_topic_that_looks_like_a_slot_stays_as_it_is(tmp_path):
    content = {"name": "T", "slots": ["LABEL", "TOPIC"], "descriptions": ["[LABEL] [TOPIC]", "[TOPIC], [LABEL]"]}
    edit = EditRequest("a#0", "a", "{task} [LABEL]", "p", "t", label="negative")
    assert Instructions(written(tmp_path, {"a": content})).give(edit, 0).instruction == "T: negative {task} [LABEL]. "


def written(tmp_path: Path, tasks: object, template: object = "{task}: {description}. ") -> str:
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"template": template, "tasks": tasks}))
    return str(file)


def test_a_file_of_ones_own_may_hold_more_keys(tmp_path):
    task = {"name": "Facts", "descriptions": ["Do.", "Redo."], "scores": [0.5, 0.7]}
    own = Instructions(written(tmp_path, {"recent": task}))
    assert own.give(request(), 0).instruction == "Facts: Do.. "
    assert own.give(request(), 0, "unseen").instruction == "Facts: Redo.. "


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({"descriptions": ["a", "b"]}, "needs a 'name'"),
        ({"name": "A"}, "must be a list of sentences"),
        ({"name": "A", "descriptions": ["a", 3]}, "must be a list of sentences"),
        ({"name": "A", "descriptions": ["a"]}, "at least two"),
        ({"name": "A", "descriptions": ["a", "b", "a"]}, "'a' stands twice"),
        ({"name": "A", "descriptions": ["a", "b"], "slots": ["NAME"]}, "LABEL and TOPIC"),
        ({"name": "A", "descriptions": ["a [TOPIC]", "b"], "slots": ["TOPIC"]}, r"'b' must have \[TOPIC\]"),
        ({"name": "A", "descriptions": ["a [LABEL]", "b"]}, r"'a \[LABEL\]' must have no slot"),
    ],
)
def test_a_task_that_is_not_of_the_form_is_named(tmp_path, task, expected):
    with pytest.raises(UsageError, match=expected) as caught:
        Instructions(written(tmp_path, {"recent": task}))
    assert "own.yaml, recent" in str(caught.value)


def test_a_file_that_is_not_of_the_form_is_refused(tmp_path):
    task = {"name": "A", "descriptions": ["a", "b"]}
    with pytest.raises(UsageError, match="'template'"):
        Instructions(written(tmp_path, {"recent": task}, template="{task}"))
    with pytest.raises(UsageError, match="'tasks'"):
        Instructions(written(tmp_path, {}))
    (tmp_path / "own.yaml").write_text("a: [")
    with pytest.raises(UsageError, match="cannot be read as YAML"):
        Instructions(str(tmp_path / "own.yaml"))
    with pytest.raises(UsageError, match=r"no such file.*: editkit\."):
        Instructions("nobody")


def test_a_request_that_cannot_be_told_is_refused():
    with pytest.raises(UsageError, match="no task 'other'"):
        SHIPPED.give(request("other"), 0)
    with pytest.raises(UsageError, match=r"nothing to put for \[LABEL\]"):
        SHIPPED.give(request("convsent"), 0)
    with pytest.raises(UsageError, match="from 0 to 9"):
        SHIPPED.give(request(), 0, which=10)


def test_wrong_instructions_are_none_another_tasks_or_words_in_another_order():
    edits = [request("recent", number) for number in range(40)]
    assert {SHIPPED.give(edit, 0, "none").instruction for edit in edits} == {""}
    names = {SHIPPED.give(edit, 0, "other").instruction.split("\n")[0].removeprefix("Task: ") for edit in edits}
    assert names == {SHIPPED.tasks[task].name for task in TASKS if task != "recent"}
    assert not any("[" in SHIPPED.give(edit, 0, "other").instruction for edit in edits)
    seen = {tuple(sorted(text.split())) for text in SHIPPED.tasks["recent"].descriptions[:9]}
    for edit in edits:
        told = SHIPPED.give(edit, 0, "shuffled").instruction.split("\n")[1].removeprefix("Description: ")
        assert tuple(sorted(told.split())) in seen
        assert told not in SHIPPED.tasks["recent"].descriptions
