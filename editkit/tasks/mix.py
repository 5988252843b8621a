"""Which tasks train an editor and which test it, in what proportions, and what is kept back to validate it."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from editkit.errors import UsageError
from editkit.requests import EditRequest, Probe
from editkit.tasks.readers import Reader
from editkit.tasks.records import read_records
from editkit.tasks.sources import find_file

Item = TypeVar("Item")
Limit = int | Mapping[str, int | None] | None


@dataclass(frozen=True)
class Task:
    """Where one task's files are and how they are read.

    Attributes:
        train: globs of the training file, relative to the root, in order of preference; empty: never trained on.
        test: the same for the test file.
        reader: makes requests of the file's records.
        root: where the files are, if not where the mix's are.
    """

    train: Sequence[str]
    test: Sequence[str]
    reader: Reader
    root: str | None = None


@dataclass(frozen=True)
class Splits:
    """The edit requests of a run, and what is to be said of where they came from.

    Attributes:
        train: in training order; a request repeats where ``Mix.weights`` asks for it.
        valid: from the training files; shares no subject with ``train``.
        test: task by task, each in its file's order.
        counts: for ``recent/train`` and so on, the file's records and what was mended or left out, by kind.
        sha256: of each file read, under the name that begins its requests' ids, ``recent/recent_train.json``.
    """

    train: tuple[EditRequest, ...]
    valid: tuple[EditRequest, ...]
    test: tuple[EditRequest, ...]
    counts: Mapping[str, Mapping[str, int]]
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class Mix:
    """Training, validation and test requests of several tasks.

    Attributes:
        sources: every task that may be named, by name.
        train: the tasks to train on.
        test: the tasks to test.
        root: where the files are: ``bundled``, a folder or a Hub data set, ``owner/name``.
        weights: how often a task stands in the training order, relative to the others; 1 for a task it does not name.
            The task with the most records for its weight stands there once, the others repeat. ``None``: each once.
        train_limit: at most so many training records, drawn by seed, of each task, or by task; ``None``: all.
        test_limit: the same for tests, drawn by ``test_seed``.
        valid_share: share of a training file's records that validate.
        valid_limit: at most so many of them a task; ``None``: no bound.
        probes: at most so many locality and portability probes a category and record, drawn by the record's id;
            ``None``: all.
        test_seed: of all draws in test files; not the run's seed, so that every run is asked the same questions.
    """

    sources: Mapping[str, Task]
    train: Sequence[str]
    test: Sequence[str]
    root: str = "bundled"
    weights: Mapping[str, float] | None = None
    train_limit: Limit = None
    test_limit: Limit = None
    valid_share: float = 0.1
    valid_limit: int | None = None
    probes: int | None = None
    test_seed: int = 0

    def load(self, seed: int) -> Splits:
        """The requests; the same for the same seed and files, whatever the order in which tasks are named.

        Validation takes whole subjects: a subject of one of its records is out of every task's training records, and a
        training subject that a test file has too is counted (``subject_in_test``) but kept, as published splits do.

        Raises:
            UsageError: a key has a value outside its rule, or a file is missing, malformed or empty.
        """
        self._check()
        counts: dict[str, Counter[str]] = {}
        sha256: dict[str, str] = {}
        tests = {name: self._read(name, "test", self.test_seed, counts, sha256) for name in self.test}
        pools = {name: self._read(name, "train", seed, counts, sha256) for name in sorted(self.train)}

        tested = {_subject(request) for requests in tests.values() for request in requests}
        for name, pool in pools.items():
            counts[f"{name}/train"]["subject_in_test"] = sum(_subject(request) in tested for request in pool)

        held = {name: self._held_back(name, pool, seed) for name, pool in pools.items()}
        subjects = {_subject(request) for requests in held.values() for request in requests}
        train = {}
        for name, pool in pools.items():
            rest = [request for request in pool if _subject(request) not in subjects]
            if not rest:
                raise UsageError(
                    f"tasks.valid_share={self.valid_share} leaves {name} no training record of {len(pool)}: lower it."
                )
            counts[f"{name}/train"]["subject_in_valid_dropped"] = len(pool) - len(held[name]) - len(rest)
            train[name] = _draw(rest, _limit(self.train_limit, name), f"{seed}/{name}/train")

        return Splits(
            train=tuple(self._ordered(train, seed)),
            valid=tuple(_shuffled([request for requests in held.values() for request in requests], f"{seed}/valid")),
            test=tuple(
                request
                for name, requests in tests.items()
                for request in _draw(requests, _limit(self.test_limit, name), f"{self.test_seed}/{name}/test")
            ),
            counts={key: {kind: n for kind, n in sorted(counter.items()) if n} for key, counter in counts.items()},
            sha256=sha256,
        )

    def _check(self) -> None:
        by_task = {"weights": self.weights, "train_limit": self.train_limit, "test_limit": self.test_limit}
        named = {"train": self.train, "test": self.test}
        named |= {key: list(value) for key, value in by_task.items() if isinstance(value, Mapping)}
        for key, names in named.items():
            if isinstance(names, str) or not set(names) <= set(self.sources):
                raise UsageError(f"tasks.{key}={names}: names of tasks are needed, out of {', '.join(self.sources)}.")
        if self.weights is not None and not isinstance(self.weights, Mapping):
            raise UsageError(f"tasks.weights={self.weights}: a number by task is needed, such as {{convsent: 2}}.")
        for name, weight in (self.weights or {}).items():
            if not isinstance(weight, float | int) or weight <= 0:
                raise UsageError(f"tasks.weights.{name}={weight}: a number above 0 is needed, or no {name} in train.")
        for key, limit in (("train_limit", self.train_limit), ("test_limit", self.test_limit)):
            for bound in limit.values() if isinstance(limit, Mapping) else [limit]:
                _check_bound(key, bound, least=1)
        _check_bound("valid_limit", self.valid_limit, least=0)
        _check_bound("probes", self.probes, least=0)
        if not isinstance(self.valid_share, float | int) or not 0 <= self.valid_share < 1:
            raise UsageError(f"tasks.valid_share={self.valid_share}: a share is needed, at least 0 and below 1.")

    def _read(
        self, name: str, split: str, seed: int, counts: dict[str, Counter[str]], sha256: dict[str, str]
    ) -> list[EditRequest]:
        task = self.sources[name]
        patterns = task.train if split == "train" else task.test
        if not patterns:
            raise UsageError(f"tasks.{split} names {name}, which has no {split} file: leave it out.")
        file = find_file(task.root or self.root, patterns, f"{name}/{split}")
        counter = counts[f"{name}/{split}"] = Counter()
        records, sha256[f"{name}/{file.name}"] = read_records(file, name, counter)
        requests = [self._capped(request, counter) for request in task.reader(records, seed)]
        if not requests:
            raise UsageError(f"{file}: none of its {len(records)} records can be an edit: name another file.")

        counter["records"] = len(records)
        counter["target_equals_truth"] = sum(request.target == request.truth for request in requests)
        counter["subject_not_in_prompt"] = sum(request.subject not in request.prompt for request in requests)
        counter["repeated_prompt"] = len(requests) - len({(request.prompt, request.label) for request in requests})
        return requests

    def _capped(self, request: EditRequest, counts: Counter[str]) -> EditRequest:
        if self.probes is None:
            return request

        def cut(section: Mapping[str, tuple[Probe, ...]]) -> dict[str, tuple[Probe, ...]]:
            kept = {kind: tuple(_draw(probes, self.probes, f"{request.id}/{kind}")) for kind, probes in section.items()}
            counts["probe_over_bound_dropped"] += sum(len(section[kind]) - len(kept[kind]) for kind in section)
            return {kind: probes for kind, probes in kept.items() if probes}

        return replace(request, locality=cut(request.locality), portability=cut(request.portability))

    def _held_back(self, name: str, pool: Sequence[EditRequest], seed: int) -> list[EditRequest]:
        by_subject: dict[str, list[EditRequest]] = {}
        for request in pool:
            by_subject.setdefault(_subject(request), []).append(request)
        wanted = round(self.valid_share * len(pool))
        wanted = wanted if self.valid_limit is None else min(wanted, self.valid_limit)
        held: list[EditRequest] = []
        for subject in _shuffled(list(by_subject), f"{seed}/{name}/valid"):
            if len(held) + len(by_subject[subject]) <= wanted:
                held += by_subject[subject]
        return held

    def _ordered(self, train: Mapping[str, Sequence[EditRequest]], seed: int) -> list[EditRequest]:
        weights = {name: 1.0 if self.weights is None else self.weights.get(name, 1.0) for name in train}
        unit = max((len(requests) / weights[name] for name, requests in train.items()), default=0.0)
        order: list[EditRequest] = []
        for name, requests in train.items():
            length = len(requests) if self.weights is None else round(unit * weights[name])
            rounds = -(-length // len(requests))
            order += (list(_shuffled(requests, f"{seed}/{name}/order")) * rounds)[:length]
        return _shuffled(order, f"{seed}/order")


def _check_bound(key: str, bound: int | None, least: int) -> None:
    if bound is not None and (not isinstance(bound, int) or bound < least):
        raise UsageError(f"tasks.{key}={bound}: a whole number of at least {least} is needed, or null for no bound.")


def _subject(request: EditRequest) -> str:
    return request.subject.casefold()


def _limit(limit: Limit, name: str) -> int | None:
    return limit.get(name) if isinstance(limit, Mapping) else limit


def _draw(items: Sequence[Item], limit: int | None, seed: str) -> Sequence[Item]:
    if limit is None or limit >= len(items):
        return items
    return [items[index] for index in sorted(random.Random(seed).sample(range(len(items)), limit))]


def _shuffled(items: Sequence[Item], seed: str) -> list[Item]:
    return random.Random(seed).sample(list(items), len(items))
