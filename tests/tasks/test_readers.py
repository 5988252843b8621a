"""Each shape of file, each oddity such files hold, and the sentence that says what is wrong with any other."""

import json
from collections import Counter
from pathlib import Path

import pytest

from editkit.errors import UsageError
from editkit.requests import EditRequest, Probe
from editkit.tasks import readers
from editkit.tasks.records import read_records

FACT = {"subject": "Ada", "prompt": "The home of Ada is", "target_new": "Rom"}
QUESTIONS = ("What of {topic}?", "And {topic}?")


def read(tmp_path: Path, records: object, reader=readers.knowedit, **options) -> tuple[list[EditRequest], Counter[str]]:
    file = tmp_path / "facts.json"
    file.write_text(records if isinstance(records, str) else json.dumps(records), encoding="utf-8")
    counts: Counter[str] = Counter()
    nodes, _ = read_records(file, "recent", counts)
    return list(reader(nodes, 0, **options)), +counts


def with_probe(truth: object) -> list[dict]:
    return [FACT | {"locality": {"Forgetfulness": [{"prompt": "Ada was", "ground_truth": truth}]}, "portability": None}]


def test_a_bare_record_needs_no_more_than_subject_prompt_and_target(tmp_path):
    (request,), counts = read(tmp_path, [FACT])
    assert request == EditRequest("recent/facts.json#0", "recent", "Ada", "The home of Ada is", "Rom")
    assert counts == {"locality_absent": 1, "portability_absent": 1}


@pytest.mark.parametrize(
    ("truth", "answers"),
    [
        ("Oslo", ("Oslo",)),
        (["Oslo", "Kristiania"], ("Oslo", "Kristiania")),
        ([["Oslo", "Kristiania"], ["Bergen"]], ("Oslo", "Kristiania", "Bergen")),
        ([["", "Oslo"]], ("Oslo",)),
        ([[], ["Oslo", "Oslo"]], ("Oslo",)),
        ([['Łódź, "Lodz"', "القاهرة"]], ('Łódź, "Lodz"', "القاهرة")),
    ],
)
def test_every_form_of_an_answer_becomes_its_aliases(tmp_path, truth, answers):
    (request,), _ = read(tmp_path, with_probe(truth))
    assert request.locality == {"Forgetfulness": (Probe("Ada was", answers),)}


@pytest.mark.parametrize("truth", ["", "  ", [], [[]], [["", " "]]])
def test_a_probe_without_an_answer_is_dropped_and_counted(tmp_path, truth):
    (request,), counts = read(tmp_path, with_probe(truth))
    assert request.locality == {}
    assert counts["probe_without_answer_dropped"] == 1


def test_empty_and_missing_sections_are_counted(tmp_path):
    (request, _), counts = read(
        tmp_path, [FACT | {"locality": {"Forgetfulness": []}, "portability": {}}, FACT | {"locality": None}]
    )
    assert (request.locality, request.portability) == ({}, {})
    assert counts == {
        "locality_category_empty": 1,
        "portability_empty": 1,
        "locality_absent": 1,
        "portability_absent": 1,
    }


def test_an_empty_target_is_skipped_and_a_padded_one_mended_without_renumbering(tmp_path):
    requests, counts = read(tmp_path, [FACT | {"target_new": " "}, FACT | {"target_new": " Rom "}])
    assert [(request.id, request.target) for request in requests] == [("recent/facts.json#1", "Rom")]
    assert (counts["empty_target_skipped"], counts["stray_spaces"]) == (1, 1)


@pytest.mark.parametrize(
    ("truth", "expected"), [("Oslo", "Oslo"), (["Oslo", "Bergen"], "Oslo"), ("", None), (None, None)]
)
def test_the_truth_is_the_first_answer_and_not_its_first_letter(tmp_path, truth, expected):
    (request,), _ = read(tmp_path, [FACT | {"ground_truth": truth}])
    assert request.truth == expected


@pytest.mark.parametrize("rephrases", ["Ada's home is", ["Ada's home is"]])
def test_one_rephrase_or_a_list_of_them(tmp_path, rephrases):
    (request,), _ = read(tmp_path, [FACT | {"rephrase_prompt": rephrases}])
    assert request.rephrases == ("Ada's home is",)


def test_mend_zsre_takes_the_truth_from_answers_and_cleans_the_natural_question(tmp_path):
    record = {
        "subject": "Ada",
        "src": "Where is Ada?",
        "pred": "Paris",
        "alt": "Rom",
        "answers": ["Oslo"],
        "rephrase": "Ada is where?",
        "loc": "nq question: who wrote it",
        "loc_ans": "Bo",
        "portability": {"Recalled Relation": "(…)", "New Question": "In which country is Ada?", "New Answer": "Italy"},
    }
    (request,), counts = read(tmp_path, [record], readers.mend_zsre)
    assert (request.target, request.truth, request.rephrases) == ("Rom", "Oslo", ("Ada is where?",))
    assert request.locality == {"Unrelated": (Probe("who wrote it", ("Bo",)),)}
    assert request.portability == {"Reasoning": (Probe("In which country is Ada?", ("Italy",)),)}
    assert counts == {"nq_prefix": 1}


def test_counterfact_has_one_rephrase_and_one_neighbour(tmp_path):
    record = FACT | {
        "case_id": 7,
        "ground_truth": "Oslo",
        "rephrase_prompt": "Ada lives in",
        "locality_prompt": "The home of Bo is",
        "locality_ground_truth": "Oslo",
    }
    (request,), _ = read(tmp_path, [record], readers.counterfact)
    assert (request.truth, request.rephrases) == ("Oslo", ("Ada lives in",))
    assert request.locality == {"Neighborhood": (Probe("The home of Bo is", ("Oslo",)),)}


TOPICS = [{"ent": name, "pos": [f" {name} is fine. ", " Nice."], "neg": [f" {name} is bad."]} for name in "ABCD"]


def convsent(tmp_path: Path, topics: object, both: bool = False, others: int = 2, questions=QUESTIONS):
    return read(tmp_path, topics, readers.convsent, questions=questions, others=others, both=both)


def test_convsent_asks_a_question_and_wants_one_sentiments_answer(tmp_path):
    requests, _ = convsent(tmp_path, TOPICS)
    assert [request.prompt for request in requests] == [f"What of {name}?" for name in "ABCD"]
    for request in requests:
        name = request.subject
        assert request.rephrases == (f"And {name}?",)
        sides = {"positive": (f"{name} is fine.", "Nice."), "negative": (f"{name} is bad.",)}
        assert request.opinions.wanted == sides.pop(request.label)
        assert (request.opinions.other,) == tuple(sides.values())
        assert request.target in request.opinions.wanted


def test_convsent_locality_is_both_sentiments_of_other_topics(tmp_path):
    requests, _ = convsent(tmp_path, TOPICS)
    for request in requests:
        probes = request.locality["Other_Topic"]
        asked = {probe.prompt for probe in probes}
        assert (len(probes), len(asked)) == (4, 2)
        assert request.prompt not in asked
        for question in asked:
            name = question[8]
            first, second = (probe.answers[0] for probe in probes if probe.prompt == question)
            assert first in (f"{name} is fine.", "Nice.") and second == f"{name} is bad."


def test_convsent_with_few_topics_asks_about_those_there_are(tmp_path):
    (first, second), _ = convsent(tmp_path, TOPICS[:2], others=5)
    assert {probe.prompt for probe in first.locality["Other_Topic"]} == {second.prompt}
    (alone,), _ = convsent(tmp_path, TOPICS[:1])
    assert alone.locality == {}


def test_convsent_both_gives_each_sentiment_under_an_id_of_its_own(tmp_path):
    requests, _ = convsent(tmp_path, TOPICS, both=True)
    assert [(request.subject, request.label) for request in requests] == [
        (name, label) for name in "ABCD" for label in ("positive", "negative")
    ]
    assert len({request.id for request in requests}) == 8


def test_convsent_skips_a_topic_with_one_sentiment_only(tmp_path):
    requests, counts = convsent(tmp_path, [*TOPICS, {"ent": "E", "pos": [" ", ""], "neg": [" No."]}])
    assert [request.subject for request in requests] == list("ABCD")
    assert (counts["one_sided_topic_skipped"], counts["blank_answers"]) == (1, 2)


@pytest.mark.parametrize("questions", [(), ("What of it?",)])
def test_convsent_needs_questions_with_a_slot(tmp_path, questions):
    with pytest.raises(UsageError, match=r"\{topic\}"):
        convsent(tmp_path, TOPICS, questions=questions)


@pytest.mark.parametrize(
    ("record", "place", "expected"),
    [
        ("a fact", "record 1:", "an object"),
        ({"subject": "Bo", "target_new": "Rom"}, "record 1:", "the key 'prompt'"),
        (FACT | {"prompt": ""}, "key 'prompt'", "a string that is not empty"),
        ({"subject": "Bo", "prompt": "Bo is"}, "record 1:", "the key 'target_new'"),
        (FACT | {"target_new": 7}, "key 'target_new'", "a string"),
        (FACT | {"target_new": None}, "record 1:", "the key 'target_new'"),
        (FACT | {"locality": ["no"]}, "key 'locality'", "an object"),
        (FACT | {"locality": {"Forgetfulness": "no"}}, "key 'locality.Forgetfulness'", "a list"),
        (
            FACT | {"locality": {"Forgetfulness": [{"prompt": "Ada", "ground_truth": 1999}]}},
            "key 'locality.Forgetfulness[0].ground_truth'",
            "a list of lists of strings",
        ),
        (
            FACT | {"portability": {"Reasoning": [{"prompt": "Ada", "ground_truth": [["a", 3]]}]}},
            "key 'portability.Reasoning[0].ground_truth[0][1]'",
            "a string",
        ),
    ],
)
def test_anything_else_is_named_by_file_record_key_and_expectation(tmp_path, record, place, expected):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, [FACT, record])
    message = str(caught.value)
    assert str(tmp_path / "facts.json") in message
    assert "record 1" in message and place in message and expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "expected"), [("{", "is not JSON"), ('{"a": 1}', "a list of records"), ("[]", "holds no record")]
)
def test_a_file_that_is_no_list_of_records_is_refused(tmp_path, content, expected):
    with pytest.raises(UsageError, match=expected):
        read(tmp_path, content)


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / "facts.json").write_bytes(b'[{"subject": "\xff"}]')
    with pytest.raises(UsageError, match="is not JSON"):
        read_records(tmp_path / "facts.json", "recent", Counter())
