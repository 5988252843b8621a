"""What is asked of an edited model, and one record of what it answered; shared by every protocol and every editor."""

from collections.abc import Sequence
from dataclasses import dataclass

from editkit.requests import EditRequest


@dataclass(frozen=True)
class Question:
    """One prompt put to one slot's model.

    Attributes:
        slot: the edited model that is asked.
        request: the edit it belongs to.
        measure: ``reliability``, ``generalization``, ``locality`` or ``portability``.
        asked: ``instructed`` (the edit's instruction stands before the prompt), ``bare``, or ``same`` where the editor
            reads no instruction and the two coincide.
        category: the probe's category, else empty.
        prompt: the whole text that is asked.
        answers: every answer that counts, the canonical one first.
    """

    slot: int
    request: EditRequest
    measure: str
    asked: str
    category: str
    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """One question's outcome.

    ``scores`` maps a variant's name to its value, ``""`` being the measure itself: a token share has the variant
    ``exact``, locality ``kl``. ``base`` and ``edited`` are what the two models said. ``regime`` says how many edits
    the edited model has, and how they came together; who makes the edits fills it in.
    """

    request: str
    task: str
    protocol: str
    measure: str
    asked: str
    category: str
    prompt: str
    answer: str
    base: str
    edited: str
    scores: dict[str, float]
    regime: str = ""


def questions(groups: Sequence[Sequence[EditRequest]], locality_instructed: bool = False) -> list[Question]:
    """All that is asked about ``groups``, slot by slot; locality bare, on demand also behind the instruction."""
    found = []
    for slot, group in enumerate(groups):
        for request in group:
            changed: list[tuple[str, str, str, tuple[str, ...]]]
            changed = [("reliability", "", request.prompt, (request.target,))]
            changed += [("generalization", "", rephrase, (request.target,)) for rephrase in request.rephrases]
            for category, probes in request.portability.items():
                changed += [("portability", category, probe.prompt, probe.answers) for probe in probes]
            ways = {"instructed": request.instruction, "bare": ""} if request.instruction else {"same": ""}
            for asked, before in ways.items():
                found += [Question(slot, request, m, asked, c, before + prompt, a) for m, c, prompt, a in changed]
            kept = {"instructed": request.instruction} if locality_instructed and request.instruction else {}
            for asked, before in {"same": "", **kept}.items():
                for category, probes in request.locality.items():
                    found += [
                        Question(slot, request, "locality", asked, category, before + p.prompt, p.answers)
                        for p in probes
                    ]
    return found
