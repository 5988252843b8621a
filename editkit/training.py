"""The meta-training loop: many different edits a step, validation, early stop, checkpoints, exact resume.

It knows no editor by name: an editor that is ``Trainable`` makes an edit with gradients, the objective says how good
the edited model is, and the optimiser moves the editor's parameters. Everything random is drawn anew from (seed, step),
so that a resumed run needs no random state and gives the uninterrupted result, to the rounding of hidden states that
were computed in batches of other texts; where those are the same, bit for bit on a CPU.
"""

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editkit import parallel
from editkit.editors import Trainable
from editkit.errors import UsageError, check_choice
from editkit.lm import LM, chunks
from editkit.objectives import Objective
from editkit.requests import EditRequest

Log = Callable[[Mapping[str, float], int], None]
SCORES = ("loss", "nll", "kl", "reliability", "success", "locality")
"""What an objective says of an edit."""


@dataclass
class Progressed:
    """Where training stands; saved with every checkpoint."""

    step: int = 0
    best: float = -math.inf
    best_step: int = 0
    validations_since_best: int = 0
    stopped_early: bool = False
    learned: dict[str, Any] = field(default_factory=dict)
    """what the objective has learned"""


@dataclass(frozen=True)
class Trainer:
    """Trains an editor on requests.

    Attributes:
        objective: what is minimised, as it is at the start; validations always use this one, so that they compare.
        steps: optimiser steps, at most.
        batch: different edits a step.
        micro_batch: edits that run at once (less memory, the same gradient); null: all of them.
        devices: GPUs, or processes where there is none, that share the edits of a step; the gradient is the same.
        grad_clip: bound on the gradient's L2 norm.
        warmup: steps over which the learning rates rise linearly.
        decay: share of the learning rates left at the last step (cosine); 1 keeps them constant.
        validate_every: steps between validations, each with a checkpoint; the last step always validates.
        best_by: what makes a validation better: a higher mean of reliability and locality (``shares``) or a lower
            ``loss`` (MEND's authors), whose KL a single question with a sure answer can sway.
        patience: validations without a better one before training stops; null: never.
        prefill: before the first step, run every text that may be asked through the model's trunk, the shortest first,
            instead of as they come; pays where training sees most of them, or where they are kept on disk.
        seed: of the order of edits and of what is asked.
        progress: show a bar.
    """

    objective: Objective
    steps: int
    batch: int
    micro_batch: int | None = None
    devices: int = 1
    grad_clip: float = 100.0
    warmup: int = 0
    decay: float = 1.0
    validate_every: int = 100
    best_by: str = "shares"
    patience: int | None = None
    prefill: bool = False
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        check_choice("trainer.best_by", self.best_by, ("shares", "loss"))
        if self.devices < 1 or self.batch % self.devices:
            raise UsageError(
                f"trainer.devices is {self.devices}, but must divide trainer.batch, which is {self.batch}, evenly."
            )

    def fit(
        self,
        lm: LM,
        editor: Trainable,
        train: Sequence[EditRequest],
        valid: Sequence[EditRequest],
        folder: Path,
        log: Log,
        name: str = "editor",
    ) -> Progressed:
        """Train ``editor`` in place and leave it with the weights of its best validation.

        Checkpoints ``last.safetensors`` (with the optimiser's state) and ``best.safetensors`` go to ``folder``; if
        ``last`` is there already, training goes on from it. ``log`` gets curves by step. Of several processes the first
        one alone writes, and ends with the best weights.
        """
        first_one = parallel.rank() == 0
        groups = editor.parameter_groups()
        optimizer = torch.optim.Adam(groups)
        rates = [group["lr"] for group in groups]
        last, best = folder / "last.safetensors", folder / "best.safetensors"
        state = self._restore(last, lm, editor, optimizer) if last.exists() else Progressed()
        objective = replace(self.objective, **state.learned)
        finished = state.step >= self.steps or state.stopped_early
        if self.prefill and not finished:
            self._fill(lm, editor, [*train, *valid], name)
        with self._bar(name) as bar:
            task = bar.add_task(name, total=self.steps, completed=state.step, seen="")
            began, first = time.perf_counter(), state.step
            while not finished:
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * self._rate(state.step)
                seen = self._step(lm, editor, optimizer, train, state.step, objective)
                objective = objective.stepped(seen)
                state.step += 1
                speed = (state.step - first) * self.batch / (time.perf_counter() - began)
                bar.update(task, completed=state.step, seen=_seen(seen, speed))
                curves = {**seen, **objective.learned(), "edits_per_s": speed}
                log({f"train/{key}": value for key, value in curves.items()}, state.step)
                finished = state.step == self.steps
                if finished or state.step % self.validate_every == 0:
                    scores = self.validate(lm, editor, valid)
                    objective = objective.validated(scores)
                    state.learned = objective.learned()
                    log({f"valid/{key}": value for key, value in scores.items()}, state.step)
                    state.validations_since_best += 1
                    if self._quality(scores) > state.best:
                        state.best, state.best_step, state.validations_since_best = self._quality(scores), state.step, 0
                        if first_one:
                            save(best, lm, editor.state_dict(), asdict(state))
                    state.stopped_early = state.validations_since_best == self.patience
                    finished = finished or state.stopped_early
                    if first_one:
                        save(last, lm, editor.state_dict() | _flat(optimizer), asdict(state))
        if first_one and best.exists():
            editor.load_state_dict(restore(best, lm)[0])
        editor.train(False)
        return state

    @torch.no_grad()
    def _fill(self, lm: LM, editor: Trainable, requests: Sequence[EditRequest], name: str) -> None:
        editor.train(False)
        start = lm.block_of(editor.edit(lm, [[requests[0]]]).rules)
        edits = {lm.text(request.instruction + request.prompt, request.target) for request in requests}
        texts = sorted(edits | self.objective.texts(lm, requests), key=lambda text: len(text.ids))
        with self._bar(f"{name}: texts") as bar:
            task = bar.add_task(f"{name}: texts", total=len(texts), seen="")
            for chunk in chunks(texts, lm.rows):
                lm.fill(chunk, start)
                bar.advance(task, len(chunk))
        lm.flush()

    @torch.no_grad()
    def validate(self, lm: LM, editor: Trainable, valid: Sequence[EditRequest]) -> dict[str, float]:
        """The objective's losses and shares on ``valid``, asked the same way at every validation."""
        editor.train(False)
        total = torch.zeros(len(SCORES), device=lm.device)
        for begin in list(range(0, len(valid), self.batch))[parallel.rank() :: parallel.size()]:
            chunk = valid[begin : begin + self.batch]
            questions = self.objective.questions(lm, chunk, random.Random(f"valid/{self.seed}/{begin}"))
            for part in self._parts(range(len(chunk))):
                edit = editor.edit(lm, [[chunk[slot]] for slot in part])
                scores = self.objective(lm, edit, questions.part(part))
                total += torch.stack([scores[key] for key in SCORES]) * len(chunk) / len(valid)
        return dict(zip(SCORES, parallel.summed(total).tolist(), strict=True))

    def _step(
        self,
        lm: LM,
        editor: Trainable,
        optimizer: torch.optim.Optimizer,
        train: Sequence[EditRequest],
        step: int,
        objective: Objective,
    ) -> dict[str, float]:
        requests = [train[index] for index in batch_indices(len(train), self.batch, self.seed, step)]
        questions = objective.questions(lm, requests, random.Random(f"{self.seed}/{step}"))
        own = self.batch // parallel.size()
        parts = self._parts(range(own * parallel.rank(), own * (parallel.rank() + 1)))
        editor.train(True)
        if len(parts) > 1:
            # An editor's statistics are of the whole step, so that its parts give the whole step's gradient.
            with torch.no_grad():
                for part in parts:
                    editor.edit(lm, [[requests[slot]] for slot in part])
            editor.train(False)
        seen = torch.zeros(len(SCORES), device=lm.device)
        optimizer.zero_grad()
        for part in parts:
            edit = editor.edit(lm, [[requests[slot]] for slot in part])
            scores = objective(lm, edit, questions.part(part))
            scores["loss"].backward()
            seen += torch.stack([scores[key].detach() for key in SCORES])
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = parallel.summed(parameter.grad)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.grad_clip)
        optimizer.step()
        # The one place where the host waits for the device.
        *shares, length = torch.cat([parallel.summed(seen), norm.to(seen)[None]]).tolist()
        if not math.isfinite(length):
            raise UsageError(
                f"The gradient is {length} at step {step + 1}: lower the editor's learning rate, or use model.dtype "
                "with a wider range."
            )
        return dict(zip(SCORES, shares, strict=True)) | {"grad_norm": length}

    def _parts(self, slots: range) -> list[range]:
        """``slots`` in runs of as many as may be edited at once."""
        size = self.micro_batch or len(slots)
        return [range(begin, min(begin + size, slots.stop)) for begin in range(slots.start, slots.stop, size)]

    def _quality(self, scores: Mapping[str, float]) -> float:
        return (scores["reliability"] + scores["locality"]) / 2 if self.best_by == "shares" else -scores["loss"]

    def _rate(self, step: int) -> float:
        """The share of the learning rates at ``step`` (from 0)."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.decay + (1 - self.decay) * (1 + math.cos(math.pi * done)) / 2

    def _restore(self, file: Path, lm: LM, editor: Trainable, optimizer: torch.optim.Optimizer) -> Progressed:
        tensors, about = restore(file, lm)
        _load_flat(optimizer, tensors)
        load_weights(editor, {key: tensor for key, tensor in tensors.items() if not key.startswith(OPTIMIZER)}, file)
        return Progressed(**about)

    def _bar(self, name: str) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[seen]}"),
        )
        return Progress(*columns, TimeRemainingColumn(), disable=not self.progress)


def batch_indices(records: int, batch: int, seed: int, step: int) -> list[int]:
    """The records of step ``step``: epochs are seeded shuffles laid end to end, and a step takes the next ``batch``."""
    wanted = range(step * batch, (step + 1) * batch)
    epochs: dict[int, list[int]] = {}
    for epoch in {index // records for index in wanted}:
        epochs[epoch] = list(range(records))
        random.Random(f"{seed}/epoch {epoch}").shuffle(epochs[epoch])
    return [epochs[index // records][index % records] for index in wanted]


def _seen(scores: Mapping[str, float], speed: float) -> str:
    shown = " ".join(f"{key} {scores[key]:.3f}" for key in ("loss", "reliability", "locality"))
    return f"{shown} {speed:.0f} edits/s"


OPTIMIZER = "optimizer|"


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{OPTIMIZER}{index}|{key}": t for index, entry in state.items() for key, t in entry.items()}


def _load_flat(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(OPTIMIZER):
            _, index, entry = key.split("|")
            state.setdefault(int(index), {})[entry] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def save(file: Path, lm: LM, tensors: Mapping[str, Tensor], about: Mapping[str, object]) -> None:
    """Write a checkpoint beside its final name and move it there, so that ``file`` is always whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header = {"model": lm.fingerprint(), "state": json.dumps(about)}
    partial = file.with_suffix(".partial")
    try:
        save_file({key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}, partial, header)
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(f"Cannot write {file} ({error}): free some space, then go on with run.resume.") from error
    partial.replace(file)


def restore(file: Path, lm: LM) -> tuple[dict[str, Tensor], dict]:
    """A checkpoint's tensors and what was said about it; raises UsageError if it was made for another model."""
    try:
        with safe_open(file, "pt") as opened:
            header = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        about = json.loads(header["state"])
    except (SafetensorError, OSError, KeyError) as error:
        raise UsageError(f"{file} is not an editor's checkpoint ({error}): name one that a run wrote.") from error
    if header["model"] != lm.fingerprint():
        raise UsageError(
            f"{file} was trained for another model (fingerprint {header['model']}, this one is {lm.fingerprint()}): "
            "use the model it was trained for."
        )
    return tensors, about


def step_of(folder: Path) -> int:
    """The step of the last checkpoint in ``folder``; 0 if there is none."""
    file = folder / "last.safetensors"
    if not file.exists():
        return 0
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["state"])["step"]


def load_weights(editor: Trainable, tensors: dict[str, Tensor], file: Path) -> None:
    """Put a checkpoint's weights into ``editor``; raises UsageError if its shape is another one's."""
    try:
        editor.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UsageError(
            f"{file} does not fit this editor ({reason}): use the sites and sizes it was trained with."
        ) from error


def pretrained(editor: Trainable, file: Path, lm: LM) -> None:
    """Load a trained editor's weights from ``file``."""
    tensors, _ = restore(file, lm)
    load_weights(editor, {key: tensor for key, tensor in tensors.items() if not key.startswith(OPTIMIZER)}, file)
    editor.train(False)
