"""From the records of one file to edit requests: one function for each shape a file comes in.

A reader takes the file's records and a seed (of which only ConvSent's makes use: its files hold no prompts, so that
something has to be drawn) and gives requests in the file's order. It leaves out what cannot be an edit, counts that and
everything it mends, and raises UsageError on anything else that is not as it should be.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from editkit.errors import UsageError
from editkit.requests import EditRequest, Opinions, Probe
from editkit.tasks.records import Node

Reader = Callable[[Sequence[Node], int], Iterator[EditRequest]]


def knowedit(records: Sequence[Node], seed: int) -> Iterator[EditRequest]:
    """Requests from KnowEdit's Recent, CounterFact and ZsRE files, which differ in what they leave out.

    ``ground_truth`` and ``rephrase_prompt`` may be missing; ``portability`` and ``locality`` map a category to a list
    of ``{prompt, ground_truth}`` and may be missing, null or empty.
    Source: https://huggingface.co/datasets/zjunlp/KnowEdit
    """
    for record in records:
        if target := _target(record, "target_new"):
            truth, rephrases = record.get("ground_truth"), record.get("rephrase_prompt")
            yield _request(
                record,
                record["prompt"],
                target,
                truth=_truth(truth) if truth else None,
                rephrases=rephrases.answers() if rephrases else (),
                locality=_section(record, "locality"),
                portability=_section(record, "portability"),
            )


def mend_zsre(records: Sequence[Node], seed: int) -> Iterator[EditRequest]:
    """Requests from the ZsRE questions MEND is evaluated on, with a portability question to each.

    ``alt`` is the target, ``answers`` holds the truth (``pred`` is only what some model once said), and ``loc`` is a
    question on something else altogether, hence the category ``Unrelated``. Source: https://arxiv.org/abs/2305.13172
    """
    for record in records:
        if target := _target(record, "alt"):
            question, hop = record["loc"].text(), record["portability"]
            if question.startswith("nq question: "):
                record.counts["nq_prefix"] += 1
                question = question.removeprefix("nq question: ")
            yield _request(
                record,
                record["src"],
                target,
                truth=_truth(record["answers"]),
                rephrases=(record["rephrase"].text(),),
                locality=_probes("Unrelated", question, record["loc_ans"]),
                portability=_probes("Reasoning", hop["New Question"].text(), hop["New Answer"]),
            )


def counterfact(records: Sequence[Node], seed: int) -> Iterator[EditRequest]:
    """Requests from CounterFact with one rephrase and one neighbouring subject a record, hence ``Neighborhood``.

    Source: https://arxiv.org/abs/2202.05262
    """
    for record in records:
        if target := _target(record, "target_new"):
            yield _request(
                record,
                record["prompt"],
                target,
                truth=_truth(record["ground_truth"]),
                rephrases=(record["rephrase_prompt"].text(),),
                locality=_probes("Neighborhood", record["locality_prompt"].text(), record["locality_ground_truth"]),
            )


def convsent(
    records: Sequence[Node], seed: int, questions: Sequence[str], others: int, both: bool
) -> Iterator[EditRequest]:
    """Requests from topics with positive and negative answers: to answer the question on a topic with one sentiment.

    The target is one answer of the wanted sentiment, drawn by ``seed`` and the topic's record. Locality is the question
    on other topics of the file, to be answered as before whichever the sentiment: category ``Other_Topic``. A topic
    without answers of both sentiments cannot be scored and is left out.
    Source: https://arxiv.org/abs/2206.06520

    Args:
        records: ``{ent, pos, neg}``: a topic and its answers.
        seed: of all draws.
        questions: with the slot ``{topic}``; the first makes the edit prompt, the others its rephrases.
        others: how many other topics are asked about; each gives one probe for each of its sentiments.
        both: two requests a topic, one for each sentiment, instead of one whose sentiment is drawn.
    """
    if not questions or not all("{topic}" in question for question in questions):
        raise UsageError(f"questions={list(questions)}: ConvSent needs at least one, each with the slot {{topic}}.")

    said = [
        (record["ent"].text(), {"positive": record["pos"].answers(), "negative": record["neg"].answers()})
        for record in records
    ]
    topics = dict(said)
    names = list(topics)

    for record, (topic, answers) in zip(records, said, strict=True):
        if not all(answers.values()):
            record.counts["one_sided_topic_skipped"] += 1
            continue
        draw = random.Random(f"{seed}/{record.id}")
        prompt, *rephrases = (question.replace("{topic}", topic) for question in questions)
        for label in answers if both else [draw.choice(list(answers))]:
            wanted, other = answers[label], answers["negative" if label == "positive" else "positive"]
            choice = draw.randrange(len(wanted))
            away = [name for name in draw.sample(names, min(others + 1, len(names))) if name != topic][:others]
            probes = [
                Probe(questions[0].replace("{topic}", name), (draw.choice(texts),))
                for name in away
                for texts in topics[name].values()
                if texts
            ]
            yield EditRequest(
                id=f"{record.id}:{label}{choice}",
                task=record.task,
                subject=topic,
                prompt=prompt,
                target=wanted[choice],
                rephrases=tuple(rephrases),
                locality={"Other_Topic": tuple(probes)} if probes else {},
                opinions=Opinions(wanted, other),
                label=label,
            )


def _request(record: Node, prompt: Node, target: str, **details: Any) -> EditRequest:
    subject = record["subject"].text()
    return EditRequest(record.id, record.task, subject, prompt.text(), target, **details)


def _target(record: Node, key: str) -> str:
    target = record[key].text(blank=True)
    if not target:
        record.counts["empty_target_skipped"] += 1
    return target


def _truth(node: Node) -> str | None:
    return next(iter(node.answers()), None)


def _section(record: Node, name: str) -> Mapping[str, tuple[Probe, ...]]:
    """Probes by category; categories without any are left out."""
    section = record.get(name)
    if section is None:
        record.counts[f"{name}_absent"] += 1
        return {}
    if not section.value:
        record.counts[f"{name}_empty"] += 1
    probes: dict[str, tuple[Probe, ...]] = {}
    for category, entries in section.fields().items():
        if not entries.value:
            record.counts[f"{name}_category_empty"] += 1
        for entry in entries.items():
            for kind, found in _probes(category, entry["prompt"].text(), entry["ground_truth"]).items():
                probes[kind] = probes.get(kind, ()) + found
    return probes


def _probes(category: str, prompt: str, truth: Node) -> dict[str, tuple[Probe, ...]]:
    answers = truth.answers()
    if not answers:
        truth.counts["probe_without_answer_dropped"] += 1
        return {}
    return {category: (Probe(prompt, answers),)}
