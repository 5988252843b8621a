"""The runs found under folders, scored or failed, and which of them may be averaged."""

import gzip
import hashlib
import json
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from editkit import status
from editkit.errors import UsageError
from editkit.reporting import results
from editkit.reporting.results import Run, Score


@dataclass(frozen=True)
class Found:
    """One run's folder.

    Attributes:
        name: its path as seen from the folder that was named.
        status: as `editkit.status.of` gives it, empty where there is none.
        inputs: what ``inputs.json`` says, empty where the run never got that far.
        run: its configuration and its rows of ``results.csv``, none where it has scored no editor.
    """

    folder: Path
    name: str
    status: Mapping[str, Any]
    inputs: Mapping[str, Any]
    run: Run

    @property
    def state(self) -> str:
        return self.status.get("state", "unknown")

    def model(self) -> str:
        named = self.inputs.get("model") or self.run.config.get("model") or {}
        return str(named.get("name", ""))

    def editors(self) -> list[str]:
        """By name, also those that it was to score and has not."""
        asked = [(self.run.config.get("run") or {}).get("editor"), *(self.run.config.get("baselines") or {})]
        return list(dict.fromkeys(name for name in (*asked, *(row["editor"] for row in self.run.rows)) if name))

    def silent(self) -> float:
        """Minutes since anything was written to the folder."""
        return (time.time() - max(path.stat().st_mtime for path in self.folder.iterdir())) / 60

    def kind(self) -> dict[str, str]:
        """What its scores depend on beside its configuration: by name, the protocols, the model and every data file."""
        if not self.inputs:
            return {}
        model, files = self.inputs.get("model", {}), self.inputs.get("data", {}).get("sha256", {})
        return {
            "protocols": str(self.inputs.get("protocols", "")),
            "model": f"{model.get('name', '')} {model.get('fingerprint', '')}",
            **{name: str(digest) for name, digest in sorted(files.items())},
        }


@dataclass(frozen=True)
class Group:
    """Runs of the same protocols, data and model: only they are averaged and compared.

    ``name`` says in what they differ from the other groups, empty where there is one group alone.
    """

    name: str
    kind: Mapping[str, str]
    runs: tuple[Found, ...]


def find(folders: Iterable[Path]) -> list[Found]:
    """The runs under ``folders``, each once.

    Raises:
        UsageError: a folder without runs, or results of another form.
    """
    found: dict[Path, Found] = {}
    for folder in folders:
        inside = sorted({path.parent for name in ("results.csv", "status.json") for path in folder.rglob(name)})
        if not inside:
            raise UsageError(f"No run lies under '{folder}': name the folder of a run that has scored an editor")
        for path in inside:
            name = path.relative_to(folder).as_posix() if path != folder else path.absolute().name
            found.setdefault(path.resolve(), read(path, name))
    return list(found.values())


def read(folder: Path, name: str) -> Found:
    scored, config = folder / "results.csv", folder / "config.yaml"
    if scored.exists():
        run = results.read_run(scored)
    else:
        run = Run((), (yaml.safe_load(config.read_text(encoding="utf-8")) or {}) if config.exists() else {})
    return Found(folder, name, status.of(folder), status.read(folder / "inputs.json"), run)


def groups(found: Iterable[Found]) -> list[Group]:
    """Runs that have scores, by what those depend on; every group says in what it differs from the others."""
    alike: dict[str, list[Found]] = {}
    for one in found:
        if one.run.rows:
            alike.setdefault(json.dumps(one.kind()), []).append(one)
    kinds = [runs[0].kind() for runs in alike.values()]
    differing = {name for kind in kinds for name in kind if len({other.get(name) for other in kinds}) > 1}
    return [Group(called(kind, differing), kind, tuple(runs)) for kind, runs in zip(kinds, alike.values(), strict=True)]


def called(kind: Mapping[str, str], differing: set[str]) -> str:
    if not differing:
        return ""
    if not kind:
        return "inputs unknown"
    words = [f"{name} {kind[name]}" for name in ("protocols", "model") if name in differing]
    if differing - {"protocols", "model"}:
        words.append("data " + hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:8])
    return ", ".join(words)


def scores(found: Iterable[Found]) -> list[Score]:
    """The scores of all runs, those of several seeds averaged within a group; its name stands in the condition."""
    return [
        replace(score, condition=f"{group.name}; {score.condition}".strip("; "))
        for group in groups(found)
        for score in results.read(one.folder for one in group.runs)
    ]


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, compressed or not, none if it is not there.

    Raises:
        UsageError: the file is damaged. The last line of curves may be half written.
    """
    if not path.exists():
        return
    curve = path.suffix == ".jsonl"
    try:
        with path.open(encoding="utf-8") if curve else gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError:
                    if not curve:
                        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UsageError(f"'{path}' cannot be read ({error}): leave the run out by moving its folder") from error
