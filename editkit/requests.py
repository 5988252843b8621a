"""What an editor is asked to change, and what is asked of the edited model afterwards.

Plain immutable data and the standard library only: every task's file becomes a list of these, and nothing above this
module needs to know which file a request came from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

NOTHING: Mapping[str, tuple["Probe", ...]] = MappingProxyType({})


@dataclass(frozen=True)
class Probe:
    """One question put to the edited model, with every answer that counts as right.

    ``answers`` holds the aliases, the canonical one first; none of them is blank. Text is kept without the space that
    joins prompt and answer: tokenisation adds it.
    """

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Opinions:
    """Answers to one topic by sentiment: those the edit asks for, and those it moves away from."""

    wanted: tuple[str, ...]
    other: tuple[str, ...]


@dataclass(frozen=True)
class EditRequest:
    """One fact to change: after the edit, ``prompt`` is to be continued with ``target``.

    Attributes:
        id: names the record for good, e.g. ``counterfact/test_cf.json#17``.
        task: the task it belongs to, e.g. ``counterfact``.
        subject: what the fact is about (ConvSent: the topic).
        prompt: the edit prompt, without an instruction.
        target: the new answer.
        truth: the old, true answer where the record has one.
        rephrases: the edit prompt in other words; they should get the target too.
        locality: probes by category whose answers should not change.
        portability: probes by category whose answers follow from the edit.
        opinions: ConvSent's answers of both sentiments, else ``None``.
        label: ConvSent's wanted sentiment, ``positive`` or ``negative``, else empty.
        instruction: the text put before the prompt by editors that read one, else empty. It ends where the prompt
            begins, so that ``instruction + prompt`` is what such an editor reads.
    """

    id: str
    task: str
    subject: str
    prompt: str
    target: str
    truth: str | None = None
    rephrases: tuple[str, ...] = ()
    locality: Mapping[str, tuple[Probe, ...]] = field(default_factory=lambda: NOTHING)
    portability: Mapping[str, tuple[Probe, ...]] = field(default_factory=lambda: NOTHING)
    opinions: Opinions | None = None
    label: str = ""
    instruction: str = ""
