"""The protocol of published tables: prompt and answer in one forward pass, scored at the answer's positions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.edits import Edit, applied
from editkit.evaluation.records import Question, Record, questions
from editkit.lm import LM, Text, chunks
from editkit.requests import EditRequest

PROTOCOL = "teacher_forced"

Row = tuple[int, Text]
"""A text and the slot it is asked of."""


@dataclass(frozen=True)
class Outcome:
    """What base and edited model make of one text's answer.

    ``base`` and ``edited`` are the predicted tokens. Where they were asked for: ``kl`` is KL(base ‖ edited) in nats,
    ``log_prob`` the answer's log-probability under the edited model and ``base_log_prob`` under the base, each a mean
    over the answer's tokens.
    """

    base: tuple[int, ...]
    edited: tuple[int, ...]
    kl: float = 0.0
    log_prob: float = 0.0
    base_log_prob: float = 0.0


@torch.no_grad()
def outcomes(lm: LM, edit: Edit, rows: Sequence[Row], at_once: int, likelihoods: bool) -> list[Outcome]:
    """The outcome of each (slot, text), in order. Texts of similar length run together, ``at_once`` of them.

    ``likelihoods`` asks for the numbers that need the whole distribution, which costs more than the rest.
    """
    names = list(edit.rules)
    start, sites = lm.block_of(names), lm.sites(names)
    by_length = sorted(range(len(rows)), key=lambda index: (len(rows[index][1].ids), rows[index][0]))
    found: list[Outcome] = [Outcome((), ())] * len(rows)
    for chunk in chunks(by_length, at_once):
        chunk = sorted(chunk, key=lambda index: rows[index][0])  # rows of a slot side by side
        texts = [rows[index][1] for index in chunk]
        base = lm.head(lm.base(texts, start))
        batch = lm.batch(texts, start)
        with applied(sites, edit, [rows[index][0] for index in chunk]):
            edited = lm.logits(batch)
        columns = [base.argmax(-1), edited.argmax(-1)]
        if likelihoods:
            base, edited = base.to(edited.dtype).log_softmax(-1), edited.log_softmax(-1)
            kl = (base.exp() * (base - edited)).sum(-1)
            columns += [kl, *(x.gather(-1, batch.labels[:, None])[:, 0] for x in (edited, base))]
        parts = [column.split([len(text.answer) for text in texts]) for column in columns]
        for index, (said, now, *numbers) in zip(chunk, zip(*parts, strict=True), strict=True):
            found[index] = Outcome(tuple(said.tolist()), tuple(now.tolist()), *(float(x.mean()) for x in numbers))
    return found


@dataclass(frozen=True)
class TeacherForced:
    """Scores edits by their answers' tokens.

    - reliability, generalization, portability: share of the answer's tokens predicted, and ``exact``: all of them.
      With several aliases the best one counts.
    - locality: share of positions where base and edited model predict the same token, under the probe's canonical
      answer, and ``kl``: KL(base ‖ edited) there, in nats.
    - edit_success (records with opinions): σ(ℓ⁺ - ℓ⁻) · min(1, exp(ℓ⁺ - ℓ⁺_base)), ℓ the mean token log-probability of
      the answers with the wanted and the other sentiment (MEND's measure for ConvSent).
    - target_known: whether the base model gave the whole target before the edit.

    Attributes:
        rows: texts that run at once.
        locality_instructed: ask locality a second time, behind the edit's instruction (``locality_instructed``).
    """

    rows: int = 128
    locality_instructed: bool = False

    def score(self, lm: LM, edit: Edit, groups: Sequence[Sequence[EditRequest]]) -> list[Record]:
        asked = questions(groups, self.locality_instructed)
        changed = [question for question in asked if question.measure != "locality"]
        kept = [question for question in asked if question.measure == "locality"]
        opinions = [(slot, r, r.opinions) for slot, group in enumerate(groups) for r in group if r.opinions is not None]

        every = self._seen(lm, edit, [(q.slot, lm.text(q.prompt, a)) for q in changed for a in q.answers], False)
        records = [record for q in changed for record in self._answered(lm, q, [next(every) for _ in q.answers])]
        every = self._seen(lm, edit, [(q.slot, lm.text(q.prompt, q.answers[0])) for q in kept], True)
        for question, (_, seen) in zip(kept, every, strict=True):
            scores = {"": _share(seen.base, seen.edited), "kl": seen.kl}
            records.append(self._record(lm, question, question.answers[0], seen, scores))
        spoken = [(s, lm.text(r.instruction + r.prompt, a)) for s, r, o in opinions for a in (*o.wanted, *o.other)]
        every = self._seen(lm, edit, spoken, True)
        for _, request, both in opinions:
            wanted = [next(every)[1] for _ in both.wanted]
            other = [next(every)[1] for _ in both.other]
            records.append(self._success(request, wanted, other))
        return records

    def _seen(self, lm: LM, edit: Edit, rows: Sequence[Row], likelihoods: bool) -> Iterator[tuple[Text, Outcome]]:
        found = outcomes(lm, edit, rows, self.rows, likelihoods)
        return iter([(text, outcome) for (_, text), outcome in zip(rows, found, strict=True)])

    def _answered(self, lm: LM, question: Question, asked: Sequence[tuple[Text, Outcome]]) -> list[Record]:
        shares = [_share(text.answer, seen.edited) for text, seen in asked]
        best = shares.index(max(shares))
        text, seen = asked[best]
        scores = {"": shares[best], "exact": float(text.answer == seen.edited)}
        records = [self._record(lm, question, question.answers[best], seen, scores)]
        if question.measure == "reliability" and question.asked != "instructed":
            known = {"": float(text.answer == seen.base)}
            records.append(self._record(lm, question, question.answers[best], seen, known, "target_known"))
        return records

    def _record(
        self, lm: LM, question: Question, answer: str, seen: Outcome, scores: dict[str, float], measure: str = ""
    ) -> Record:
        return Record(
            request=question.request.id,
            task=question.request.task,
            protocol=PROTOCOL,
            measure=measure or question.measure,
            asked="same" if measure else question.asked,
            category=question.category,
            prompt=question.prompt,
            answer=answer,
            base=lm.string(seen.base),
            edited=lm.string(seen.edited),
            scores=scores,
        )

    def _success(self, request: EditRequest, wanted: Sequence[Outcome], other: Sequence[Outcome]) -> Record:
        def mean(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64).mean()

        up, down = mean([o.log_prob for o in wanted]), mean([o.log_prob for o in other])
        before = mean([o.base_log_prob for o in wanted])
        value = torch.sigmoid(up - down) * torch.exp((up - before).clamp(max=0))
        return Record(
            request=request.id,
            task=request.task,
            protocol=PROTOCOL,
            measure="edit_success",
            asked="same",
            category=request.label,
            prompt=request.instruction + request.prompt,
            answer=request.target,
            base=f"log-probability {float(before):.3f}",
            edited=f"wanted {float(up):.3f}, other {float(down):.3f}",
            scores={"": float(value)},
        )


def _share(wanted: Sequence[int], given: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(wanted, given, strict=True)) / len(wanted)
