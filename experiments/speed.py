"""Speed and memory of edits beside the model, measured against the obvious way and against what the machine can do.

    python experiments/speed.py                              # what `make bench` runs: minutes on two CPU cores
    python experiments/speed.py --shapes toy --out outputs/speed    # seconds, to see that it runs
    python experiments/speed.py --shapes gpt2-xl llama-2-7b --batches 1 16 256 --profile    # a GPU

MEND on random weights of a shape in `conf/model`, or of one made narrower (`gpt2-xl:256`: its blocks at width 256),
with the papers' rank 1920 in proportion; random "words" of one token each, drawn from the whole vocabulary, so that the
head costs what it costs. The *obvious way* is a second implementation of the same arithmetic: one edit at a time, the
whole model, weights copied, as published code does it. Both ways are first checked to give the same numbers, then timed
in turn. Edits of the obvious way do not depend on each other, so a few of them give its cost an edit.

training              a step from the second epoch on: what runs below the edited blocks is kept
training, first epoch the same, when no text has been read yet
scoring               edits made and scored on all their questions, 64 at once, teacher forced
scoring, again        the same when another editor has been scored on these texts before
<editor>              edits made by each method at once; those that search take five steps

The *floor* of a piece of work is the time of its matrix products alone at the rates measured on this machine, each
bound by arithmetic or by memory, and in training of one pass of Adam over the networks: seven numbers a parameter.
Peak memory is what tensors hold, weights and optimiser included.
"""

import argparse
import csv
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from editkit import configs
from editkit.analysis import figures
from editkit.counting import Counted, Rates
from editkit.editors import Editor
from editkit.editors.mend import MEND
from editkit.edits import Edit
from editkit.evaluation.records import questions
from editkit.evaluation.teacher_forced import TeacherForced
from editkit.lm import LM, Text, chunks, find, load, weight
from editkit.objectives import Objective
from editkit.requests import EditRequest, Probe
from editkit.training import Trainer

OBJECTIVE = Objective(outer="rephrase", asked="instructed", locality_probes=1, distant_probes=0)  # MEND's
AGREE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # relative: sums of ten thousands of terms in another order
METHODS = ("ke", "ft_l", "ft_m", "calinet", "grace")  # beside MEND; InstructEdit's arithmetic is MEND's
TOY = {"model_type": "gpt2", "n_layer": 6, "n_embd": 32, "n_head": 2, "n_positions": 128, "vocab_size": 300}
WIDTHS = ("n_embd", "n_head", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
AT_ONCE = 64  # edits made and scored together
# What must hold at 32 edits a step, or for 64 scored: the greatest ratio to the obvious way.
BOUNDS = {
    ("gpt2", "training"): 1 / 6,
    ("gpt2", "scoring"): 1 / 10,
    ("gpt2-xl:256", "training"): 1 / 20,
    ("gpt2-xl", "training"): 1 / 100,
}


@dataclass(frozen=True)
class Row:
    """One line of the table; times in ms an edit, medians, memory in GB. ``ratio`` is to the obvious way."""

    shape: str
    what: str
    batch: int
    ms: float
    per_second: float
    obvious_ms: float
    ratio: float
    low: float
    high: float
    bound: float | None
    floor_share: float
    peak_gb: float
    probes_per_second: float | None = None

    @property
    def holds(self) -> bool:
        return self.bound is None or self.ratio <= self.bound


# -- what is measured on ---------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A random model of a shape with MEND for it, and what times them."""

    shape: str
    lm: LM
    editor: MEND
    rates: Rates
    settings: Any
    repeat: int

    @property
    def device(self) -> torch.device:
        return self.lm.device


def built(shape: str, rates: Rates, dtype: str, repeat: int, tf32: bool = False) -> Bench:
    """``shape`` is one of conf/model, with ``:width`` for fewer columns, or ``toy``."""
    name, _, width = shape.partition(":")
    with configs.sources():
        config = configs.checked([f"model={'gpt2' if name == 'toy' else name}"])
    settings: Any = OmegaConf.to_container(config.model, resolve=True)
    sizes = dict(TOY) if name == "toy" else settings["shape"]
    full = sizes.get("n_embd") or sizes["hidden_size"]
    share = int(width) / full if width else full / 768 if name == "toy" else 1.0
    if width:
        sizes |= {key: max(1, round(sizes[key] * share)) for key in WIDTHS if key in sizes}
    sizes |= {"bos_token_id": 0, "eos_token_id": 0}
    model = {key: value for key, value in settings.items() if key not in ("_target_", "tuned")}
    model |= {"shape": sizes, "weights": "random", "dtype": dtype, "device": str(rates.device), "tf32": tf32}
    lm = load(**model)
    vocabulary = {"<|end|>": 0, "a": 1} | {f"w{token}": token for token in range(2, sizes["vocab_size"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<|end|>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")
    lm = LM(lm.model, words, lm.layout, shape, rows=64)
    torch.manual_seed(0)
    rank, width_now = max(8, round(1920 * min(1, share))), sizes.get("n_embd") or sizes["hidden_size"]
    editor = MEND(lm, settings["sites"]["meta"], rank=rank, step_size=-0.4 / width_now)
    for part, parameter in editor.named_parameters():
        if part.endswith(".up"):  # off the identity
            torch.nn.init.normal_(parameter, std=1e-4)
    return Bench(shape, lm, editor, rates, settings, repeat)


def drawn(lm: LM, edits: int, seed: int) -> list[EditRequest]:
    """Requests of random words: prompts of 8 to 16 tokens, answers of 1 to 3, two probes of each kind."""
    draw, vocabulary = random.Random(seed), len(lm.tokenizer)

    def words(least: int, most: int) -> str:
        return " ".join(f"w{draw.randrange(2, vocabulary)}" for _ in range(draw.randint(least, most)))

    def probes() -> tuple[Probe, ...]:
        return tuple(Probe(words(8, 16), (words(1, 3),)) for _ in range(2))

    return [
        EditRequest(
            id=f"speed#{index}",
            task="speed",
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
    ids = torch.tensor([text.ids], device=next(model.parameters()).device)
    out = functional_call(model, weights or {}, (ids,), {"use_cache": False})
    return out.logits[0, text.prompt - 1 : -1].float()


def nll_of(logits: Tensor, text: Text) -> Tensor:
    return nn.functional.cross_entropy(logits, torch.tensor(text.answer, device=logits.device))


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
        found[site] = u[0][real].float(), y.grad[0][real].float()
    return found


Scores = dict[tuple[str, str, str], dict[str, float]]


class OneByOne:
    """Training and scoring as MEND's and InstructEdit's code does them: one edit at a time, in a copy of the model.

    The edit's gradient comes from the whole model, which is asked for the gradients of all its weights; the update is a
    dense matrix that stays in the graph and goes into a functional copy; the outer and the locality loss and the base
    model's answer run the whole model each.
    """

    def __init__(self, lm: LM, editor: MEND) -> None:
        self.lm, self.editor, self.model = lm, editor, deepcopy(lm.model).requires_grad_(True)
        self.optimizer = torch.optim.Adam(editor.parameter_groups())
        self.parameters = list(editor.parameters())

    def step(self, request: EditRequest) -> None:
        """One edit and the optimiser's step."""
        self.editor.train(True)
        self.optimizer.zero_grad()
        self.accumulate(request)
        torch.nn.utils.clip_grad_norm_(self.parameters, 100.0)
        self.optimizer.step()

    def updates(self, edit: Text) -> dict[str, Tensor]:
        """Each site's dense update ``[d_in, d_out]``."""
        found = {}
        for place, (site, (u, delta)) in enumerate(factors_of(self.model, self.editor.sites, edit).items()):
            name, mode = self.editor.network_of[site]
            new_u, new_delta = self.editor.networks[name](u, delta, mode)
            found[site] = new_u.mT @ new_delta * self.editor.step_sizes[place]
        return found

    def scored(self, request: EditRequest) -> Scores:
        """One edit made, and its teacher-forced scores from a deep copy it is written into, a prompt at a time."""
        updates = self.updates(self.lm.text(request.prompt, request.target))
        copied = deepcopy(self.lm.model)
        scores: Scores = {}
        with torch.no_grad():
            for site, update in updates.items():
                weight(find(copied, site)).add_(update)
            for question in questions([[request]]):
                text = self.lm.text(question.prompt, question.answers[0])
                base, edited = logits_of(self.lm.model, text), logits_of(copied, text)
                wanted, given = torch.tensor(text.answer, device=self.lm.device), edited.argmax(-1)
                key = question.request.id, question.measure, question.prompt
                if question.measure == "locality":
                    same = float((base.argmax(-1) == given).double().mean())
                    scores[key] = {"": same, "kl": float(kl_of(base, edited))}
                else:
                    right = (wanted == given).double()
                    scores[key] = {"": float(right.mean()), "exact": float(right.min())}
        return scores

    def accumulate(self, request: EditRequest, share: float = 1.0) -> float:
        """One edit's loss; ``share`` of its gradient is added to the editor's."""
        edit, outer = (self.lm.text(p, request.target) for p in (request.prompt, request.rephrases[0]))
        probe = request.locality["near"][0]
        local = self.lm.text(probe.prompt, probe.answers[0])
        weights = {}
        for site, update in self.updates(edit).items():
            module = find(self.model, site)
            update = update if isinstance(module, Conv1D) else update.mT
            weights[f"{site}.weight"] = (module.weight.detach() + update).to(module.weight.dtype)
        nll = nll_of(logits_of(self.model, outer, weights), outer)
        with torch.no_grad():
            base = logits_of(self.model, local)
        kl = kl_of(base, logits_of(self.model, local, weights))
        loss = OBJECTIVE.edit_weight * nll + OBJECTIVE.locality_weight * kl
        for parameter, gradient in zip(self.parameters, torch.autograd.grad(loss, self.parameters), strict=True):
            parameter.grad = (
                gradient.mul(share) if parameter.grad is None else parameter.grad.add(gradient, alpha=share)
            )
        return loss.item()


# -- editkit's way ---------------------------------------------------------------------------------------------------


def fresh(lm: LM) -> LM:
    """The same model, nothing kept of the texts it has read."""
    return LM(lm.model, lm.tokenizer, lm.layout, lm.name, lm.rows)


class AtOnce:
    """The trainer's own step: all edits in one batch."""

    def __init__(self, lm: LM, editor: MEND, requests: Sequence[EditRequest]) -> None:
        self.lm, self.editor, self.requests = lm, editor, for_training(requests)
        self.optimizer = torch.optim.Adam(editor.parameter_groups())
        self.trainer = Trainer(OBJECTIVE, steps=1, batch=len(requests), progress=False)

    def step(self) -> None:
        self._step(self.lm)

    def first(self) -> None:
        """A step of the first epoch: no text has been through the trunk."""
        self._step(fresh(self.lm))

    def _step(self, lm: LM) -> None:
        self.trainer._step(lm, self.editor, self.optimizer, self.requests, 0, OBJECTIVE)


def scored(lm: LM, editor: MEND, requests: Sequence[EditRequest]) -> int:
    """Single edits made and scored, as many at once as the default regime; how many questions were asked."""
    editor.train(False)
    asked = 0
    with torch.no_grad():
        for chunk in chunks(requests, AT_ONCE):
            groups = [[request] for request in chunk]
            asked += len(TeacherForced().score(lm, editor.edit(lm, groups), groups))
    return asked


# -- do both ways agree? ---------------------------------------------------------------------------------------------


def apart(a: float, b: float, floor: float = 1e-3) -> float:
    """Relative difference of two numbers, of which those under ``floor`` count as ``floor``."""
    return abs(a - b) / max(abs(a), abs(b), floor)


def training_apart(bench: Bench, alone: OneByOne, requests: Sequence[EditRequest]) -> dict[str, float]:
    """Relative difference of the mean loss, and of the gradient (L2) of all parameters."""
    lm, editor = bench.lm, bench.editor.train(False)
    requests = for_training(requests)
    editor.zero_grad()
    asked = OBJECTIVE.questions(lm, requests, random.Random(0))
    loss = OBJECTIVE(lm, editor.edit(lm, [[r] for r in requests]), asked)["loss"]
    loss.backward()
    ours = torch.cat([p.grad.flatten() for p in alone.parameters if p.grad is not None])
    editor.zero_grad()
    mean = statistics.fmean(alone.accumulate(request, 1 / len(requests)) for request in requests)
    other = torch.cat([p.grad.flatten() for p in alone.parameters if p.grad is not None])
    editor.zero_grad()
    return {"training loss": apart(loss.item(), mean), "gradient": float((ours - other).norm() / other.norm())}


def scoring_apart(bench: Bench, alone: OneByOne, requests: Sequence[EditRequest]) -> dict[str, float]:
    """The greatest relative difference of a score; a divergence of less than 0.01 nats has few digits in float32."""
    groups = [[request] for request in requests]
    with torch.no_grad():
        edit = bench.editor.train(False).edit(bench.lm, groups)
    records = TeacherForced().score(bench.lm, edit, groups)
    ours = {(record.request, record.measure, record.prompt): record.scores for record in records}
    other = {key: scores for request in requests for key, scores in alone.scored(request).items()}
    pairs = [(ours[key][name], value) for key, scores in other.items() for name, value in scores.items()]
    return {f"{len(pairs)} scores": max(apart(a, b, 0.01) for a, b in pairs)}


Found = tuple[list[Row], dict[str, float]]  # what was measured, and how far both ways are apart

# -- measuring -------------------------------------------------------------------------------------------------------


def in_turn(bench: Bench, ways: Iterable[Callable[[], object]]) -> list[list[float]]:
    """Seconds of each way: A B A B, so that a busy machine slows both; on a GPU, until it has finished."""
    ways = list(ways)
    taken: list[list[float]] = [[] for _ in ways]
    for _ in range(bench.repeat):
        for seconds, way in zip(taken, ways, strict=True):
            began = bench.rates.now()
            way()
            seconds.append(bench.rates.now() - began)
    return taken


def counted(bench: Bench, work: Callable[[], object], learned: Iterable[Tensor] = ()) -> tuple[float, float]:
    """The floor of ``work`` in seconds, and the most that tensors hold in GB; ``learned``: what Adam moves in it."""
    learned = list(learned)
    numbers = sum(tensor.numel() for tensor in learned)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
        work()
        peak = torch.cuda.max_memory_allocated(bench.device)
    with Counted(bench.rates) as count:
        work()
    if bench.device.type != "cuda":
        resident = sum(p.nbytes for p in {*bench.lm.model.parameters(), *bench.editor.parameters()})
        peak = count.peak + resident + 3 * 4 * numbers  # gradients and moments were there before
    return count.floor + 7 * 4 * numbers / bench.rates.bytes, peak / 1e9


def row(
    bench: Bench, what: str, edits: int, ours: Sequence[float], other: Sequence[float], cost: tuple[float, float]
) -> Row:
    """``ours``: seconds that all ``edits`` take; ``other``: those of one, the obvious way; ``cost``: as counted."""
    floor, peak = cost
    ratios = [a / edits / b for a, b in zip(ours, other, strict=True)]
    taken, alone, ratio = (statistics.median(x) for x in (ours, other, ratios))
    bound = BOUNDS.get((bench.shape, what)) if edits >= 32 else None
    times = 1e3 * taken / edits, edits / taken, 1e3 * alone
    return Row(bench.shape, what, edits, *times, ratio, min(ratios), max(ratios), bound, floor / taken, peak)


def training_rows(bench: Bench, batches: Sequence[int], alone: int) -> Found:
    requests = drawn(bench.lm, max(*batches, alone), seed=1)
    costs = {}
    for batch in batches:  # before there is another copy of the model
        batched = AtOnce(bench.lm, bench.editor, requests[:batch])
        batched.step()  # fills the trunk's store, the optimiser's state and the running norms
        costs[batch] = [counted(bench, way, bench.editor.parameters()) for way in (batched.step, batched.first)]
    released = OneByOne(bench.lm, bench.editor)
    few = for_training(requests[:alone])
    released.step(few[0])  # allocates the optimiser's state
    agreement = training_apart(bench, released, requests[:alone])
    rows = []
    for batch in batches:
        batched = AtOnce(bench.lm, bench.editor, requests[:batch])
        batched.step()
        ways = [batched.step, batched.first, lambda: [released.step(request) for request in few]]
        later, first, other = in_turn(bench, ways)
        other = [seconds / alone for seconds in other]
        rows.append(row(bench, "training", batch, later, other, costs[batch][0]))
        rows.append(row(bench, "training, first epoch", batch, first, other, costs[batch][1]))
    return rows, agreement


def scoring_rows(bench: Bench, edits: int, alone: int) -> Found:
    lm, requests = bench.lm, drawn(bench.lm, edits, seed=2)
    few = requests[:alone]
    bench.editor.train(True).edit(lm, [[request] for request in few])  # fills the running norms
    released = OneByOne(lm, bench.editor)
    agreement = scoring_apart(bench, released, few)
    asked = scored(lm, bench.editor, requests)  # so that `again` has seen these texts
    ways: list[Callable[[], object]] = [
        lambda: scored(fresh(lm), bench.editor, requests),
        lambda: scored(lm, bench.editor, requests),
    ]
    costs = [counted(bench, way) for way in ways]
    first, again, other = in_turn(bench, [*ways, lambda: [released.scored(request) for request in few]])
    other = [seconds / alone for seconds in other]
    rows = [row(bench, "scoring", edits, first, other, costs[0])]
    rows.append(row(bench, "scoring, again", edits, again, other, costs[1]))
    return [replace(entry, probes_per_second=entry.per_second * asked / edits) for entry in rows], agreement


class Copied(LM):
    """A deep copy of a model, with no trunk: all its blocks run each time, as where an editor writes to the weights."""

    def __init__(self, lm: LM) -> None:
        super().__init__(deepcopy(lm.model), lm.tokenizer, lm.layout, lm.name)

    def block_of(self, sites: Iterable[str]) -> int:
        return 0


@torch.no_grad()
def editing_rows(bench: Bench, edits: int, alone: int) -> Found:
    """Each method at one edit and at all at once."""
    groups = [[request] for request in drawn(bench.lm, edits, seed=3)]
    few = groups[:alone]
    rows = []
    for name in METHODS:
        with configs.sources():
            node = configs.checked([f"model={bench.settings['path'].split('/')[-1]}", f"editor={name}"]).editor
        searching = {"steps": 5, "enough": 0.0}  # never fewer steps than five
        node = {key: searching.get(key, value) for key, value in node.items()}
        editor: Editor = configs.instantiate(OmegaConf.create(node), lm=bench.lm)
        if isinstance(editor, nn.Module):
            editor.train(False)

        def copied(editor: Editor = editor) -> None:
            for group in few:
                editor.edit(Copied(bench.lm), [group])

        def made(count: int, editor: Editor = editor) -> Edit:
            return editor.edit(fresh(bench.lm), groups[:count])

        ways = {count: partial(made, count) for count in sorted({1, edits})}
        *ours, other = in_turn(bench, [*ways.values(), copied])
        other = [seconds / len(few) for seconds in other]
        for (count, way), taken in zip(ways.items(), ours, strict=True):
            rows.append(row(bench, name, count, taken, other, counted(bench, way)))
    return rows, {}


def profile(bench: Bench, batch: int) -> str:
    """Where the time of a training step goes: the ten operations that take most of it."""
    batched = AtOnce(bench.lm, bench.editor, drawn(bench.lm, batch, seed=1))
    batched.step()
    with torch.profiler.profile() as seen:
        batched.step()
    device = "cuda" if bench.device.type == "cuda" else "cpu"
    return seen.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=10, max_name_column_width=40)


# -- what is shown ---------------------------------------------------------------------------------------------------


PARTS = ("training", "scoring", "editors")
HEADER = [
    "shape",
    "what",
    "edits",
    "ms an edit",
    "edits/s",
    "probes/s",
    "obvious way",
    "ratio",
    "range",
    "bound",
    "floor",
    "peak",
]


def cells(entry: Row) -> list[str]:
    probes = "" if entry.probes_per_second is None else number(entry.probes_per_second)
    spread = f"{entry.low:.3f}–{entry.high:.3f}" if entry.low < entry.high else ""
    bound = "" if entry.bound is None else f"≤ {entry.bound:.3f} {'holds' if entry.holds else 'BROKEN'}"
    speed = [number(entry.ms), number(entry.per_second), probes, f"{number(entry.obvious_ms)} ms", f"{entry.ratio:.3f}"]
    cost = [spread, bound, f"{entry.floor_share:.0%}", f"{entry.peak_gb:.2f} GB"]
    return [entry.shape, entry.what, str(entry.batch), *speed, *cost]


def number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def markdown(rows: Sequence[Row]) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def drawing(rows: Sequence[Row]) -> Any:
    """Edits a second in training over the edits of a step; dashed in the first epoch, dotted the obvious way."""
    figure, ((panel,),) = figures.grid(1, 1, (4.6, 3.0))
    for shape, (colour, marker) in zip(dict.fromkeys(entry.shape for entry in rows), figures.STYLES, strict=False):
        for what, line in (("training", "-"), ("training, first epoch", "--")):
            curve = [entry for entry in rows if (entry.shape, entry.what) == (shape, what)]
            x, y = [entry.batch for entry in curve], [entry.per_second for entry in curve]
            panel.plot(x, y, line, color=colour, marker=marker, markersize=4, label=shape if line == "-" else None)
        if curve:
            panel.plot(x, [1e3 / entry.obvious_ms for entry in curve], ":", color=colour)
    panel.set(xscale="log", yscale="log", xlabel="edits a step", ylabel="edits a second")
    panel.set_title("training; dashed: first epoch, dotted: obvious way")
    steps = sorted({entry.batch for entry in rows if entry.what == "training"})
    low, high = panel.get_ylim()
    speeds = [tick for tick in (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000) if low <= tick <= high]
    panel.set(xticks=steps, xticklabels=steps, yticks=speeds, yticklabels=map(number, speeds))
    panel.minorticks_off()
    figures.unframed(panel)
    figures.key(figure, panel)
    return figure


def write(folder: Path, rows: Sequence[Row], title: str) -> None:
    """``speed.csv``, ``speed.md`` and, of training, ``speed.png`` and ``.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "speed.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Row)])
        table.writeheader()
        table.writerows(map(asdict, rows))
    (folder / "speed.md").write_text(f"{title}\n\n{markdown(rows)}", encoding="utf-8")
    if any(entry.what == "training" for entry in rows):
        figures.save(drawing(rows), folder / "speed")


def main() -> int:
    """0 if both ways agree, 1 if not. Whether the bounds hold is only shown: a busy machine may break them."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = ["gpt2", "gpt2-xl", "llama-2-7b"] if gpu else ["gpt2", "gpt2-xl:256", "llama-2-7b:256"]
    parser.add_argument("--shapes", nargs="+", default=shapes, help="of conf/model, :width for a narrower one, or toy")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16, 32, 64, 256] if gpu else [1, 8, 32])
    parser.add_argument("--scored", type=int, default=1000 if gpu else 64, help="edits that are made and scored")
    parser.add_argument("--alone", type=int, default=8 if gpu else 2, help="edits that the obvious way makes")
    parser.add_argument("--repeat", type=int, default=5 if gpu else 2, help="times each is measured; medians are shown")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--dtype", default="bfloat16" if gpu else "float32", help="of the model's weights")
    parser.add_argument("--tf32", action="store_true", help="products of float32 matrices in TF32 where a GPU has it")
    parser.add_argument("--busy", action="store_true", help="count this process's CPU time: other work is beside it")
    parser.add_argument("--profile", action="store_true", help="also where the time of the largest step goes")
    parser.add_argument("--out", type=Path, help="folder for speed.csv, speed.md and the figure")
    asked = parser.parse_args()
    console, began = Console(), time.perf_counter()
    clock = time.process_time if asked.busy else time.perf_counter
    rates = Rates(torch.device("cuda" if gpu else "cpu"), clock)
    rows: list[Row] = []
    worst = 0.0
    for shape in asked.shapes:
        bench = built(shape, rates, asked.dtype, asked.repeat, asked.tf32)
        parts: dict[str, Callable[[], Found]] = {
            "training": partial(training_rows, bench, asked.batches, asked.alone),
            "scoring": partial(scoring_rows, bench, asked.scored, min(asked.alone, asked.scored)),
        }
        if shape == asked.shapes[0]:
            parts["editors"] = partial(editing_rows, bench, min(AT_ONCE, asked.scored), asked.alone)
        for part in (part for part in asked.parts if part in parts):
            found, agreement = parts[part]()
            rows += found
            worst = max([worst, *agreement.values()])
            apart_by = ", ".join(f"{what} {size:.1e}" for what, size in agreement.items())
            console.print(f"{shape}, {part}: difference of both ways: {apart_by or 'not compared'}", soft_wrap=True)
        if asked.profile:
            console.print(profile(bench, max(asked.batches)), soft_wrap=True, highlight=False)
    name = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    name += ", TF32" if asked.tf32 else ""
    speed = rates.flops(getattr(torch, asked.dtype)) / 1e12
    title = (
        f"{name}: {speed:.3g} TFLOP/s in {asked.dtype}, {rates.bytes / 1e9:.3g} GB/s, {rates.overhead * 1e6:.1f} µs an "
        f"operation; medians of {asked.repeat}; {time.perf_counter() - began:.0f} s in all"
    )
    table = Table(*HEADER, title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for entry in rows:
        table.add_row(*cells(entry))
    console.width = max(console.width, 150)
    console.print(table)
    if asked.out:
        write(asked.out, rows, title)
    if worst > AGREE[getattr(torch, asked.dtype)]:
        console.print("The two ways differ by more than rounding: these figures compare different things.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
