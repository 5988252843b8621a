"""What meta-training minimises: how good edited models are, as a loss that the editor's parameters carry."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from editkit.edits import Edit, applied
from editkit.errors import check_choice
from editkit.lm import LM, Batch, Text
from editkit.requests import EditRequest, Probe

Row = tuple[int, Text]
"""A text and the slot it is asked of."""


@dataclass(frozen=True)
class Questions:
    """What a step asks of its edits, whole or the part that some of its slots have in it.

    Attributes:
        changed: texts that the edits should change, for the NLL.
        kept: texts that they should leave alone, for the KL.
        whole: how many of both, and how many slots, the whole step has: what a part adds to the step's means.
    """

    changed: Sequence[Row]
    kept: Sequence[Row]
    whole: tuple[int, int, int]

    def part(self, slots: range) -> "Questions":
        """Those of ``slots``, which become 0, 1, …; the scores of all parts add up to those of the whole."""
        changed, kept = (
            [(slot - slots.start, text) for slot, text in rows if slot in slots] for rows in (self.changed, self.kept)
        )
        return Questions(changed, kept, self.whole)


@dataclass(frozen=True)
class Objective:
    """How good edits are, as a loss: ``edit_weight`` · NLL of the targets + ``locality_weight`` · KL(base ‖ edited).

    Attributes:
        outer: what is asked for the NLL: ``edit`` (the edit prompt, the InstructEdit release), ``rephrase`` (one of its
            rephrases, MEND; the edit prompt where a record has none), ``both``, or ``either``: one of the two, drawn
            anew for each way of asking, at half the cost of both.
        asked: how it is asked: ``instructed`` (as the paper does), ``bare`` (as a user does) or ``both``.
            Editors without instructions see no difference.
        edit_weight: weight of the NLL (nats a target token).
        locality_weight: weight of the KL (nats a position).
        locality_probes: drawn from each request's own locality probes, at most so many.
        distant_probes: drawn from what *other* requests of the step are about: edit prompts and locality probes.
        locality_instruction: put the instruction before a request's own locality probes as well.
        locality_positions: ``corrected`` takes the KL where the answer's tokens are predicted; ``faithful`` one
            position later, as the InstructEdit release does.
    """

    outer: str = "either"
    asked: str = "both"
    edit_weight: float = 0.1
    locality_weight: float = 1.0
    locality_probes: int = 1
    distant_probes: int = 1
    locality_instruction: bool = False
    locality_positions: str = "corrected"

    def __post_init__(self) -> None:
        check_choice("outer", self.outer, ("edit", "rephrase", "both", "either"))
        check_choice("asked", self.asked, ("instructed", "bare", "both"))
        check_choice("locality_positions", self.locality_positions, ("corrected", "faithful"))

    def questions(self, lm: LM, requests: Sequence[EditRequest], draw: random.Random) -> Questions:
        """What to ask of an edit whose slot i holds ``requests[i]``."""
        changed = [(slot, text) for slot, request in enumerate(requests) for text in self._asked(lm, request, draw)]
        kept = [(slot, text) for slot in range(len(requests)) for text in self._kept(lm, slot, requests, draw)]
        return Questions(changed, kept, (len(changed), len(kept), len(requests)))

    def __call__(self, lm: LM, edit: Edit, questions: Questions) -> dict[str, Float[Tensor, ""]]:
        """Losses and shares for ``edit``; ``loss`` carries the gradient. Nothing here waits for the device.

        ``nll`` and ``kl`` are means over texts of means over tokens; ``reliability`` and ``locality`` are shares of
        tokens: target tokens predicted, and positions where base and edited model predict the same. ``success`` is the
        share of texts whose target is predicted whole.
        """
        start = lm.block_of(edit.rules)
        sites = lm.sites(list(edit.rules))
        shift = int(self.locality_positions == "faithful")
        changed, kept, slots = questions.whole
        scores = {
            name: torch.zeros((), device=lm.device) for name in ("nll", "reliability", "success", "kl", "locality")
        }

        def edited(bucket: Sequence[Row], shift: int) -> tuple[Tensor, Batch]:
            batch = lm.batch([text for _, text in bucket], start, shift)
            with applied(sites, edit, [slot for slot, _ in bucket]):
                return lm.logits(batch), batch

        for bucket in buckets(questions.changed):
            logits, batch = edited(bucket, 0)
            share = batch.share / changed
            right = logits.argmax(-1) == batch.labels
            wrong = torch.zeros(len(bucket), device=lm.device).index_add(0, batch.row, (~right).float())
            scores["nll"] = scores["nll"] + (cross_entropy(logits, batch.labels, reduction="none") * share).sum()
            scores["reliability"] = scores["reliability"] + (right * share).sum()
            scores["success"] = scores["success"] + (wrong == 0).sum() / changed
        for bucket in buckets(questions.kept):
            logits, batch = edited(bucket, shift)
            share = batch.share / kept
            with torch.no_grad():
                texts = [text for _, text in bucket]
                base = lm.logits(lm.batch(texts, start, 1)) if shift else lm.head(lm.base(texts, start))
                base = base.to(logits.dtype).log_softmax(-1)
            kl = (base.exp() * (base - logits.log_softmax(-1))).sum(-1)
            scores["kl"] = scores["kl"] + (kl * share).sum()
            scores["locality"] = scores["locality"] + ((logits.argmax(-1) == base.argmax(-1)) * share).sum()
        if not kept:
            scores["locality"] = scores["locality"] + edit.slots / slots
        return {"loss": self.edit_weight * scores["nll"] + self.locality_weight * scores["kl"], **scores}

    def texts(self, lm: LM, requests: Sequence[EditRequest]) -> set[Text]:
        """Every text that ``questions`` may draw for ``requests``, whatever the step."""
        found = set()
        for request in requests:
            for before in self._before(request):
                found |= {lm.text(before + prompt, request.target) for prompt in (request.prompt, *request.rephrases)}
            own = {request.instruction if self.locality_instruction else ""} if self.locality_probes else set()
            probes = [probe for probes in request.locality.values() for probe in probes]
            for before in own | ({""} if self.distant_probes else set()):
                found |= {lm.text(before + probe.prompt, probe.answers[0]) for probe in probes}
            if self.distant_probes:
                found.add(lm.text(request.prompt, request.truth or request.target))
        return found

    def learned(self) -> dict[str, Any]:
        """The attributes that training moves, for checkpoints and curves; none here."""
        return {}

    def stepped(self, scores: Mapping[str, float]) -> "Objective":
        """The objective of the next step, after one whose mean losses and shares were ``scores``."""
        return self

    def validated(self, scores: Mapping[str, float]) -> "Objective":
        """The objective to go on with after a validation that gave ``scores``."""
        return self

    def _asked(self, lm: LM, request: EditRequest, draw: random.Random) -> list[Text]:
        rephrase = draw.choice(request.rephrases) if request.rephrases else request.prompt
        both = [request.prompt, rephrase]
        asked: dict[str, None] = {}
        for instruction in self._before(request):
            prompts = {"edit": both[:1], "rephrase": both[1:], "both": both, "either": [draw.choice(both)]}[self.outer]
            asked |= dict.fromkeys(instruction + prompt for prompt in prompts)
        return [lm.text(prompt, request.target) for prompt in asked]

    def _before(self, request: EditRequest) -> list[str]:
        """What stands before the prompts that the NLL asks."""
        return {"instructed": [request.instruction], "bare": [""], "both": [request.instruction, ""]}[self.asked]

    def _kept(self, lm: LM, slot: int, requests: Sequence[EditRequest], draw: random.Random) -> list[Text]:
        instruction = requests[slot].instruction if self.locality_instruction else ""
        own = [probe for probes in requests[slot].locality.values() for probe in probes]
        kept = [(instruction, probe) for probe in draw.sample(own, min(self.locality_probes, len(own)))]
        others = [other for other in requests if other.subject != requests[slot].subject]
        for other in draw.sample(others, min(self.distant_probes, len(others))):
            away = [Probe(other.prompt, (other.truth or other.target,))]
            away += [probe for probes in other.locality.values() for probe in probes]
            kept.append(("", draw.choice(away)))
        return [lm.text(before + probe.prompt, probe.answers[0]) for before, probe in kept]


@dataclass(frozen=True)
class Constrained(Objective):
    """KE's own training: the least NLL with KL ≤ ``margin`` (KnowledgeEditor, arXiv 2104.08164).

    ``locality_weight`` is the constraint's multiplier, learned by ascent: each step raises it by ``rate`` if the KL is
    above the margin and lowers it if not, never below 0. The authors' centred RMSprop, too, moves it by steps that do
    not grow with how far off the KL is; theirs are uneven, these need no state. The margin times the multiplier is left
    out of the loss, since the editor's gradient does not depend on it.

    Attributes:
        margin: bound on the KL (nats a position) at the start.
        shrink: what the margin is multiplied by after a validation whose success is above ``enough``.
        least_margin: where it stops shrinking.
        enough: share of texts whose target is predicted whole.
        rate: step of the multiplier.
    """

    edit_weight: float = 1.0
    margin: float = 1e-3
    shrink: float = 0.8
    least_margin: float = 1e-5
    enough: float = 0.9
    rate: float = 0.1

    def learned(self) -> dict[str, Any]:
        return {"locality_weight": self.locality_weight, "margin": self.margin}

    def stepped(self, scores: Mapping[str, float]) -> "Constrained":
        step = self.rate if scores["kl"] > self.margin else -self.rate
        return replace(self, locality_weight=max(0.0, self.locality_weight + step))

    def validated(self, scores: Mapping[str, float]) -> "Constrained":
        if scores["success"] <= self.enough:
            return self
        return replace(self, margin=max(self.least_margin, self.margin * self.shrink))


def buckets(rows: Sequence[Row], ratio: float = 1.5) -> list[list[Row]]:
    """``rows`` split so that in each part the longest text is at most ``ratio`` times the shortest.

    Texts with an instruction are several times as long as those without: padded together they would cost twice as much.
    Within a part the rows of a slot stand together.
    """
    parts: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row[1].ids)):
        if not parts or len(row[1].ids) > ratio * len(parts[-1][0][1].ids):
            parts.append([])
        parts[-1].append(row)
    return [sorted(part, key=lambda row: row[0]) for part in parts]
