"""Speed and memory of edits beside the model, measured against the obvious way, as ratios within one run.

    python experiments/bench.py                      # GPT-2-small's shape, a few minutes on 2 cores
    python experiments/bench.py --shape toy          # seconds, to see that it runs
    python experiments/bench.py --out outputs/bench  # also speed.json and speed.md

MEND on the MLPs of the last three blocks of a GPT-2 with random weights; random "words" of one token each, drawn from
the whole vocabulary, so that the head costs what it costs. The *obvious way* is a second implementation of the same
arithmetic: one edit at a time through the whole model, as published code does it. Both ways are first checked to give
the same numbers, then timed in turn. Edits of the obvious way do not depend on each other, so a few of them give its
cost an edit.

training               a step from the second epoch on, beside published code's, which steps after each edit
training, first epoch  the same, when the trunk has not read its texts yet
training, trimmed      beside the obvious way without its waste: base frozen, optimiser's steps left out
scoring                teacher forced, all probes, beside a deep copy for each edit and a prompt at a time
scoring, next editor   the same, when another editor has been scored on these texts before
48 blocks beside 12    a training step at both depths, narrower, from the second epoch on
memory                 the process's peak, model and optimiser included
<editor>, n at once     n edits made together, beside a deep copy for each and all its blocks run at every step;
                       editors that search take five steps
<editor>, scoring      their scores, beside that copy asked one prompt at a time
"""

import argparse
import json
import multiprocessing
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.func import functional_call
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from editkit.editors import Editor
from editkit.editors.calinet import CaliNet
from editkit.editors.ft import FineTuning
from editkit.editors.grace import GRACE
from editkit.editors.ke import KE
from editkit.editors.mend import MEND
from editkit.edits import Edit, applied
from editkit.evaluation.records import questions
from editkit.evaluation.teacher_forced import TeacherForced
from editkit.lm import LM, Layout, Text, find, weight
from editkit.objectives import Objective
from editkit.requests import EditRequest, Probe
from editkit.training import Trainer

LAYOUT = Layout("transformer.h", "transformer.ln_f", "lm_head")
SITES = [f"{block}.mlp.{name}" for block in (-3, -2, -1) for name in ("c_fc", "c_proj")]
OBJECTIVE = Objective(outer="rephrase", asked="instructed", locality_probes=1, distant_probes=0)  # MEND's
AGREE = 1e-4  # relative: fp32, sums of tens of thousands of terms in another order


@dataclass(frozen=True)
class Shape:
    """A model's sizes, and the rank of MEND's networks (at most their width, d_in + d_out)."""

    blocks: int
    width: int
    heads: int
    vocabulary: int
    rank: int


@dataclass(frozen=True)
class Size:
    """What is measured: the main shape, the shape of the depth test, and its two depths."""

    main: Shape
    narrow: Shape
    depths: tuple[int, int]


SIZES = {
    "small": Size(Shape(12, 768, 12, 50257, 1920), Shape(12, 256, 4, 50257, 640), (12, 48)),
    "toy": Size(Shape(4, 32, 2, 300, 40), Shape(4, 32, 2, 300, 40), (4, 16)),
}


@dataclass(frozen=True)
class Row:
    """One line of the table: cost of both ways in ``unit`` (s: an edit), and the ratio's median, least and greatest."""

    what: str
    ours: float
    other: float
    unit: str
    ratio: float
    low: float
    high: float
    bound: float | None

    @property
    def holds(self) -> bool:
        return self.bound is None or self.ratio <= self.bound


# -- what is measured on ---------------------------------------------------------------------------------------------


def built(shape: Shape) -> tuple[LM, MEND]:
    """A random GPT-2 and MEND for it, its networks moved off the identity and its steps pointing downhill."""
    torch.manual_seed(0)
    sizes = {"n_layer": shape.blocks, "n_embd": shape.width, "n_head": shape.heads, "vocab_size": shape.vocabulary}
    model = GPT2LMHeadModel(GPT2Config(n_positions=128, bos_token_id=0, eos_token_id=0, **sizes))
    vocabulary = {"<|end|>": 0, "a": 1} | {f"w{token}": token for token in range(2, shape.vocabulary)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<|end|>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    lm = LM(model, PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>"), LAYOUT, "random GPT-2")
    editor = MEND(lm, SITES, rank=shape.rank, step_size=-0.4 / shape.width)
    for name, parameter in editor.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter, std=1e-4)
    return lm, editor


def drawn(shape: Shape, edits: int, seed: int) -> list[EditRequest]:
    """Requests of random words: prompts of 8 to 16 tokens, answers of 1 to 3, two probes of each kind."""
    draw = random.Random(seed)

    def words(least: int, most: int) -> str:
        return " ".join(f"w{draw.randrange(2, shape.vocabulary)}" for _ in range(draw.randint(least, most)))

    def probes() -> tuple[Probe, ...]:
        return tuple(Probe(words(8, 16), (words(1, 3),)) for _ in range(2))

    return [
        EditRequest(
            id=f"bench#{index}",
            task="bench",
            subject=f"{index}",
            prompt=words(8, 16),
            target=words(1, 3),
            rephrases=(words(8, 16), words(8, 16)),
            locality={"near": probes()},
            portability={"one hop": probes()},
        )
        for index in range(edits)
    ]


def for_training(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """The same with one rephrase and one locality probe, so that what the objective asks leaves nothing to draw."""
    return [replace(r, rephrases=r.rephrases[:1], locality={"near": r.locality["near"][:1]}) for r in requests]


# -- the obvious way -------------------------------------------------------------------------------------------------


def logits_of(model: nn.Module, text: Text, weights: dict[str, Tensor] | None = None) -> Tensor:
    """Logits for ``text``'s answer from the whole model, with ``weights`` in place of its own."""
    out = functional_call(model, weights or {}, (torch.tensor([text.ids]),), {"use_cache": False})
    return out.logits[0, text.prompt - 1 : -1]


def nll_of(logits: Tensor, text: Text) -> Tensor:
    return nn.functional.cross_entropy(logits, torch.tensor(text.answer))


def kl_of(base: Tensor, edited: Tensor) -> Tensor:
    base, edited = base.log_softmax(-1), edited.log_softmax(-1)
    return (base.exp() * (base - edited)).sum(-1).mean()


def factors_of(model: nn.Module, sites: Sequence[str], text: Text) -> dict[str, tuple[Tensor, Tensor]]:
    """Each site's inputs and output gradients, for the tokens where both are non-zero."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def kept(site: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
            y.retain_grad()
            seen[site] = inputs[0].detach(), y

        return hook

    with ExitStack() as stack:
        for site in sites:
            stack.callback(find(model, site).register_forward_hook(kept(site)).remove)
        nll_of(logits_of(model, text), text).backward()
    model.zero_grad()
    found = {}
    for site, (u, y) in seen.items():
        assert y.grad is not None
        real = (u[0] != 0).any(-1) & (y.grad[0] != 0).any(-1)
        found[site] = u[0][real], y.grad[0][real]
    return found


class OneByOne:
    """Meta-training as MEND's and InstructEdit's code does it: one edit at a time through a copy of the whole model.

    The edit's gradient comes from the whole model; the update is a dense matrix that stays in the graph and goes into
    a functional copy; the outer and the locality loss and the base model's answer run the whole model each.

    Args:
        model: a copy of its own.
        frozen: ask gradients of the edited weights only. Published code asks for all weights' gradients at the edit's
            loss; with ``frozen`` that waste is left out, which stops its backward pass at the first site.
    """

    def __init__(self, lm: LM, editor: MEND, model: nn.Module, frozen: bool = False) -> None:
        self.lm, self.editor, self.model = lm, editor, model.requires_grad_(not frozen)
        for site in editor.sites:
            find(model, site).weight.requires_grad_()
        self.optimizer = torch.optim.Adam(editor.parameter_groups())
        self.parameters = list(editor.parameters())

    def step(self, request: EditRequest) -> None:
        """One edit and the optimiser's step."""
        self.editor.train(True)
        self.optimizer.zero_grad()
        self.accumulate(request)
        torch.nn.utils.clip_grad_norm_(self.parameters, 100.0)
        self.optimizer.step()

    def accumulate(self, request: EditRequest, share: float = 1.0) -> float:
        """One edit's loss; ``share`` of its gradient is added to the editor's."""
        edit, outer = (self.lm.text(p, request.target) for p in (request.prompt, request.rephrases[0]))
        probe = request.locality["near"][0]
        local = self.lm.text(probe.prompt, probe.answers[0])
        weights = {}
        for place, (site, (u, delta)) in enumerate(factors_of(self.model, self.editor.sites, edit).items()):
            name, mode = self.editor.network_of[site]
            new_u, new_delta = self.editor.networks[name](u, delta, mode)
            update = new_u.mT @ new_delta * self.editor.step_sizes[place]
            weights[f"{site}.weight"] = find(self.model, site).weight.detach() + update
        nll = nll_of(logits_of(self.model, outer, weights), outer)
        with torch.no_grad():
            base = logits_of(self.model, local)
        loss = OBJECTIVE.edit_weight * nll + OBJECTIVE.locality_weight * kl_of(
            base, logits_of(self.model, local, weights)
        )
        for parameter, gradient in zip(self.parameters, torch.autograd.grad(loss, self.parameters), strict=True):
            if parameter.grad is None:
                parameter.grad = gradient.mul_(share)
            else:
                parameter.grad.add_(gradient, alpha=share)
        return loss.item()


Scores = dict[tuple[str, str, str], dict[str, float]]


@torch.no_grad()
def copied_and_scored(lm: LM, edit: Edit, slot: int, request: EditRequest) -> Scores:
    """One edit's teacher-forced scores from a deep copy with the update written in, a prompt at a time."""
    copied = deepcopy(lm.model)
    for site, rule in edit.rules.items():
        weight(find(copied, site)).add_(rule.update(slot))
    scores: Scores = {}
    for question in questions([[request]]):
        text = lm.text(question.prompt, question.answers[0])
        base, edited = logits_of(lm.model, text), logits_of(copied, text)
        wanted, given = torch.tensor(text.answer), edited.argmax(-1)
        key = question.request.id, question.measure, question.prompt
        if question.measure == "locality":
            scores[key] = {"": float((base.argmax(-1) == given).double().mean()), "kl": float(kl_of(base, edited))}
        else:
            right = (wanted == given).double()
            scores[key] = {"": float(right.mean()), "exact": float(right.min())}
        if question.measure == "reliability":
            scores[key[0], "target_known", key[2]] = {"": float(torch.equal(wanted, base.argmax(-1)))}
    return scores


# -- editkit's way ---------------------------------------------------------------------------------------------------


def fresh(lm: LM) -> LM:
    """The same model, nothing kept of the texts it has read."""
    return LM(lm.model, lm.tokenizer, lm.layout, lm.name)


class AtOnce:
    """The trainer's own step: all edits in one batch."""

    def __init__(self, lm: LM, editor: MEND, requests: Sequence[EditRequest]) -> None:
        self.lm, self.editor, self.requests = lm, editor, for_training(requests)
        self.optimizer = torch.optim.Adam(editor.parameter_groups())
        self.trainer = Trainer(OBJECTIVE, steps=1, batch=len(requests), progress=False)

    def step(self) -> None:
        self.trainer._step(self.lm, self.editor, self.optimizer, self.requests, 0, OBJECTIVE)

    def first(self) -> None:
        """A step of the first epoch: no text has been through the trunk."""
        self.trainer._step(fresh(self.lm), self.editor, self.optimizer, self.requests, 0, OBJECTIVE)


def ready(lm: LM, editor: MEND, requests: Sequence[EditRequest]) -> Edit:
    """One slot a request, the editor's normalisation as training left it."""
    editor.train(False)
    with torch.no_grad():
        return editor.edit(lm, [[request] for request in requests])


# -- do both ways agree? ---------------------------------------------------------------------------------------------


def apart(a: float, b: float, floor: float = 1e-3) -> float:
    """Relative difference of two numbers, of which those under ``floor`` count as ``floor``."""
    return abs(a - b) / max(abs(a), abs(b), floor)


def training_apart(lm: LM, editor: MEND, alone: OneByOne, requests: Sequence[EditRequest]) -> tuple[float, float]:
    """Relative difference of the mean loss, and of the gradient (L2) of all parameters."""
    editor.train(False)
    requests = for_training(requests)
    editor.zero_grad()
    loss = OBJECTIVE(lm, editor.edit(lm, [[r] for r in requests]), requests, random.Random(0))["loss"]
    loss.backward()
    ours = torch.cat([p.grad.flatten() for p in alone.parameters if p.grad is not None])
    editor.zero_grad()
    mean = statistics.fmean(alone.accumulate(request, 1 / len(requests)) for request in requests)
    other = torch.cat([p.grad.flatten() for p in alone.parameters if p.grad is not None])
    editor.zero_grad()
    return apart(loss.item(), mean), float((ours - other).norm() / other.norm())


def scoring_apart(lm: LM, edit: Edit, requests: Sequence[EditRequest], alone: int) -> tuple[float, int]:
    """The greatest relative difference of a score, and how many scores were compared."""
    records = TeacherForced().score(lm, edit, [[request] for request in requests])
    ours = {(record.request, record.measure, record.prompt): record.scores for record in records}
    other: Scores = {}
    for slot in range(alone):
        other |= copied_and_scored(lm, edit, slot, requests[slot])
    pairs = [(ours[key][name], value) for key, scores in other.items() for name, value in scores.items()]
    return max(apart(a, b) for a, b in pairs), len(pairs)


# -- measuring -------------------------------------------------------------------------------------------------------


def in_turn(ways: Sequence[Callable[[], object]], repeat: int) -> list[list[float]]:
    """Seconds of each way, ``repeat`` times: A B A B, so that a busy machine slows both."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(repeat):
        for taken, way in zip(seconds, ways, strict=True):
            began = time.perf_counter()
            way()
            taken.append(time.perf_counter() - began)
    return seconds


def row(what: str, ours: Sequence[float], other: Sequence[float], unit: str, bound: float | None = None) -> Row:
    ratios = [a / b for a, b in zip(ours, other, strict=True)]
    middle = statistics.median
    return Row(what, middle(ours), middle(other), unit, middle(ratios), min(ratios), max(ratios), bound)


def each(seconds: Sequence[float], edits: int) -> list[float]:
    return [second / edits for second in seconds]


Found = tuple[list[Row], dict[str, float]]  # what was measured, and how far both ways are apart


def training_rows(lm: LM, editor: MEND, requests: Sequence[EditRequest], alone: int, repeat: int) -> Found:
    batched = AtOnce(lm, editor, requests)
    batched.step()  # fills the trunk's store and the running norms
    few = for_training(requests[:alone])
    released = OneByOne(lm, editor, deepcopy(lm.model))
    trimmed = OneByOne(lm, editor, deepcopy(lm.model), frozen=True)
    released.step(few[0])  # allocates the optimiser's state
    loss, gradient = training_apart(lm, editor, released, requests[:alone])

    def stepped() -> None:
        for request in few:
            released.step(request)

    def accumulated() -> None:
        trimmed.optimizer.zero_grad()
        for request in few:
            trimmed.accumulate(request, 1 / len(few))

    ours, other, least, first = in_turn([batched.step, stepped, accumulated, batched.first], repeat)
    ours, first = each(ours, len(requests)), each(first, len(requests))
    other, least = each(other, alone), each(least, alone)
    rows = [
        row("training", ours, other, "s", 1 / 5),
        row("training, first epoch", first, other, "s"),
        row("training, trimmed", ours, least, "s"),
    ]
    return rows, {"training loss": loss, "training gradient": gradient}


def scoring_rows(lm: LM, editor: MEND, requests: Sequence[EditRequest], alone: int, repeat: int) -> Found:
    edit, groups = ready(lm, editor, requests), [[request] for request in requests]
    difference, compared = scoring_apart(lm, edit, requests, alone)
    ways = [
        lambda: TeacherForced().score(fresh(lm), edit, groups),
        lambda: [copied_and_scored(lm, edit, slot, requests[slot]) for slot in range(alone)],
        lambda: TeacherForced().score(lm, edit, groups),
    ]
    ours, other, again = in_turn(ways, repeat)
    ours, again, other = each(ours, len(requests)), each(again, len(requests)), each(other, alone)
    rows = [row("scoring", ours, other, "s", 1 / 4), row("scoring, next editor", again, other, "s")]
    return rows, {f"scores ({compared})": difference}


class Copied(LM):
    """A deep copy of a model, with no trunk: all its blocks run each time, as where an editor writes to the weights."""

    def __init__(self, lm: LM) -> None:
        super().__init__(deepcopy(lm.model), lm.tokenizer, lm.layout, lm.name)

    def block_of(self, sites: Iterable[str]) -> int:
        return 0


@torch.no_grad()
def editors(lm: LM, shape: Shape, mend: MEND, requests: Sequence[EditRequest]) -> dict[str, Editor]:
    """Every method but InstructEdit, whose arithmetic is MEND's. Those that search take five steps, never fewer."""
    search = {"steps": 5}
    mend.train(True).edit(lm, [[request] for request in requests])  # fills the running norms
    return {
        "mend": mend.train(False),
        "ke": KE(lm, SITES, hidden=min(256, shape.width), condition=min(256, shape.width)).train(False),
        "ft_l": FineTuning(lm, "-2.mlp.c_proj", loss="prompt_last", enough=0, **search),
        "ft_m": FineTuning(lm, "-2.mlp.c_proj", loss="target", enough=0, **search),
        "calinet": CaliNet(lm, "-1.mlp", activation="gelu_new", gated=False, enough=0, **search),
        "grace": GRACE(lm, "-3.mlp.c_fc", **search),
    }


@torch.no_grad()
def editing_rows(lm: LM, methods: Mapping[str, Editor], requests: Sequence[EditRequest], alone: int) -> Found:
    """Each way once: the ratios are far from 1, and there are six methods."""
    groups = [[request] for request in requests]
    few = groups[:alone]
    rows, agreement = [], {}
    for name, editor in methods.items():
        edits: list[Edit] = []
        made: list[tuple[LM, Edit]] = []

        def copied(editor: Editor = editor, made: list[tuple[LM, Edit]] = made) -> None:
            for group in few:
                copy = Copied(lm)
                made.append((copy, editor.edit(copy, [group])))

        counts = sorted({1, min(8, len(groups)), min(32, len(groups)), len(groups)})
        ways = [
            lambda n=n, editor=editor, edits=edits: edits.append(editor.edit(fresh(lm), groups[:n])) for n in counts
        ]
        *ours, other = in_turn([*ways, copied], 1)
        for count, seconds in zip(counts, ours, strict=True):
            bound = 1 / 3 if (name, count) == ("ft_l", 32) else None
            rows.append(row(f"{name}, {count} at once", each(seconds, count), each(other, alone), "s", bound))

        def scored_alone(made: list[tuple[LM, Edit]] = made) -> None:
            for (copy, edit), group in zip(made, few, strict=True):
                TeacherForced(rows=1).score(copy, edit, [group])

        ours, other = in_turn([lambda edit=edits[-1]: TeacherForced().score(lm, edit, groups), scored_alone], 1)
        rows.append(row(f"{name}, scoring", each(ours, len(groups)), each(other, alone), "s"))
        agreement[name] = max(
            float((answer(lm, edits[-1], slot, group) - answer(copy, edit, 0, group)).abs().max())
            for slot, ((copy, edit), group) in enumerate(zip(made, few, strict=True))
        )
    return rows, agreement


def answer(lm: LM, edit: Edit, slot: int, group: Sequence[EditRequest]) -> Tensor:
    """The log-probabilities at the target's positions under one slot."""
    texts = [lm.text(request.prompt, request.target) for request in group]
    with applied(lm.sites(list(edit.rules)), edit, slot):
        return lm.logits(lm.batch(texts, lm.block_of(edit.rules))).log_softmax(-1)


def depth_row(size: Size, edits: int, repeat: int) -> Row:
    steps = []
    for blocks in size.depths:
        batched = AtOnce(*built(replace(size.narrow, blocks=blocks)), drawn(size.narrow, edits, seed=2))
        batched.step()
        steps.append(batched.step)
    shallow, deep = in_turn(steps, 3 * repeat)
    what = f"{size.depths[1]} blocks beside {size.depths[0]}"
    return row(what, each(deep, edits), each(shallow, edits), "s", 1.2)


def peak(job: str, size: Size, edits: int, scored: int) -> float:
    """The most memory (GB) this process has held, after ``job``."""
    lm, editor = built(size.main)
    requests = drawn(size.main, scored, seed=1)
    if job == "train at once":
        batched = AtOnce(lm, editor, requests[:edits])
        for _ in range(2):
            batched.step()
    elif job == "train one by one":
        alone = OneByOne(lm, editor, lm.model)
        for request in for_training(requests[:2]):
            alone.step(request)
    elif job == "score at once":
        TeacherForced().score(lm, ready(lm, editor, requests), [[request] for request in requests])
    else:
        edit = ready(lm, editor, requests)
        for slot in range(2):
            copied_and_scored(lm, edit, slot, requests[slot])
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def memory_rows(size: Size, edits: int, scored: int) -> list[Row]:
    """Each job in a process of its own, forked from one that has done nothing yet: a child has its parent's peak."""
    peaks = []
    for job in ("train at once", "train one by one", "score at once", "score one by one"):
        with multiprocessing.get_context("forkserver").Pool(1) as pool:
            peaks.append([pool.apply(peak, (job, size, edits, scored))])
    return [row("memory, training", peaks[0], peaks[1], "GB"), row("memory, scoring", peaks[2], peaks[3], "GB")]


# -- what is shown ---------------------------------------------------------------------------------------------------


PARTS = ("training", "scoring", "depth", "memory", "editors")
HEADER = ["what", "editkit", "beside it", "ratio", "range", "bound", "holds"]


def cells(entry: Row) -> list[str]:
    costs = [f"{cost:.3g} {entry.unit}" for cost in (entry.ours, entry.other)]
    spread = f"{entry.low:.2f}–{entry.high:.2f}" if entry.low < entry.high else ""
    bound = [] if entry.bound is None else [f"≤ {entry.bound:.2f}", "yes" if entry.holds else "NO"]
    return [entry.what, *costs, f"{entry.ratio:.2f}", spread, *(bound or ["", ""])]


def markdown(rows: Sequence[Row]) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> int:
    """0 if both ways agree, 1 if not. Whether the bounds hold is only shown: a busy machine may break them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SIZES, default="small", help="of the model; toy: to see that it runs")
    parser.add_argument("--edits", type=int, default=32, help="different edits in a training step")
    parser.add_argument("--scored", type=int, default=64, help="edits that are scored")
    parser.add_argument("--alone", type=int, default=4, help="edits that the obvious way makes and scores")
    parser.add_argument("--repeat", type=int, default=3, help="times each way is measured; medians are shown")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured; all by default")
    parser.add_argument("--out", type=Path, help="folder for speed.json and speed.md")
    asked = parser.parse_args()
    most = min(asked.edits, asked.scored)
    if not 1 <= asked.alone <= most:
        parser.error(f"--alone is {asked.alone}, but must be 1 to {most}: set it to edits that are there")
    size, console, began = SIZES[asked.shape], Console(), time.perf_counter()

    lm, editor = built(size.main)
    requests = drawn(size.main, max(asked.edits, asked.scored), seed=1)
    stepped, scored = requests[: asked.edits], requests[: asked.scored]
    parts: dict[str, Callable[[], Found]] = {
        "training": lambda: training_rows(lm, editor, stepped, asked.alone, asked.repeat),
        "scoring": lambda: scoring_rows(lm, editor, scored, asked.alone, asked.repeat),
        "depth": lambda: ([depth_row(size, asked.edits, asked.repeat)], {}),
        "memory": lambda: (memory_rows(size, asked.edits, asked.scored), {}),
        "editors": lambda: editing_rows(lm, editors(lm, size.main, editor, stepped), scored, min(2, asked.alone)),
    }
    rows: list[Row] = []
    agreement: dict[str, float] = {}
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("", total=len(asked.parts))
        for part in asked.parts:
            bar.update(task, description=part)
            found, apart_by = parts[part]()
            rows += found
            agreement |= apart_by
            bar.advance(task)

    title = (
        f"{asked.shape}, cost of an edit: {asked.edits} a step, {asked.scored} scored, {asked.alone} the obvious way, "
        f"median of {asked.repeat} (editors: once), {torch.get_num_threads()} threads, "
        f"{time.perf_counter() - began:.0f} s in all"
    )
    table = Table(*HEADER, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for entry in rows:
        table.add_row(*cells(entry))
    console.print(title, table)
    console.print("Difference of both ways:", ", ".join(f"{k} {v:.1e}" for k, v in agreement.items()))
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        found = {"title": title, "rows": [asdict(entry) for entry in rows], "agreement": agreement}
        (asked.out / "speed.json").write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
        (asked.out / "speed.md").write_text(f"{title}\n\n{markdown(rows)}", encoding="utf-8")
    if max(agreement.values(), default=0.0) > AGREE:
        console.print(f"The two ways differ by more than {AGREE:g}: these figures compare different things.")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
