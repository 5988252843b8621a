"""What a user would see: the edited model writes its own answer and stops on its own."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log2

from editkit.edits import Edit, applied
from editkit.evaluation.records import Record, questions
from editkit.lm import LM, chunks
from editkit.requests import EditRequest

SENTENCE_END = re.compile(r"(?<=\w\w\w)[.!?](?=\s|$)|[!?](?=\s|$)")  # "St. Louis", "U.S." and initials go on
ARTICLES = re.compile(r"\b(a|an|the)\b")


def answers(lm: LM, edit: Edit, asked: Sequence[tuple[int, str]], tokens: int, at_once: int, stop: bool) -> list[str]:
    """What each slot's model writes behind each prompt, greedily, in order; slot -1 is the base model."""
    sites = lm.sites(list(edit.rules))
    found = [""] * len(asked)
    by_length = sorted(range(len(asked)), key=lambda index: len(asked[index][1]))
    for chunk in chunks(by_length, at_once):
        chunk = sorted(chunk, key=lambda index: asked[index][0])
        with applied(sites, edit, [asked[index][0] for index in chunk]):
            written = lm.write([asked[index][1] for index in chunk], tokens, stop)
        for index, text in zip(chunk, written, strict=True):
            found[index] = text
    return found


def first_sentence(text: str) -> str:
    """``text`` up to its first newline or sentence end, stripped."""
    line = text.strip().split("\n")[0]
    end = SENTENCE_END.search(line)
    return line[: end.start()].strip() if end else line


def normalised(text: str) -> str:
    """Lower case, compatibility forms, no punctuation, no articles, single spaces."""
    kept = unicodedata.normalize("NFKC", text).lower()
    kept = "".join(" " if unicodedata.category(c)[0] == "P" else c for c in kept)
    return " ".join(ARTICLES.sub(" ", kept).split())


def matches(said: str, aliases: Sequence[str]) -> tuple[bool, bool]:
    """Whether the answer *is* one of the aliases, and whether it *contains* one as whole words; both normalised."""
    words = normalised(said)
    wanted = [alias for alias in map(normalised, aliases) if alias]
    return words in wanted, any(f" {alias} " in f" {words} " for alias in wanted)


@dataclass(frozen=True)
class Generative:
    """Scores edits by what the model writes.

    - reliability, generalization, portability: what is written is one of the aliases (``contains``: has one in it).
    - locality: base and edited model write the same answer.

    Attributes:
        tokens: at most so many new tokens, whatever the answer's length.
        rows: prompts that run at once.
        questions_per_measure: at most so many rephrases, and so many probes of a category, for a request; null: all.
    """

    tokens: int = 24
    rows: int = 128
    questions_per_measure: int | None = None
    _base: dict[tuple[int, str], str] = field(default_factory=dict, repr=False)

    def score(self, lm: LM, edit: Edit, groups: Sequence[Sequence[EditRequest]]) -> list[Record]:
        asked = []
        taken: Counter[tuple[str, str, str, str]] = Counter()
        for question in questions(groups):
            key = (question.request.id, question.measure, question.asked, question.category)
            taken[key] += 1
            if self.questions_per_measure is None or taken[key] <= self.questions_per_measure:
                asked.append(question)
        model = id(lm)
        unknown = list(dict.fromkeys(q.prompt for q in asked if (model, q.prompt) not in self._base))
        for prompt, text in zip(unknown, self._written(lm, edit, [(-1, prompt) for prompt in unknown]), strict=True):
            self._base[model, prompt] = text
        records = []
        for question, edited in zip(asked, self._written(lm, edit, [(q.slot, q.prompt) for q in asked]), strict=True):
            base = self._base[model, question.prompt]
            if question.measure == "locality":
                scores = {"": float(normalised(edited) == normalised(base))}
            else:
                exact, contains = matches(edited, question.answers)
                scores = {"": float(exact), "contains": float(contains)}
            records.append(
                Record(
                    request=question.request.id,
                    task=question.request.task,
                    protocol="generative",
                    measure=question.measure,
                    asked=question.asked,
                    category=question.category,
                    prompt=question.prompt,
                    answer=question.answers[0],
                    base=base,
                    edited=edited,
                    scores=scores,
                )
            )
        return records

    def _written(self, lm: LM, edit: Edit, asked: Sequence[tuple[int, str]]) -> list[str]:
        return [first_sentence(text) for text in answers(lm, edit, asked, self.tokens, self.rows, stop=True)]


@dataclass(frozen=True)
class Fluency:
    """Mean of 2/3 · H2 and 4/3 · H3, the entropies (log2) of the word bigrams and trigrams of generated text, × 100.

    Each edited model goes on from its edit's bare prompt for ``tokens`` tokens, not allowed to end. Named under
    ``teacher_forced`` because that is the protocol of the tables it is published in.
    """

    tokens: int = 48
    rows: int = 128

    def score(self, lm: LM, edit: Edit, groups: Sequence[Sequence[EditRequest]]) -> list[Record]:
        asked = [(slot, request) for slot, group in enumerate(groups) for request in group]
        texts = answers(lm, edit, [(slot, r.prompt) for slot, r in asked], self.tokens, self.rows, stop=False)
        return [
            Record(
                request=request.id,
                task=request.task,
                protocol="teacher_forced",
                measure="fluency",
                asked="same",
                category="",
                prompt=request.prompt,
                answer="",
                base="",
                edited=text,
                scores={"": fluency(text)},
            )
            for (_, request), text in zip(asked, texts, strict=True)
        ]


def fluency(text: str) -> float:
    """100 · mean(2/3 · H2, 4/3 · H3) of ``text``; 0 for fewer than three words."""
    words = text.split()
    weighted = [weight * entropy(words, n) for n, weight in ((2, 2 / 3), (3, 4 / 3))]
    return 100 * sum(weighted) / len(weighted)


def entropy(words: Sequence[str], n: int) -> float:
    """Entropy in bits of the distribution of ``words``' n-grams."""
    counts = Counter(zip(*(words[offset:] for offset in range(n)), strict=False)).values()
    total = sum(counts)
    return -sum(count / total * log2(count / total) for count in counts) if total else 0.0
