"""Mixing, limits, splits without shared subjects, and where files are sought; on small files and on the real ones."""

import hashlib
import json
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from editkit.errors import UsageError
from editkit.tasks import Mix, Task, readers


def facts(names: range, where: str, repeat: int = 1) -> list[dict]:
    probes = [{"prompt": f"Probe {number}", "ground_truth": "x"} for number in range(5)]
    return [
        {
            "subject": f"{where}{name}",
            "prompt": f"{where}{name} is {again}",
            "target_new": "new",
            "ground_truth": "old",
            "locality": {"Forgetfulness": probes},
            "portability": {},
        }
        for name in names
        for again in range(repeat)
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, records in {
        "a_train": facts(range(30), "a", repeat=2),
        "a_test": facts(range(100, 110), "a"),
        "b_train": facts(range(20), "b") + facts(range(5), "a"),
        "b_test": facts(range(100, 108), "b"),
    }.items():
        (tmp_path / "deep").mkdir(exist_ok=True)
        (tmp_path / "deep" / f"{name}.json").write_text(json.dumps(records))
    return tmp_path


def mix(folder: Path, names: str = "ab", **options) -> Mix:
    sources = {name: Task([f"**/{name}_train*.json"], [f"**/{name}_test*.json"], readers.knowedit) for name in names}
    return Mix(sources, **({"train": list(names), "test": list(names), "root": str(folder)} | options))


def subjects(requests) -> set[str]:
    return {request.subject for request in requests}


def test_validation_shares_no_subject_with_training_in_any_task(root):
    splits = mix(root, valid_share=0.3).load(0)
    assert splits.valid and splits.train
    assert not subjects(splits.valid) & subjects(splits.train)
    assert Counter(request.task for request in splits.valid) == {"a": 18, "b": 8}
    dropped = sum(counts.get("subject_in_valid_dropped", 0) for counts in splits.counts.values())
    assert len(splits.train) + len(splits.valid) + dropped == 60 + 25


def test_validation_is_cut_from_training_files_only_and_bounded(root):
    splits = mix(root, valid_share=0.5, valid_limit=4).load(0)
    assert Counter(request.task for request in splits.valid) == {"a": 4, "b": 4}
    assert all("_train" in request.id for request in (*splits.train, *splits.valid))
    assert all("_test" in request.id for request in splits.test)
    assert mix(root, valid_share=0).load(0).valid == ()


def test_the_same_seed_gives_the_same_splits_whatever_the_order_of_names(root):
    first = mix(root).load(0)
    again = mix(root, names="ba").load(0)
    assert (first.train, first.valid) == (again.train, again.valid)
    assert set(request.id for request in first.test) == set(request.id for request in again.test)


def test_another_seed_gives_another_order_and_validation_but_the_same_test(root):
    first, second = (mix(root, test_limit=5).load(seed) for seed in (0, 1))
    assert first.train != second.train and first.valid != second.valid
    assert first.test == second.test
    assert mix(root, test_limit=5, test_seed=1).load(0).test != first.test


def test_limits_hold_for_every_task_or_for_the_one_named(root):
    splits = mix(root, train_limit=7, test_limit={"b": 3}).load(0)
    assert Counter(request.task for request in splits.train) == {"a": 7, "b": 7}
    assert Counter(request.task for request in splits.test) == {"a": 10, "b": 3}


def test_weights_repeat_the_rarer_task_and_cut_none(root):
    splits = mix(root, train_limit={"a": 10, "b": 4}, weights={"b": 2}).load(0)
    assert Counter(request.task for request in splits.train) == {"a": 10, "b": 20}
    assert set(Counter(request.id for request in splits.train if request.task == "b").values()) == {5}
    assert len({request.task for request in splits.train[:10]}) == 2


def test_probes_are_bounded_by_category_and_the_rest_counted(root):
    splits = mix(root, probes=2).load(0)
    assert {len(request.locality["Forgetfulness"]) for request in splits.train} == {2}
    assert splits.counts["a/test"]["probe_over_bound_dropped"] == 30
    assert len({request.locality["Forgetfulness"] for request in splits.test}) > 1


def test_what_was_read_is_counted_and_hashed(root):
    splits = mix(root, valid_share=0).load(0)
    assert splits.counts["a/train"] == {"portability_empty": 60, "records": 60}
    content = (root / "deep" / "b_test.json").read_bytes()
    assert splits.sha256["b/b_test.json"] == hashlib.sha256(content).hexdigest()
    assert set(splits.sha256) == {"a/a_train.json", "a/a_test.json", "b/b_train.json", "b/b_test.json"}


def test_odd_requests_are_kept_and_counted(root):
    fact = {"subject": "A100", "prompt": "It is", "target_new": "x", "ground_truth": "x"}
    (root / "deep" / "a_train.json").write_text(json.dumps([fact, fact, *facts(range(9), "a")]))
    splits = mix(root, valid_share=0).load(0)
    counts = splits.counts["a/train"]
    assert (counts["target_equals_truth"], counts["repeated_prompt"]) == (2, 1)
    assert (counts["subject_not_in_prompt"], counts["subject_in_test"]) == (2, 2)
    assert Counter(request.task for request in splits.train)["a"] == 11


def test_a_task_may_be_tested_without_being_trained_on(root):
    splits = mix(root, train=["a"], test=["b"]).load(0)
    assert ({request.task for request in splits.train}, {request.task for request in splits.test}) == ({"a"}, {"b"})


def test_the_first_pattern_that_fits_is_read(root):
    (root / "b_val.json").write_text(json.dumps(facts(range(12), "v")))
    source = Task(["**/absent*.json", "**/b_val*.json", "**/b_train*.json"], [], readers.knowedit)
    splits = Mix({"b": source}, train=["b"], test=[], root=str(root)).load(0)
    assert list(splits.sha256) == ["b/b_val.json"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"train": ["c"]}, "tasks.train=.*'c'.*out of a, b"),
        ({"train": "a"}, "tasks.train=a"),
        ({"weights": 2}, "tasks.weights=2"),
        ({"weights": {"c": 1}}, "tasks.weights"),
        ({"weights": {"a": 0}}, "tasks.weights.a=0"),
        ({"train_limit": 0}, "tasks.train_limit=0"),
        ({"test_limit": {"a": "many"}}, "tasks.test_limit=many"),
        ({"valid_share": 1}, "tasks.valid_share=1"),
        ({"valid_limit": -1}, "tasks.valid_limit=-1"),
        ({"probes": 1.5}, "tasks.probes=1.5"),
        ({"root": "no/such/folder"}, "no such folder"),
        ({"root": "no/folder"}, "no Hub data set of that name could be fetched"),
    ],
)
def test_a_key_outside_its_rule_is_named(root, options, expected):
    with pytest.raises(UsageError, match=expected):
        mix(root, **options).load(0)


def test_a_missing_file_is_told_by_pattern_folder_and_key(root):
    (root / "deep" / "a_test.json").unlink()
    with pytest.raises(UsageError) as caught:
        mix(root).load(0)
    for part in ("a/test", "**/a_test*.json", str(root), "tasks.root="):
        assert part in str(caught.value)


def test_two_files_for_one_pattern_are_an_error(root):
    (root / "a_test.json").write_text("[]")
    with pytest.raises(UsageError, match=r"deep/a_test\.json"):
        mix(root).load(0)


def test_a_split_without_a_usable_record_is_an_error(root):
    (root / "deep" / "a_test.json").write_text(json.dumps([{"subject": "a", "prompt": "a is", "target_new": ""}]))
    with pytest.raises(UsageError, match="none of its 1 records"):
        mix(root).load(0)


def test_a_task_without_such_a_file_cannot_be_named(root):
    mixed = Mix({"a": Task([], ["**/a_test.json"], readers.knowedit)}, train=["a"], test=[], root=str(root))
    with pytest.raises(UsageError, match="has no train file"):
        mixed.load(0)


def test_validation_that_takes_all_is_an_error(root):
    (root / "deep" / "a_train.json").write_text(json.dumps(facts(range(1), "a")))
    with pytest.raises(UsageError, match="leaves a no training record"):
        mix(root, valid_share=0.9).load(0)


def composed(name: str, root: object) -> Mix:
    with initialize_config_module("editkit.conf", version_base=None):
        config = compose(f"tasks/{name}", overrides=[f"tasks.root={root}"])
    return instantiate(config.tasks, _convert_="all")


@pytest.mark.parametrize("name", ["recent", "counterfact", "convsent", "zsre", "multi", "multi_balanced"])
@pytest.mark.parametrize("real", [True, False], ids=["real", "bundled"])
def test_every_mix_loads(name, real, request):
    splits = composed(name, request.getfixturevalue("data") if real else "bundled").load(0)
    trained = {"multi": 3, "multi_balanced": 3, "zsre": 0}.get(name, 1)
    assert len({request.task for request in splits.train}) == trained
    assert not subjects(splits.valid) & subjects(splits.train)
    assert {request.task for request in splits.test} >= {"zsre"}
    for edit in (*splits.train, *splits.valid, *splits.test):
        assert edit.prompt.strip() == edit.prompt and edit.target.strip() == edit.target != ""


def test_the_real_files_are_read_whole(data):
    splits = composed("multi", data).load(0)
    assert {key: counts["records"] for key, counts in splits.counts.items() if "train" in key} == {
        "recent/train": 570,
        "counterfact/train": 1428,
        "convsent/train": 799,
    }
    assert splits.counts["recent/train"]["portability_empty"] == 466
    assert splits.counts["counterfact/test"]["probe_without_answer_dropped"] == 13
    letters = [
        answer
        for edit in splits.test
        for probes in (*edit.locality.values(), *edit.portability.values())
        for probe in probes
        for answer in probe.answers[:1]
        if len(answer) == 1 and answer.isalpha()
    ]
    assert len(letters) < 5, "canonical answers of one letter: an alias list was indexed as if it were nested deeper"


@pytest.mark.parametrize(
    ("source", "pattern", "records"),
    [("zsre_mend", "zsre_mend_eval*.json", 120), ("counterfact_rome", "counterfact-val*.json", 1919)],
)
def test_the_other_shapes_of_real_files_are_read(data, source, pattern, records):
    with initialize_config_module("editkit.conf", version_base=None):
        config = compose(f"tasks/source/{source}")
    task = instantiate(config.tasks.source, _convert_="all")
    splits = Mix({"other": task}, train=[], test=["other"], root=str(data)).load(0)
    assert splits.counts["other/test"]["records"] == len(splits.test) == records
    assert all(edit.rephrases and edit.locality and edit.truth for edit in splits.test)


def test_convsent_draws_both_sentiments_and_another_seed_draws_others(root):
    topics = [{"ent": f"T{n}", "pos": [" good", " nice"], "neg": [" bad", " poor"]} for n in range(40)]
    (root / "c_train.json").write_text(json.dumps(topics))
    reader = partial(readers.convsent, questions=["What of {topic}?"], others=1, both=False)
    mixed = Mix({"c": Task(["c_train.json"], [], reader)}, train=["c"], test=[], root=str(root), valid_share=0)
    labels = [{edit.subject: edit.label for edit in mixed.load(seed).train} for seed in (0, 1)]
    assert labels[0] != labels[1]
    assert set(labels[0].values()) == {"positive", "negative"}
