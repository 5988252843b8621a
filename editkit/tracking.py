"""What a run leaves behind: its folder, the source of truth, and Weights & Biases as a copy of it."""

import csv
import dataclasses
import gzip
import hashlib
import json
import logging
import math
import netrc
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self
from urllib.parse import urlsplit

from editkit import __version__
from editkit.errors import UsageError
from editkit.status import claim, read

COLUMNS = ("editor", "task", "regime", "protocol", "metric", "mean", "ci_low", "ci_high", "n", "seed")
LEAST_SPACE = 64 * 2**20  # bytes; a tiny run's checkpoints and W&B files

logger = logging.getLogger(__name__)


class Fields(Protocol):
    """Any dataclass of words, numbers and mappings: a record of one question and its answers."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class RunFolder:
    """A run's folder as a context: made and marked running on entry, marked finished, failed or interrupted on exit.

    No other process can enter it meanwhile.

    Holds ``config.yaml`` (as given), ``status.json``, ``metrics.jsonl`` (curves), ``results.csv``,
    ``records.jsonl.gz``, ``run.log`` and ``checkpoints/``. Files that are read as a whole are replaced in one step, so
    that a killed run leaves no half of one.

    Raises:
        UsageError: the folder cannot be written to, is another process's, holds another run's results or checkpoints
            (unless ``resume``), or its disk is full.
    """

    def __init__(self, path: str | Path, config_yaml: str, resume: bool = False) -> None:
        self.path = Path(path).absolute()
        self.checkpoints = self.path / "checkpoints"
        self._config_yaml = config_yaml
        self._resume = resume
        self._status: dict[str, Any] = {}
        self._log_handler: logging.StreamHandler | None = None

    def __enter__(self) -> Self:
        with writing(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.path).free < LEAST_SPACE:
                raise UsageError(f"The disk of '{self.path}' is full: free some space or set run.dir elsewhere")
            self._log_handler = logging.StreamHandler(log := (self.path / "run.log").open("a", encoding="utf-8"))
            try:
                self._begin(claim(self.path, log))
            except BaseException:
                log.close()
                raise
        self._log_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(self._log_handler)
        logging.getLogger("editkit").setLevel(logging.INFO)
        logger.info("%s: editkit %s, Python %s", self.path.name, __version__, platform.python_version())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        state = "finished" if kind is None else "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
        why = "" if error is None else f"{type(error).__name__}: {error}".rstrip(": ")
        try:
            if state == "failed" and not isinstance(error, UsageError):
                logger.info("failed", exc_info=error)
            else:
                logger.info("%s %s", state, why)
            self._mark(state, why)
        except OSError:
            # On a full disk the state stays "running"; what went wrong matters more.
            if error is None:
                raise
        finally:
            if self._log_handler:
                logging.getLogger().removeHandler(self._log_handler)
                self._log_handler.stream.close()

    def log(self, metrics: Mapping[str, float], step: int, editor: str) -> None:
        """Appends one point of each curve to ``metrics.jsonl``; what is not finite becomes ``null``."""
        numbers = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with writing(self.path / "metrics.jsonl") as path, path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"editor": editor, "step": step, **numbers}) + "\n")

    def rewind(self, editor: str, step: int) -> None:
        """Drops an editor's curves after ``step``, for a run that goes on from a checkpoint made there."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                point = json.loads(line)
            except json.JSONDecodeError:  # the line that was being written when the run was killed
                continue
            if point["editor"] != editor or point["step"] <= step:
                kept.append(line + "\n")
        with writing(path):
            rewrite(path, "".join(kept))

    def add(self, editor: str, results: Iterable[Mapping[str, Any]], records: Iterable[Fields]) -> None:
        """Adds one editor's rows of ``results.csv`` and lines of ``records.jsonl.gz``, in place of any it had."""
        path = self.path / "records.jsonl.gz"
        lines = [line for line in unzipped(path) if json.loads(line)["editor"] != editor]
        for record in records:
            lines.append(json.dumps({"editor": editor, **dataclasses.asdict(record)}, ensure_ascii=False) + "\n")
        with writing(path), replacing(path) as part:
            # Without a time in its header, the same records give the same bytes.
            part.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
        path = self.path / "results.csv"
        kept = [row for row in self.results() if row["editor"] != editor]
        with writing(path), replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows([*kept, *map(rounded, results)])

    def results(self) -> list[dict[str, str]]:
        """The rows of ``results.csv`` so far: an editor that has some is done."""
        path = self.path / "results.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _begin(self, state: str | None) -> None:
        """Marks the folder running, unless it was left in a ``state`` that must not be written over."""
        if self._resume:
            self._status = read(self.path / "status.json")
        elif state and self._has_outcome():
            raise UsageError(
                f"'{self.path}' holds a run that is {state}: set run.dir to a new folder, "
                f"or go on with that one by run.resume={self.path}"
            )
        else:
            (self.path / "metrics.jsonl").unlink(missing_ok=True)
            rewrite(self.path / "config.yaml", self._config_yaml)
        self._mark("running")

    def _has_outcome(self) -> bool:
        return (self.path / "results.csv").exists() or any(path.is_file() for path in self.checkpoints.rglob("*"))

    def _mark(self, state: str, why: str = "") -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._status = {
            "state": state,
            "why": why,
            "started": self._status.get("started", now),
            "ended": now if state != "running" else None,
            "host": platform.node(),
            "pid": os.getpid(),
        }
        rewrite(self.path / "status.json", json.dumps(self._status, indent=1) + "\n")


class Log(Protocol):
    """One editor's part of a run, as it unfolds."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Takes one point of each curve."""

    def finish(self, results: Sequence[Mapping[str, Any]], records: Sequence[Fields]) -> None:
        """Takes the editor's rows of ``results.csv`` and the records behind them."""


class Tracker(Protocol):
    """Where an editor's part of a run is kept beside the folder."""

    def follow(
        self, folder: RunFolder, editor: str, title: str, config: Mapping[str, Any]
    ) -> AbstractContextManager[Log]:
        """A context in which the editor is trained and scored; what its `Log` takes is in ``folder`` first."""


class FolderLog:
    """A `Log` into the run's folder, and what that holds of its editor."""

    def __init__(self, folder: RunFolder, editor: str) -> None:
        self._folder = folder
        self._editor = editor

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._folder.log(metrics, step, self._editor)

    def finish(self, results: Sequence[Mapping[str, Any]], records: Sequence[Fields]) -> None:
        self._folder.add(self._editor, results, records)

    def points(self) -> list[dict[str, float]]:
        """Every point of the editor's curves so far, with its ``step``; what is not finite is left out."""
        path = self._folder.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        own = [point for point in map(json.loads, lines) if point.pop("editor") == self._editor]
        return [{name: value for name, value in point.items() if value is not None} for point in own]

    def figures(self) -> list[Path]:
        """The editor's images in the run's folder: ``figures/EDITOR/*.png``."""
        return sorted((self._folder.path / "figures" / self._editor).glob("*.png"))


class NoTracker:
    """Nothing beside the run's folder."""

    @contextmanager
    def follow(self, folder: RunFolder, editor: str, title: str, config: Mapping[str, Any]) -> Iterator[Log]:
        yield FolderLog(folder, editor)


class WandbTracker:
    """One W&B run an editor: its configuration, curves, final scores, figures and a table of records; files in
    ``wandb/``. Curves are drawn over ``step``.

    Args:
        mode: ``offline`` (no key, no network), ``online`` or ``disabled``. Where online cannot be reached the run is
            kept offline, and says so.
        project: the W&B project.
        entity: the user or team, ``None`` for the key's own.
        group: runs shown together: those of a sweep, or the editors of one run.
        tags: words to find runs by.
        table_rows: records shown in the table at most, evenly spaced over all.

    Raises:
        UsageError: an unknown mode, or ``online`` without a key.
    """

    def __init__(
        self,
        mode: str = "offline",
        project: str = "editkit",
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        table_rows: int = 500,
    ) -> None:
        if mode not in ("offline", "online", "disabled"):
            raise UsageError(f"tracker.mode is '{mode}', but must be one of offline, online, disabled")
        if mode == "online" and not has_key():
            raise UsageError("tracker.mode=online needs a W&B key: run `wandb login`, or set tracker.mode=offline")
        self._mode = mode
        self._place = {"project": project, "entity": entity, "group": group, "tags": [str(tag) for tag in tags]}
        self._table_rows = table_rows

    @contextmanager
    def follow(self, folder: RunFolder, editor: str, title: str, config: Mapping[str, Any]) -> Iterator[Log]:
        own = FolderLog(folder, editor)
        if self._mode == "disabled":
            yield own
            return
        with wandb_files_in(folder.path / "wandb"):
            run = self._start(folder, editor, f"{editor} · {title}", config)
            run.define_metric("*", step_metric="step")
            code = 1
            try:
                yield WandbLog(own, run, self._table_rows)
                code = 0
            except KeyboardInterrupt:
                code = 130
                raise
            finally:
                run.finish(exit_code=code)

    def _start(self, folder: RunFolder, editor: str, name: str, config: Mapping[str, Any]) -> Any:
        import wandb

        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True, init_timeout=20
        )
        # The same editor of the same folder is the same W&B run: resumed, its curves go on where they stopped.
        identity = hashlib.sha256(f"{folder.path}/{editor}".encode()).hexdigest()[:12]
        arguments: dict[str, Any] = {
            **self._place,
            "job_type": editor,
            "name": name,
            "id": identity,
            "config": dict(config),
            "dir": str(folder.path),
            "reinit": "create_new",  # otherwise a run that is still open would be returned instead
            "settings": settings,
        }
        if self._mode == "online":
            try:
                return wandb.init(mode="online", resume="allow", **arguments)
            except wandb.Error as error:
                logger.warning(
                    "W&B cannot be reached (%s): kept offline; send it later with `wandb sync %s`",
                    str(error).splitlines()[0] if str(error) else type(error).__name__,
                    folder.path / "wandb" / "offline-run-*",
                )
        return wandb.init(mode="offline", **arguments)


class WandbLog:
    """A `Log` into the run's folder, then into a W&B run.

    A run that goes on offline is a second file of the same W&B run, and sending it replaces the first: so it begins
    with the curves so far.
    """

    def __init__(self, own: FolderLog, run: Any, table_rows: int) -> None:
        self._own = own
        self._run = run
        self._table_rows = table_rows
        self._behind: bool = run.offline

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if self._behind:
            self._catch_up()
        self._own.log(metrics, step)
        self._run.log({**metrics, "step": step}, step=step)

    def finish(self, results: Sequence[Mapping[str, Any]], records: Sequence[Fields]) -> None:
        import wandb

        if self._behind:
            self._catch_up()
        self._own.finish(results, records)
        self._run.summary.update({f"{row['task']}/{row['protocol']}/{row['metric']}": row["mean"] for row in results})
        for path in self._own.figures():
            self._run.log({f"figures/{path.stem}": wandb.Image(str(path))})
        if not records or not self._table_rows:
            return
        stride = math.ceil(len(records) / self._table_rows)
        rows = [dataclasses.asdict(record) for record in records[::stride]]
        cells = [
            [json.dumps(v, ensure_ascii=False) if isinstance(v, dict) else v for v in row.values()] for row in rows
        ]
        self._run.log({"records": wandb.Table(columns=list(rows[0]), data=cells, allow_mixed_types=True)})

    def _catch_up(self) -> None:
        for point in self._own.points():
            self._run.log(point, step=int(point["step"]))
        self._behind = False


def has_key() -> bool:
    """Whether W&B finds a key in its environment variable or where `wandb login` keeps it."""
    import wandb

    settings = wandb.setup().settings
    if settings.api_key:
        return True
    try:
        return (
            netrc.netrc(os.environ.get("NETRC")).authenticators(urlsplit(settings.base_url).hostname or "") is not None
        )
    except (OSError, netrc.NetrcParseError):
        return False


@contextmanager
def wandb_files_in(folder: Path) -> Iterator[None]:
    """Within: W&B stages and caches its files in ``folder``, not in the home folder, unless the user says where."""
    folder.mkdir(exist_ok=True)
    places = {"WANDB_DATA_DIR": folder / "data", "WANDB_CACHE_DIR": folder / "cache"}
    ours = {name: str(path) for name, path in places.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def unzipped(path: Path) -> list[str]:
    """The lines of a compressed file, none if it is not there."""
    return gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True) if path.exists() else []


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with six decimals: far below any interval's width."""
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()}


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Within: a disk that is full or a place that cannot be written to becomes a `UsageError`."""
    try:
        yield path
    except OSError as error:
        raise UsageError(
            f"Cannot write '{error.filename or path}' ({error.strerror}): free some space or set run.dir elsewhere"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to, that becomes ``path`` in one step at the end, or vanishes on an error."""
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def rewrite(path: Path, text: str) -> None:
    """Puts ``text`` in place of the file's content in one step."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
