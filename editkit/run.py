"""One run: compose → load → train → edit → score → log. The one place that makes objects of configurations."""

import importlib.util
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from editkit import __version__, parallel
from editkit.configs import instantiate
from editkit.editors import Editor, Instructed, Trainable
from editkit.errors import UsageError
from editkit.evaluation import VERSION, Protocols
from editkit.evaluation.records import Record
from editkit.evaluation.summary import Row, interval, summarise
from editkit.lm import LM
from editkit.regimes import Regime
from editkit.requests import EditRequest
from editkit.tasks import Splits
from editkit.tracking import Log, RunFolder, rewrite
from editkit.training import Trainer, pretrained, step_of

logger = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """Run ``config`` in its folder; the data are read and checked before the model is loaded.

    Raises:
        UsageError: something in the configuration, the data or the model cannot be used.
    """
    text = OmegaConf.to_yaml(config, resolve=True)
    with RunFolder(config.run.dir, text, resume=bool(config.run.resume)) as folder:
        splits = instantiate(config.tasks).load(config.seed)
        tracker, trainer, regime, evaluator = (
            instantiate(config[part]) for part in ("tracker", "trainer", "regime", "evaluator")
        )
        for task, tested in Counter(request.task for request in splits.test).items():
            regime.check(task, tested)
        if trainer.devices > 1 and OmegaConf.is_list(config.model.device):
            raise UsageError(
                f"trainer.devices is {trainer.devices}, but model.device is {list(config.model.device)} for each of "
                "them: name one device, or set trainer.devices=1."
            )
        lm = load_model(config)
        write_inputs(folder, lm, splits)
        done = {row["editor"] for row in folder.results()}
        settings = named(config)
        # All of them before the first is trained, so that what is wrong with the last is said at once.
        editors = {name: instantiate(node, lm=lm) for name, node in settings.items() if name not in done}
        while editors:
            name = next(iter(editors))
            editor = editors.pop(name)
            logger.info("%s: begins", name)
            about = described(config, name, settings[name], lm)
            with tracker.follow(folder, name, config.run.title, about) as log:
                if isinstance(editor, Trainable):
                    beside = partial(assist, text, name, str(folder.checkpoints / name))
                    prepare(lm, editor, trainer, splits, folder, log, name, config.run.editors_from, beside)
                rows, records = test(lm, editor, regime, evaluator, splits.test, name, config.seed)
                draw(folder, name, rows)
                log.finish([asdict(row) for row in rows], records)
            lm.flush()


def described(config: DictConfig, name: str, editor: DictConfig, lm: LM) -> dict[str, Any]:
    """The settings of one editor's part of the run, with the names that runs are told apart by."""
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    names = {"editor_name": name, "task_mix": config.run.get("mix"), "model_name": lm.name}
    parts = {str(key): value for key, value in settings.items() if key != "baselines"}
    return {**parts, "editor": OmegaConf.to_container(editor, resolve=True), **names}


def draw(folder: RunFolder, name: str, rows: Sequence[Row]) -> None:
    """Puts the figure of a sequence scored along the way into ``figures/``, where matplotlib is installed."""
    if len({row.regime for row in rows}) < 2 or importlib.util.find_spec("matplotlib") is None:
        return
    from editkit.analysis import figures

    lines = [{key: str(value) for key, value in asdict(row).items()} for row in rows]
    figures.save(figures.sequences(lines), folder.path / "figures" / name / "sequence")


def load_model(config: DictConfig) -> LM:
    """The model that ``config.model`` names, without the values that only editors' files read from there."""
    settings = OmegaConf.to_container(config.model, resolve=True)
    assert isinstance(settings, dict)
    parts = {str(key): value for key, value in settings.items() if key != "tuned"}
    # As a part of the model's settings: a dataclass that is handed over would be turned into settings again.
    return instantiate(OmegaConf.create({**parts, "cache": OmegaConf.to_container(config.cache, resolve=True)}))


def prepare(
    lm: LM,
    editor: Trainable,
    trainer: Trainer,
    splits: Splits,
    folder: RunFolder,
    log: Log,
    name: str,
    editors_from: str | None,
    beside: Callable[[int], None],
) -> None:
    """Train ``editor``, going on from this run's checkpoint if there is one, or take it from another run's folder.

    ``beside`` is what the trainer's other processes do, see ``assist``.
    """
    if editors_from is not None:
        taken(lm, editor, Path(editors_from), name)
        return
    if not splits.train:
        raise UsageError(f"tasks.train is empty, but {name} learns: name a task to train on, or set run.editors_from.")
    own = folder.checkpoints / name
    folder.rewind(name, step_of(own))
    with parallel.team(trainer.devices, beside):
        state = trainer.fit(lm, editor, told(editor, splits.train), told(editor, splits.valid), own, log.log, name)
    logger.info("%s: %d steps, best at %d", name, state.step, state.best_step)


def assist(text: str, name: str, checkpoints: str, rank: int) -> None:
    """One of the other processes that train an editor of the run that ``text`` configures; it writes nothing."""
    config = OmegaConf.create(text)
    assert isinstance(config, DictConfig)
    config.model.device = f"cuda:{rank}" if torch.cuda.is_available() else "cpu"
    config.trainer.progress = False
    lm = load_model(config)
    editor, trainer = instantiate(named(config)[name], lm=lm), instantiate(config.trainer)
    splits = instantiate(config.tasks).load(config.seed)
    train, valid = told(editor, splits.train), told(editor, splits.valid)
    trainer.fit(lm, editor, train, valid, Path(checkpoints), lambda metrics, step: None, name)


def taken(lm: LM, editor: Trainable, folder: Path, name: str) -> None:
    """Gives ``editor`` the weights that the run in ``folder`` trained under that name."""
    file = folder / "checkpoints" / name / "best.safetensors"
    if not file.is_file():
        raise UsageError(f"run.editors_from is '{folder}', but {file} is not there: name a run that trained {name}.")
    pretrained(editor, file, lm)


def reopened(folder: Path) -> tuple[LM, dict[str, Editor], Splits]:
    """What a finished run was made of: its model, its editors as they were tested, and its requests.

    Raises:
        UsageError: ``folder`` is no run's, or a checkpoint is missing or of another model.
    """
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"'{folder}' is no run's folder: it has no config.yaml")
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    lm = load_model(config)
    editors = {name: instantiate(node, lm=lm) for name, node in named(config).items()}
    for name, editor in editors.items():
        if isinstance(editor, Trainable):
            taken(lm, editor, Path(config.run.editors_from or folder), name)
    return lm, editors, instantiate(config.tasks).load(config.seed)


def named(config: DictConfig) -> dict[str, DictConfig]:
    """The settings of every editor of a run by name, the one under study first."""
    return {config.run.editor: None, **config.baselines, config.run.editor: config.editor}


def told(editor: object, requests: Sequence[EditRequest]) -> list[EditRequest]:
    """``requests`` as ``editor`` reads them: with an instruction, if it is one that does."""
    return [editor.instruct(request) for request in requests] if isinstance(editor, Instructed) else list(requests)


@torch.no_grad()
def test(
    lm: LM,
    editor: Editor,
    regime: Regime,
    evaluator: Protocols,
    requests: Sequence[EditRequest],
    name: str,
    seed: int,
) -> tuple[list[Row], list[Record]]:
    """Edit every request under the regime, score what comes out, and sum it up."""
    rows: list[Row] = []
    records: list[Record] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        shown = bar.add_task(f"{name}: edit and score", total=len(requests))
        for task in dict.fromkeys(request.task for request in requests):
            wanted = told(editor, [request for request in requests if request.task == task])
            found: list[Record] = []
            seconds: list[float] = []
            edited: set[str] = set()
            peak = Peak(lm.device)
            began = time.perf_counter()
            for edit, groups in regime(editor, lm, wanted):
                new = {request.id for group in groups for request in group} - edited
                edited |= new
                seconds.append((time.perf_counter() - began) / len(new))
                found += [replace(record, regime=edit.regime) for record in evaluator.score(lm, edit, groups)]
                bar.advance(shown, len(new))
                began = time.perf_counter()
            rows += summarise(found, name, seed, evaluator.resamples)
            rows += cost(seconds, peak.mib(), len(edited), name, task, edit.regime, seed)
            records += found
    return rows, records


def cost(
    seconds: Sequence[float], peak: float | None, edits: int, name: str, task: str, regime: str, seed: int
) -> list[Row]:
    """Wall time an edit, and where it is known the peak memory of editing and scoring, as rows of ``results.csv``."""
    values = {"seconds_per_edit": interval(np.array(seconds)[:, None], 1000, seed)}
    if peak is not None:
        values["peak_memory_mib"] = (peak, peak, peak)
    return [Row(name, task, regime, "cost", metric, *value, edits, seed) for metric, value in values.items()]


class Peak:
    """The most memory held from its making on: by tensors of a CUDA device, or else by the process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is forgotten
        except OSError:
            self._known = False

    def mib(self) -> float | None:
        """In MiB; ``None`` where what was held before cannot be told from it."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**20
        if not self._known:
            return None
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**10


def write_inputs(folder: RunFolder, lm: LM, splits: Splits) -> None:
    """Say in ``inputs.json`` which model, data and protocols the results are of."""
    inputs: Mapping[str, Any] = {
        "editkit": __version__,
        "protocols": VERSION,
        "model": {"name": lm.name, "fingerprint": lm.fingerprint()},
        "data": {"sha256": splits.sha256, "counts": splits.counts},
        "requests": {"train": len(splits.train), "valid": len(splits.valid), "test": len(splits.test)},
    }
    rewrite(folder.path / "inputs.json", json.dumps(inputs, indent=1, default=dict) + "\n")
