"""Both protocols against the slow obvious way: one prompt at a time through a copy with the edit written in."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from editkit.editors.ft import FineTuning
from editkit.edits import Edit
from editkit.evaluation import Protocols
from editkit.evaluation.generative import (
    Fluency,
    Generative,
    entropy,
    first_sentence,
    fluency,
    matches,
    normalised,
)
from editkit.evaluation.records import Record, questions
from editkit.evaluation.teacher_forced import TeacherForced
from editkit.lm import LM
from editkit.requests import EditRequest, Opinions


@pytest.fixture
def told(requests: list[EditRequest]) -> list[EditRequest]:
    """Two instructed requests, one with opinions, and one without an instruction."""
    both = Opinions(("I love it.", "Good."), ("Bad.",))
    first, second = (replace(request, instruction="Do this: ") for request in requests[:2])
    return [first, replace(second, opinions=both, label="positive"), requests[2]]


@pytest.fixture
def edited(lm: LM, family: str, told: list[EditRequest]) -> Edit:
    site = {"llama": "-1.mlp.down_proj", "gpt2": "-1.mlp.c_proj"}[family]
    with torch.no_grad():
        return FineTuning(lm, site, "target", lr=0.05, steps=4, clamp=0.2).edit(lm, [[request] for request in told])


def written(lm: LM, edit: Edit, slot: int) -> LM:
    model = copy.deepcopy(lm.model)
    for site, rule in edit.rules.items():
        module = model.get_submodule(site)
        module.weight.data += rule.update(slot).mT if isinstance(module, torch.nn.Linear) else rule.update(slot)
    return LM(model, lm.tokenizer, lm.layout, "copy")


@torch.no_grad()
def logits(lm: LM, prompt: str, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
    text = lm.text(prompt, answer)
    return lm.model(torch.tensor([text.ids])).logits[0, text.prompt - 1 : -1], torch.tensor(text.answer)


def shares(lm: LM, prompt: str, answer: str) -> float:
    given, wanted = logits(lm, prompt, answer)
    return float((given.argmax(-1) == wanted).double().mean())


@pytest.mark.parametrize("rows", [1, 3, 256])
def test_teacher_forced_is_the_slow_way(lm: LM, edited: Edit, told: list[EditRequest], rows: int) -> None:
    records = TeacherForced(rows).score(lm, edited, [[request] for request in told])
    by_id = {request.id: (slot, request) for slot, request in enumerate(told)}
    checked = 0
    for record in records:
        slot, request = by_id[record.request]
        copied = written(lm, edited, slot)
        if record.measure in ("reliability", "generalization", "portability"):
            probes = [p for probes in request.portability.values() for p in probes]
            answers = probes[0].answers if record.measure == "portability" else (request.target,)
            best = max(answers, key=lambda a: shares(copied, record.prompt, a))
            assert record.scores[""] == pytest.approx(shares(copied, record.prompt, best))
            assert record.scores["exact"] == float(record.scores[""] == 1.0)
            checked += 1
        elif record.measure == "locality":
            base, _ = logits(lm, record.prompt, "that")
            after, _ = logits(copied, record.prompt, "that")
            assert record.scores[""] == pytest.approx(float((base.argmax(-1) == after.argmax(-1)).double().mean()))
            kl = torch.nn.functional.kl_div(
                after.log_softmax(-1), base.log_softmax(-1), log_target=True, reduction="none"
            )
            assert record.scores["kl"] == pytest.approx(float(kl.sum(-1).mean()), rel=1e-5, abs=1e-9)
            checked += 1
        elif record.measure == "target_known":
            assert record.scores[""] == float(shares(lm, record.prompt, request.target) == 1.0)
            checked += 1
    # For each: 1 edit prompt, 1 rephrase, 1 portability probe (twice with an instruction), 1 locality, 1 known.
    assert checked == 2 * (6 + 2) + (3 + 2)


def test_edit_success_is_its_formula(lm: LM, edited: Edit, told: list[EditRequest]) -> None:
    records = TeacherForced().score(lm, edited, [[request] for request in told])
    (record,) = [record for record in records if record.measure == "edit_success"]
    copied = written(lm, edited, 1)

    def likelihood(model: LM, answers: tuple[str, ...]) -> float:
        means = []
        for answer in answers:
            given, wanted = logits(model, told[1].instruction + told[1].prompt, answer)
            means.append(float(given.log_softmax(-1).gather(-1, wanted[:, None]).mean()))
        return sum(means) / len(means)

    assert told[1].opinions is not None
    up, down = likelihood(copied, told[1].opinions.wanted), likelihood(copied, told[1].opinions.other)
    before = likelihood(lm, told[1].opinions.wanted)
    wanted = 1 / (1 + math.exp(down - up)) * min(1.0, math.exp(up - before))
    assert record.scores[""] == pytest.approx(wanted, rel=1e-5)


def test_generative_is_the_slow_way(lm: LM, edited: Edit, told: list[EditRequest]) -> None:
    records = Generative(tokens=6, rows=2).score(lm, edited, [[request] for request in told])
    slots = {request.id: slot for slot, request in enumerate(told)}
    for record in records:
        copied = written(lm, edited, slots[record.request])
        assert record.edited == first_sentence(copied.write([record.prompt], 6, stop=True)[0])
        assert record.base == first_sentence(lm.write([record.prompt], 6, stop=True)[0])
    assert {record.measure for record in records} == {"reliability", "generalization", "portability", "locality"}


def test_base_answers_are_written_once(lm: LM, edited: Edit, told: list[EditRequest]) -> None:
    protocol = Generative(tokens=3)
    protocol.score(lm, edited, [[request] for request in told])
    asked: list[str] = []
    write = lm.write
    lm.write = lambda prompts, *rest: asked.extend(prompts) or write(prompts, *rest)  # type: ignore[method-assign]
    protocol.score(lm, edited, [[request] for request in told])
    assert len(asked) == len(questions([[request] for request in told]))


def test_without_an_edit_nothing_changes(lm: LM, edited: Edit, told: list[EditRequest]) -> None:
    none = Edit(
        {site: type(rule)(**{n: t * 0 for n, t in rule.tensors().items()}) for site, rule in edited.rules.items()}, 3
    )
    every = Protocols({"a": TeacherForced(), "b": Generative(tokens=4), "c": Fluency(tokens=4)})
    for record in every.score(lm, none, [[request] for request in told]):
        if record.measure == "locality":
            assert record.scores[""] == 1.0
            assert record.scores.get("kl", 0.0) == pytest.approx(0.0, abs=1e-9)
        if record.base and record.measure != "edit_success":
            assert record.base == record.edited


def test_questions_stand_with_and_without_the_instruction(told: list[EditRequest]) -> None:
    found = questions([told[:1], told[2:]])
    ways = {(q.slot, q.measure, q.asked, q.prompt.startswith("Do this: ")) for q in found}
    changed = ("reliability", "generalization", "portability")
    assert ways == (
        {(0, measure, "instructed", True) for measure in changed}
        | {(0, measure, "bare", False) for measure in changed}
        | {(1, measure, "same", False) for measure in changed}
        | {(slot, "locality", "same", False) for slot in (0, 1)}
    )


def test_a_request_without_rephrases_is_left_out_of_generalization(told: list[EditRequest]) -> None:
    found = questions([[replace(told[0], rephrases=())]])
    assert "generalization" not in {question.measure for question in found}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (" Rome.", "Rome"),
        ("Rome. It is old.", "Rome"),
        ("St. Louis. Yes", "St. Louis"),
        ("the U.S. Senate\nNext", "the U.S. Senate"),
        ("really? no", "really"),
        ("3.14 is pi", "3.14 is pi"),
        ("", ""),
    ],
)
def test_first_sentence(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence


@pytest.mark.parametrize(
    ("said", "aliases", "wanted"),
    [
        ("The Rome!", ["rome"], (True, True)),
        ("in Rome, Italy", ["Rome"], (False, True)),
        ("Romeo", ["Rome"], (False, False)),
        ("USA", ["United States", "U S A", "usa"], (True, True)),
        ("", [""], (False, False)),
    ],
)
def test_matches(said: str, aliases: list[str], wanted: tuple[bool, bool]) -> None:
    assert matches(said, aliases) == wanted


def test_normalised_folds_forms_case_punctuation_and_articles() -> None:
    assert normalised("  The “Ｒome”,  a city ") == "rome city"


def test_entropies_by_hand() -> None:
    assert entropy("a b a b a".split(), 2) == pytest.approx(1.0)  # ab, ba twice each
    assert entropy(["a"], 2) == 0.0
    words = "a b c d"  # 3 bigrams, 2 trigrams, all different
    assert fluency(words) == pytest.approx(100 * (2 / 3 * math.log2(3) + 4 / 3 * math.log2(2)) / 2)
    assert fluency("a a a a a") == 0.0


def test_fluency_goes_on_to_the_last_token(make_lm: Callable[..., LM], told: list[EditRequest]) -> None:
    lm = make_lm("gpt2")
    with torch.no_grad():
        edit = FineTuning(lm, "-1.mlp.c_proj", "target").edit(lm, [[request] for request in told])
    records = Fluency(tokens=7).score(lm, edit, [[request] for request in told])
    assert [record.request for record in records] == [request.id for request in told]
    assert all(isinstance(record, Record) and record.scores[""] == fluency(record.edited) for record in records)
