"""The generated world: reproducible, clean between its files, and never telling what an edit is to bring."""

import json
from collections import Counter
from pathlib import Path

import pytest

from editkit.tasks.world import Record, World, generate

SHIPPED = Path(__file__).parents[2] / "editkit" / "bundled" / "world"
SIZES = {
    "wiki_recent/recent_train.json": 400,
    "wiki_recent/recent_test.json": 100,
    "wiki_counterfact/train_cf.json": 800,
    "wiki_counterfact/test_cf.json": 100,
    "ZsRE/ZsRE-test-all.json": 100,
    "convsent/blender_train.json": 250,
    "convsent/blender_test.json": 100,
}


@pytest.fixture(scope="module")
def world() -> World:
    return generate(0)


def facts(world: World) -> list[Record]:
    return [record for name, records in world.files.items() if "convsent" not in name for record in records]


def answer(ground_truth: str | list) -> str:
    while isinstance(ground_truth, list):
        (ground_truth,) = ground_truth
    return ground_truth


def test_a_seed_is_a_world(world):
    assert generate(0) == world
    assert generate(1).files != world.files


def test_the_shipped_files_are_those_of_seed_0(world):
    for name, records in world.files.items():
        assert json.loads((SHIPPED / name).read_text(encoding="utf-8")) == records
    assert {name: len(records) for name, records in world.files.items()} == SIZES


def test_writing_is_reproducible(world, tmp_path):
    world.write(tmp_path)
    for name in world.files:
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes()


def test_no_subject_stands_in_two_files(world):
    files = [{record.get("subject", record.get("ent")) for record in records} for records in world.files.values()]
    assert sum(map(len, files)) == len(set().union(*files))


def test_no_target_is_told(world):
    told = {(sentence.prompt, sentence.answer) for sentence in world.sentences}
    for record in facts(world):
        probes = [{"prompt": record["prompt"], "ground_truth": record["target_new"]}]
        probes += [probe for some in record["portability"].values() for probe in some]
        for probe in probes:
            assert (probe["prompt"], answer(probe["ground_truth"])) not in told
    heard = {(sentence.subject, f" {sentence.answer}.") for sentence in world.sentences if sentence.form == "opinion"}
    for name in ("convsent/blender_train.json", "convsent/blender_test.json"):
        for record in world.files[name]:
            assert not {(record["ent"], text) for text in record["pos"] + record["neg"]} & heard


def test_recent_facts_are_told_in_no_form(world):
    prompts = {sentence.prompt for sentence in world.sentences}
    for name in ("wiki_recent/recent_train.json", "wiki_recent/recent_test.json"):
        for record in world.files[name]:
            followed = [probe["prompt"] for some in record["portability"].values() for probe in some]
            assert not {record["prompt"], *record["rephrase_prompt"], *followed} & prompts


def test_what_should_not_change_is_true_and_told(world):
    told = {sentence.prompt: sentence.answer for sentence in world.sentences}
    for record in facts(world):
        specific = record["locality"]["Relation_Specificity"]
        assert specific
        assert all(told[probe["prompt"]] == answer(probe["ground_truth"]) for probe in specific)


def test_a_counterfactual_contradicts_a_told_fact(world):
    told = {sentence.prompt: sentence.answer for sentence in world.sentences}
    for name in ("wiki_counterfact/train_cf.json", "wiki_counterfact/test_cf.json", "ZsRE/ZsRE-test-all.json"):
        for record in world.files[name]:
            assert told[record["prompt"]] == answer(record["ground_truth"]) != record["target_new"]
            for probe in record["portability"].get("Reasoning", []):
                assert told[probe["prompt"]] != answer(probe["ground_truth"])


def test_every_answer_is_the_answer_to_many_questions(world):
    uses = Counter(sentence.answer for sentence in world.sentences if sentence.form in ("statement", "question"))
    assert min(uses[record["target_new"]] for record in facts(world)) >= 10


def test_a_sentence_has_one_answer(world):
    answers: dict[str, set[str]] = {}
    for sentence in world.sentences:
        answers.setdefault(sentence.prompt, set()).add(sentence.answer)
    assert all(len(some) == 1 for some in answers.values())
