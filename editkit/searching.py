"""One search for descriptions: load → (write → train a trial editor → score) again and again → a YAML file."""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from editkit.configs import instantiate
from editkit.errors import UsageError
from editkit.instructions import Instructions
from editkit.instructions.descriptions import Described, write
from editkit.instructions.search import Found, History, Scores, Search
from editkit.instructions.writers import Writer
from editkit.regimes import Single
from editkit.requests import EditRequest
from editkit.run import assist, load_model, prepare, test, write_inputs
from editkit.tracking import FolderLog, RunFolder


def search(config: DictConfig, writer: Writer, method: Search, say: Callable[[str], None]) -> Found:
    """Search as ``config`` asks, in its folder; ``descriptions.yaml`` there holds the best set after each round.

    Sets are scored on validation records, which come from the training files.

    Raises:
        UsageError: something in the configuration, the data or the model cannot be used, or the writer fails for good.
    """
    base = Instructions(config.editor.descriptions)
    resume = bool(config.run.resume)
    if (Path(config.run.dir) / "history.jsonl").exists() and not resume:
        raise UsageError(
            f"'{config.run.dir}' holds a search: set run.dir to a new folder, or go on with that one by "
            f"run.resume={config.run.dir}"
        )
    with RunFolder(config.run.dir, OmegaConf.to_yaml(config, resolve=True), resume) as folder:
        splits = instantiate(config.tasks).load(config.seed)
        pool: dict[str, list[EditRequest]] = {}
        for request in sorted(splits.train, key=lambda request: (request.task, request.id)):
            pool.setdefault(request.task, []).append(request)
        method.check(base, pool)
        if lacking := set(pool) - {request.task for request in splits.valid}:
            raise UsageError(f"{', '.join(sorted(lacking))}: no validation record to score, raise tasks.valid_share.")
        evaluator = instantiate(config.evaluator)
        lm = load_model(config)
        write_inputs(folder, lm, splits)
        of = {
            "model": lm.name,
            "trial": {"steps": config.trainer.steps, "batch": config.trainer.batch, "seeds": list(method.seeds)},
            "weights": dict(method.weights),
            "writer": OmegaConf.to_container(config.writer, resolve=True),
        }

        def score(name: str, tasks: Mapping[str, Described], seed: int) -> Scores:
            file = folder.path / "candidates" / f"{name}.yaml"
            write(file, base, tasks)
            trial = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
            trial.run.editor, trial.baselines = name, {}
            trial.editor = {**seeded(config.editor, seed), "descriptions": str(file)}
            trial.trainer = seeded(config.trainer, seed)
            editor, trainer = instantiate(trial.editor, lm=lm), instantiate(trial.trainer)
            beside = partial(assist, OmegaConf.to_yaml(trial), name, str(folder.checkpoints / name))
            prepare(lm, editor, trainer, splits, folder, FolderLog(folder, name), name, None, beside)
            rows, _ = test(lm, editor, Single(), evaluator, splits.valid, name, seed)
            shutil.rmtree(folder.checkpoints / name)
            found: dict[str, dict[str, float]] = {}
            for row in rows:
                if row.protocol != "cost":
                    found.setdefault(row.task, {})[row.metric] = row.mean
            return found

        def report(found: Found) -> None:
            if found.best:
                write(folder.path / "descriptions.yaml", base, found.best.tasks, {"history": {**found.summary(), **of}})
            if not found.stopped:
                say(line(found))

        found = method.run(base, pool, writer, score, History(folder.path / "history.jsonl"), report)
        report(found)
        return found


def seeded(node: DictConfig, seed: int) -> DictConfig:
    """``node``, resolved, with every key named ``seed`` set to this one."""

    def put(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        return {key: seed if key == "seed" else put(value) for key, value in part.items()}

    return OmegaConf.create(put(OmegaConf.to_container(node, resolve=True)))


def line(found: Found) -> str:
    """What the last round brought."""
    last = found.rounds[-1]
    scores = ", ".join(f"{score:.3f}" for score in last.scores) or "no complete set"
    best = "–" if last.best is None else f"{last.best:.3f}"
    dropped, failed = (sum(last.counts[kind].values()) for kind in ("dropped", "failed"))
    return (
        f"round {last.number}: {scores}  (best {best}, bare names {found.bare.score:.3f}; {last.counts['kept']} kept, "
        f"{dropped} dropped; {last.counts['calls']} calls, {failed} failed; {last.seconds:.0f} s)"
    )
