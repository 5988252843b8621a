"""What a run would need, said before anything is loaded: texts, parameters, memory, disk and time.

There are no formulas here for a family of models or a method. The model and the editors are built as shapes alone, the
code that would train and score runs on a few batches of them, and what it does is counted (see ``counting``). So a plan
holds for any model, editor, regime and protocol that a configuration names.
"""

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.table import Table
from torch import Tensor, nn

from editkit.cache import Cache
from editkit.configs import instantiate
from editkit.counting import Counted, Rates
from editkit.editors import Editor, Groups, Trainable
from editkit.edits import Edit
from editkit.errors import UsageError
from editkit.evaluation import Protocols
from editkit.lm import LM, Batch, Text, placed
from editkit.regimes import Regime
from editkit.requests import EditRequest
from editkit.run import named, told
from editkit.tasks import Splits
from editkit.training import Trainer, batch_indices

FOLLOWED = 2  # training steps whose time is counted, spread over the training
SAMPLE = 1000  # texts of the training that are tokenised to learn how long they are


@dataclass
class Plan:
    """What a run would need: memory and disk in bytes, time in seconds, by what needs it.

    Attributes:
        title: of the run.
        data: edits by split, questions about the tested ones, and different texts, with their tokens.
        parameters: of the model, its parts, and the editors that learn.
        memory: what the device holds, by kind.
        peaks: the most it holds at once while something is done, all kinds together.
        disk: what the run leaves.
        seconds: of what is done one after another.
        said: what was assumed.
    """

    title: str
    data: dict[str, int]
    parameters: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    disk: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    said: str = ""


class Outline(LM):
    """A model of shapes alone. Hidden states under a block are there at once; it is noted what they were asked for.

    Attributes:
        asked: by block, the texts whose hidden states under it were asked for.
        at_once: the most of them that were asked for together.
    """

    def __init__(self, lm: LM, counted: Counted) -> None:
        super().__init__(lm.model, lm.tokenizer, lm.layout, lm.name, lm.rows, Cache(lm.cache.memory_gb))
        self.counted = counted
        self.asked: dict[int, dict[Text, None]] = {}
        self.at_once = 1
        known: dict[Any, Any] = {}
        for block in self.blocks:
            block.forward = alike(block, block.forward, counted, known)

    def fingerprint(self) -> str:
        return "shapes"

    def _hidden(self, texts: Sequence[Text], start: int, whole: bool) -> Tensor:
        self.at_once = max(self.at_once, len(texts))
        self.asked.setdefault(start, {}).update(dict.fromkeys(texts))
        longest, weight = max(len(text.ids) - (not whole) for text in texts), self.head.weight
        return torch.empty(len(texts), longest, weight.shape[1], dtype=weight.dtype, device=self.device)

    def _call(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Blocks are called alike, so that the first one's call will do: no trunk is run for it.
        return super()._call(replace(batch, start=0))

    @torch.no_grad()
    def trunk(self, start: int, longest: int) -> float:
        """Seconds a token under block ``start``, from one pass of as many texts as run there at once."""
        before, rows = self.counted.seconds, min(self.rows, self.at_once)
        self._intercepted(torch.zeros(rows, longest, dtype=torch.long), start)
        return (self.counted.seconds - before) / (rows * longest)

    @torch.no_grad()
    def write(self, prompts: Sequence[str], tokens: int, stop: bool) -> list[str]:
        """Nothing, at the cost of all ``tokens``: the prompts in one pass, then token by token.

        A token takes what it takes of arithmetic, or of reading all weights, keys and values, or of starting as many
        operations as the first pass had.
        """
        counted = self.counted
        seconds, operations = counted.seconds, counted.operations
        longest = max(len(self._ids(prompt)) for prompt in prompts)
        ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=self.device)
        out = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, logits_to_keep=1)
        out.logits.float()
        passed, launched = counted.seconds - seconds, counted.operations - operations
        layers = [layer for layer in out.past_key_values.layers if layer.is_initialized]
        held = [_longer(x, tokens) for layer in layers for x in (layer.keys, layer.values)]
        others = len(self.blocks) - len(layers)  # blocks that were not run, since they are like others
        held += [torch.empty_like(x) for x in held[:2] for _ in range(others)]
        del out, layers
        if counted.rates:
            read = _bytes(chain(self.model.parameters(), held))
            a_token = max(passed / longest, read / counted.rates.bytes, launched * counted.rates.overhead)
            counted.seconds = seconds + passed + (tokens - 1) * a_token
        return [""] * len(prompts)


def alike(block: nn.Module, forward: Callable[..., Any], counted: Counted, known: dict[Any, Any]) -> Callable[..., Any]:
    """``block``'s ``forward``, run once for all blocks where only its cost is of interest.

    That is without gradients, and with no site inside that is being edited or traced; ``known`` is what was learned.
    """

    def once(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() or any(module._forward_hooks for module in block.modules()):
            return forward(hidden, *args, **kwargs)
        key = hidden.shape, len(args), tuple(name for name, value in kwargs.items() if value is not None)
        if key not in known:
            cost: dict[str, float] = {}
            with counted.noted(cost):
                out = forward(hidden, *args, **kwargs)
            known[key] = cost, out[1:] if isinstance(out, tuple) else None
            return out
        cost, rest = known[key]
        counted.again(cost)
        return torch.empty_like(hidden) if rest is None else (torch.empty_like(hidden), *rest)

    return once


class Numbered(LM):
    """Numbers texts instead of reading them, to tell how many are different."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, str], int] = {}

    def text(self, prompt: str, answer: str) -> Text:
        return Text((self.numbers.setdefault((prompt, answer), len(self.numbers)),), 0)


@dataclass(frozen=True)
class Shortened:
    """An editor that, if it takes ``steps``, takes two of them and counts the second for those left out."""

    editor: Any
    counted: Counted

    def edit(self, lm: LM, groups: Groups) -> Edit:
        steps = getattr(self.editor, "steps", 0)
        if steps <= 2:
            return self.editor.edit(lm, groups)
        times = [self.counted.seconds]
        for few in (1, 2):
            editor = copy.copy(self.editor)
            editor.steps = few
            edit = editor.edit(lm, groups)
            times.append(self.counted.seconds)
        begun, one, both = times
        self.counted.seconds = begun + (both - one) + (both - one - (one - begun)) * (steps - 2)
        return edit


class Texts:
    """The different texts that run through one trunk: all that training asks, and some of those that tests ask."""

    def __init__(self) -> None:
        self.training: dict[tuple[str, str], int] = {}
        self.times = 0
        """how often training asks for one of them"""
        self.testing: dict[str, dict[Text, None]] = {}
        self.share: dict[str, float] = {}
        """how many times as many edits a task has as its texts in ``testing`` are of"""

    def count(self, lm: LM) -> tuple[int, int, int]:
        """How many texts, their tokens, and how many of these are answers'."""
        training = list(self.training)
        sample = [lm.text(*text) for text in training[:: max(1, len(training) // SAMPLE)]]
        parts = [(sample, len(training) / max(1, len(sample)))]
        parts += [(list(found), self.share[task]) for task, found in self.testing.items()]
        texts = sum(len(found) * share for found, share in parts)
        tokens = sum(sum(len(text.read) for text in found) * share for found, share in parts)
        answers = sum(sum(len(text.answer) for text in found) * share for found, share in parts)
        return round(texts), round(tokens), round(answers)


def plan(config: DictConfig) -> Plan:
    """What ``config`` would need: its data are read, its model is not, and nothing is written.

    Raises:
        UsageError: something in the configuration or the data cannot be used.
    """
    splits: Splits = instantiate(config.tasks).load(config.seed)
    trainer, regime, evaluator = (instantiate(config[part]) for part in ("trainer", "regime", "evaluator"))
    for task, tested in Counter(request.task for request in splits.test).items():
        regime.check(task, tested)
    devices, _ = placed(config.model.device, config.model.dtype)
    rates = Rates(torch.device(devices[-1]))
    with Counted(rates) as counted:
        shape, source = outline(config.model)
        lm = Outline(shape, counted)
        with torch.device("meta"):
            editors: dict[str, Editor] = {name: instantiate(node, lm=lm) for name, node in named(config).items()}
        followed = Followed(lm, trainer, regime, evaluator, splits)
        for editor in editors.values():
            if isinstance(editor, Trainable):
                followed.add("memory", "networks of all editors", _bytes(parameters(editor)))
        while editors:
            name = next(iter(editors))
            followed.follow(name, editors.pop(name), config.run.editors_from is None)
        return followed.whole(f"{config.run.title or lm.name}, on {rates.device}", source, instantiate(config.cache))


def outline(node: DictConfig) -> tuple[LM, str]:
    """The model as shapes alone, and where they are from; nothing is fetched for it."""
    from huggingface_hub import try_to_load_from_cache

    settings: Any = OmegaConf.to_container(node, resolve=True)
    path = settings["path"]
    here = path == "bundled" or Path(path).is_dir() or isinstance(try_to_load_from_cache(path, "config.json"), str)
    if here and settings["weights"] != "random":
        settings["shape"] = None
    source = "model.shape, texts split by the bundled tokenizer" if settings.get("shape") else "the model's own"
    kept = {key: value for key, value in settings.items() if key != "tuned"}
    _, dtype = placed(settings["device"], settings["dtype"])
    return instantiate(OmegaConf.create({**kept, "weights": "random", "device": "meta", "dtype": dtype})), source


def parameters(editor: Trainable) -> list[nn.Parameter]:
    return [parameter for group in editor.parameter_groups() for parameter in group["params"]]


@dataclass
class Asked:
    """What a training asks: its different texts, how many texts that makes in all, and the step with the longest."""

    texts: dict[tuple[str, str], int]
    times: int
    heaviest: int


def asked_in_training(trainer: Trainer, train: Sequence[EditRequest], valid: Sequence[EditRequest]) -> Asked:
    """Every prompt and answer, those of edits and validation included."""
    numbered = Numbered()
    size = trainer.micro_batch or trainer.batch
    times, longest, heaviest = 0, 0, 0

    def ask(requests: Sequence[EditRequest], draw: str) -> int:
        for request in requests:
            numbered.text(request.instruction + request.prompt, request.target)
        questions = trainer.objective.questions(numbered, requests, random.Random(draw))
        return len(requests) + len(questions.changed) + len(questions.kept)

    for begin in range(0, len(valid), size):
        ask(valid[begin : begin + size], f"valid/{trainer.seed}/{begin}")
    order: list[int] = []
    for step in range(trainer.steps):
        while len(order) < (step + 1) * trainer.batch:
            order += batch_indices(len(train), len(train), trainer.seed, len(order) // len(train))
        requests = [train[index] for index in order[step * trainer.batch : (step + 1) * trainer.batch]]
        times += ask(requests, f"{trainer.seed}/{step}")
        length = sum(len(request.instruction + request.prompt + request.target) for request in requests)
        if length > longest:
            longest, heaviest = length, step
    return Asked(numbered.numbers, times, heaviest)


class Followed:
    """Editors one after another, as a run has them: a few batches each, filled up to the whole run.

    Args:
        lm: the model as shapes alone; what it counts with is on, and was when it and the editors were made.
    """

    def __init__(self, lm: Outline, trainer: Trainer, regime: Regime, evaluator: Protocols, splits: Splits) -> None:
        self.lm, self.trainer, self.regime, self.evaluator, self.splits = lm, trainer, regime, evaluator, splits
        self.counted = lm.counted
        self.texts: dict[int, Texts] = {}
        self.a_token: dict[int, float] = {}
        data = {f"{split} edits": len(getattr(splits, split)) for split in ("train", "valid", "test")}
        self.found = Plan("", data)

    def add(self, part: str, what: str, amount: float) -> None:
        ledger = getattr(self.found, part)
        ledger[what] = ledger.get(what, 0) + amount

    def follow(self, name: str, editor: Editor, train: bool) -> None:
        """An editor's training, if it learns and ``train`` is set, and its tests."""
        if isinstance(editor, Trainable):
            self.add("parameters", name, sum(parameter.numel() for parameter in parameters(editor)))
            if train:
                self._train(name, editor)
            editor.train(False)
        self._test(name, editor)

    @contextmanager
    def _peak(self, what: str) -> Iterator[None]:
        self.counted.peak = self.counted.live
        yield
        self.found.peaks[what] = max(self.counted.peak, self.found.peaks.get(what, 0))

    def _train(self, name: str, editor: Trainable) -> None:
        trainer, lm, counted = self.trainer, self.lm, self.counted
        train, valid = (told(editor, requests) for requests in (self.splits.train, self.splits.valid))
        if not train:
            raise UsageError(f"tasks.train is empty, but {name} learns: name a task to train on.")
        asked = asked_in_training(trainer, train, valid)
        optimizer = torch.optim.Adam(editor.parameter_groups())

        def step(number: int) -> None:
            trainer._step(lm, editor, optimizer, train, number, trainer.objective)

        lm.asked = {}
        with self._peak(f"{name}: training"):
            step(asked.heaviest)
        begun = counted.seconds
        for part in range(FOLLOWED):
            step(trainer.steps * part // FOLLOWED)
        stepped = (counted.seconds - begun) / FOLLOWED
        some = valid[: 2 * (trainer.micro_batch or trainer.batch)]
        begun = counted.seconds
        trainer.validate(lm, editor, some)
        validated = (counted.seconds - begun) * len(valid) / max(1, len(some))
        self._trunk()
        for start in lm.asked:
            self._texts(start).training |= asked.texts
            self._texts(start).times += asked.times
        network = _bytes(parameters(editor))
        moments = _bytes(x for state in optimizer.state.values() for x in state.values())
        kind = "gradients and Adam's moments"
        self.found.memory[kind] = max(self.found.memory.get(kind, 0), network + moments)
        activations = self.found.peaks[f"{name}: training"] - counted.live
        self.found.memory[f"{name}: activations of {trainer.micro_batch or trainer.batch} edits"] = activations
        if counted.rates and counted.rates.device.type == "cpu":  # it is copied there before it is written
            self.found.peaks[f"{name}: writing a checkpoint"] = counted.live + network + moments
        self.add("disk", f"checkpoints of {name}, last and best", 2 * network + moments)
        validations = -(-trainer.steps // trainer.validate_every)
        self.add("seconds", f"{name}: {trainer.steps} steps", trainer.steps * stepped + validations * validated)

    @torch.no_grad()
    def _test(self, name: str, editor: Editor) -> None:
        """The first edits of each task under the regime: all it makes, until it comes to none that it made before."""
        lm, counted = self.lm, self.counted
        making, scoring, beside = 0.0, 0.0, 0
        with self._peak(f"{name}: editing and scoring"):
            held = counted.live
            for task in dict.fromkeys(request.task for request in self.splits.test):
                wanted = told(editor, [request for request in self.splits.test if request.task == task])
                lm.asked = {}
                seen: set[str] = set()
                made, scored = 0.0, 0.0
                begun = counted.seconds
                for edit, groups in self.regime(Shortened(editor, counted), lm, wanted):
                    new = {request.id for group in groups for request in group}
                    if seen and not new & seen:
                        break
                    seen |= new
                    there = counted.seconds
                    self.evaluator.score(lm, edit, groups)
                    made, scored = made + there - begun, scored + counted.seconds - there
                    begun = counted.seconds
                    beside = max(beside, _bytes(x for rule in edit.rules.values() for x in rule.tensors().values()))
                share = len(wanted) / len(seen)
                making, scoring = making + made * share, scoring + scored * share
                for start, found in lm.asked.items():
                    self._texts(start).testing.setdefault(task, {}).update(found)
                    self._texts(start).share[task] = share
        self.found.memory[f"{name}: edits made and scored at once"] = beside
        self.found.memory[f"{name}: activations of scoring"] = (
            self.found.peaks[f"{name}: editing and scoring"] - held - beside
        )
        self._trunk()
        self.add("seconds", f"{name}: making {len(self.splits.test)} edits", making)
        self.add("seconds", f"{name}: scoring them", scoring)

    def _trunk(self) -> None:
        """A pass below the edited blocks, up to where those asked last begin."""
        for start, asked in self.lm.asked.items():
            with self._peak(f"texts below block {start}"):
                self.a_token[start] = self.lm.trunk(start, max(len(text.read) for text in asked))

    def _texts(self, start: int) -> Texts:
        return self.texts.setdefault(start, Texts())

    def whole(self, title: str, source: str, cache: Cache) -> Plan:
        """The plan of all editors followed, with what they share."""
        found, lm, rates = self.found, self.lm, self.counted.rates
        weight = lm.head.weight
        bound, width = int(cache.memory_gb * 2**30), weight.shape[1] * weight.element_size()
        texts = tokens = said = kept = 0
        for start, asked in self.texts.items():
            many, long, answers = asked.count(lm)
            texts, tokens, said = texts + many, tokens + long, said + answers
            kept += min(bound, long * width)
            # Where not all fit, training asks again for some that have made room for others.
            again = max(0, asked.times - len(asked.training)) * long / max(1, many)
            missed = 0.0 if cache.folder else max(0.0, 1 - bound / (long * width))
            self.add("seconds", "trunk: hidden states of the texts", (long + again * missed) * self.a_token[start])
        kept += min(bound, said * width)
        if cache.folder:
            self.add("disk", "cache, shared by runs", min(cache.disk_gb * 2**30, (tokens + said) * width))
        every = dict.fromkeys(lm.model.parameters())
        suffix = dict.fromkeys(
            x for part in (*lm.blocks[next(iter(self.texts)) :], lm.norm, lm.head) for x in part.parameters()
        )
        probes = [probes for request in self.splits.test for probes in (request.locality, request.portability)]
        asked_of = sum(len(request.rephrases) for request in self.splits.test)
        asked_of += sum(len(kind) for probe in probes for kind in probe.values())
        dtype = str(weight.dtype).removeprefix("torch.")
        return Plan(
            title,
            {**found.data, "questions about test edits": asked_of, "different texts": texts, "their tokens": tokens},
            {"model": _numel(every), "trunk": _numel(every) - _numel(suffix), "suffix": _numel(suffix)}
            | {f"{name}'s networks": count for name, count in found.parameters.items()},
            {f"weights ({dtype})": _bytes(every), "cache of hidden states": kept} | found.memory,
            {what: peak + kept for what, peak in found.peaks.items()},
            found.disk,
            found.seconds,
            f"Shapes: {source}. Counted on a few batches, padding as text; no early stop. "
            + (measured(rates, weight.dtype) if rates else ""),
        )


def measured(rates: Rates, dtype: torch.dtype) -> str:
    speeds = [f"{rates.flops(kind) / 1e9:,.0f} GFLOP/s ({kind})" for kind in dict.fromkeys((dtype, torch.float32))]
    text = ", ".join(speeds).replace("torch.", "")
    return (
        f"Time: each operation at the rate measured here that bounds it ({text}, {rates.bytes / 1e9:,.0f} GB/s, "
        f"{rates.overhead * 1e6:.0f} µs to start one), Python's own time not counted."
    )


def table(found: Plan) -> Table:
    """The plan for the terminal."""
    shown = Table(box=box.SIMPLE_HEAD, title=found.title, title_justify="left", caption=found.said, min_width=60)
    shown.add_column("what it would need")
    shown.add_column("", justify="right")
    peak = max(found.peaks, key=lambda what: found.peaks[what])
    parts: list[tuple[str, dict[str, str]]] = [
        ("data", {what: f"{count:,}" for what, count in found.data.items()}),
        ("parameters", {what: f"{count:,}" for what, count in found.parameters.items()}),
        ("memory", {what: _size(size) for what, size in found.memory.items()}),
        ("", {f"peak ({peak})": _size(found.peaks[peak])}),
        ("disk", {what: _size(size) for what, size in found.disk.items()}),
        ("time", {what: _time(seconds) for what, seconds in found.seconds.items()}),
        ("", {"all of it": _time(sum(found.seconds.values()))}),
    ]
    for title, rows in parts:
        if title and rows:
            shown.add_row(f"[bold]{title}[/]", "")
        for what, amount in rows.items():
            shown.add_row(f"  {what}" if title else f"  [bold]{what}[/]", amount if title else f"[bold]{amount}[/]")
    return shown


def _numel(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _longer(x: Tensor, tokens: int) -> Tensor:
    """Keys or values with room for so many more tokens."""
    return torch.cat([x, x.new_empty(*x.shape[:2], tokens, x.shape[3])], 2)


def _size(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
