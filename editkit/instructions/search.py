"""The construction loop: a writer proposes descriptions, a trial scores them, and the scores go back to the writer.

As InstructEdit's instructions came about (https://arxiv.org/abs/2402.16123, section 3.2, there with GPT-4), with what
the paper leaves open said by settings. The loop knows nothing of training: a trial is a function it is given. All that
happens is an event in a `History`; run again over the same history, the loop takes every answer and score from there
and goes on where it stopped.
"""

import json
import os
import random
import re
import statistics
import string
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editkit.errors import UsageError
from editkit.instructions.descriptions import SLOT, Described, Instructions
from editkit.instructions.writers import Ask, Message, Spent, Trouble, Writer
from editkit.requests import EditRequest

Event = dict[str, Any]
Scores = Mapping[str, Mapping[str, float]]
"""By task, each measure's value."""
Score = Callable[[str, Mapping[str, Described], int], Scores]
"""What a trial with these tasks' descriptions gives: called with a name for it, the descriptions and a seed."""

FIELDS = {
    "system": set[str](),
    "ask": {"examples"},
    "example": {"prompt", "target"},
    "feedback": {"bare", "sets"},
    "set": {"score", "measures", "descriptions"},
    "mend": {"kept", "dropped", "missing"},
}
OF_THE_TASK = {"name", "meaning", "slots", "count", "longest"}


class History:
    """Events in a file of JSON lines: each is on the disk before the next begins; a half-written last line is dropped.

    Three kinds: ``answer`` (round, candidate, task, messages, answer, kept, dropped, missing), ``trouble`` (a call
    without an answer, and why) and ``trial`` (round, candidate, seed, descriptions, scores); each with its ``seconds``.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.events: list[Event] = []
        if file.exists():
            text = file.read_text(encoding="ascii", errors="replace")
            whole = text[: text.rfind("\n") + 1]
            try:
                self.events = [json.loads(line) for line in whole.splitlines()]
            except ValueError as error:
                raise UsageError(f"{file} is no history of a search ({error}): begin a new search.") from error
            if whole != text:
                os.truncate(file, len(whole))

    def add(self, kind: str, **about: Any) -> Event:
        event = {"kind": kind, **about}
        with self.file.open("a", encoding="utf-8") as lines:
            # Plain ASCII: an answer may hold characters that some readers take for the end of a line.
            lines.write(json.dumps(event) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        self.events.append(event)
        return event

    def get(self, kind: str, **about: Any) -> list[Event]:
        """The events of a kind that agree with ``about``, in order."""
        return [e for e in self.events if e["kind"] == kind and all(e[key] == about[key] for key in about)]

    def minutes(self) -> float:
        return sum(event["seconds"] for event in self.events) / 60

    def calls(self) -> int:
        return sum(event["kind"] != "trial" for event in self.events)

    def counts(self, number: int | None = None) -> dict[str, Any]:
        """Of one round, or of all: calls, descriptions kept, answers with too few of them, and by reason how many
        descriptions were dropped and how many calls failed."""
        told = [e for e in self.events if e["kind"] != "trial" and number in (None, e["round"])]
        answers = [event for event in told if event["kind"] == "answer"]
        dropped: Counter[str] = Counter()
        for event in answers:
            dropped.update(event["dropped"])
        return {
            "calls": len(told),
            "kept": sum(len(event["kept"]) for event in answers),
            "short_answers": sum(event["missing"] > 0 for event in answers),
            "dropped": dict(dropped),
            "failed": dict(Counter(event["trouble"] for event in told if event["kind"] == "trouble")),
        }


@dataclass(frozen=True)
class Tried:
    """A set of descriptions with its scores.

    Attributes:
        round: 0 is the bare names of the tasks.
        candidate: which of the round's sets, from 1.
        tasks: the descriptions.
        scores: means over seeds, by task and measure, with the weighted mean of the measures as ``score``.
        by_seed: the whole set's score for each seed: the mean over tasks.
    """

    round: int
    candidate: int
    tasks: Mapping[str, Described]
    scores: Scores
    by_seed: tuple[float, ...]

    @property
    def score(self) -> float:
        return statistics.fmean(self.by_seed)


@dataclass(frozen=True)
class Round:
    """What a round brought.

    Attributes:
        scores: of the sets that were scored; none where every set stayed incomplete.
        best: the highest score of any set so far, the bare names left out; ``None`` before the first.
        counts: of `History.counts`, for this round.
        seconds: calls, waits and trials.
    """

    number: int
    scores: tuple[float, ...]
    best: float | None
    counts: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Found:
    """A search's result so far.

    Attributes:
        bare: the score of the bare names.
        best: the best set that was written; ``None`` before the first.
        stopped: why the search ended, empty while it goes on.
        counts: of `History.counts`.
    """

    bare: Tried
    best: Tried | None
    rounds: tuple[Round, ...]
    stopped: str
    counts: Mapping[str, Any]

    def gains(self) -> tuple[float, ...]:
        """For each seed, by how much the best set is above the bare names."""
        best = self.best.by_seed if self.best else ()
        return tuple(a - b for a, b in zip(best, self.bare.by_seed, strict=False))

    def summary(self) -> dict[str, Any]:
        """Plain containers for a file."""

        def said(tried: Tried | None) -> dict[str, Any] | None:
            if tried is None:
                return None
            scores = {task: {key: _rounded(value) for key, value in of.items()} for task, of in tried.scores.items()}
            by_seed = [_rounded(value) for value in tried.by_seed]
            place = {"round": tried.round, "candidate": tried.candidate}
            return {**place, "score": _rounded(tried.score), "by_seed": by_seed, "tasks": scores}

        gains = self.gains()
        return {
            "best": said(self.best),
            "bare_names": said(self.bare),
            "gain": {
                "mean": _rounded(statistics.fmean(gains)) if gains else None,
                "sd": _rounded(statistics.stdev(gains)) if len(gains) > 1 else None,
            },
            "rounds": [
                {
                    "round": one.number,
                    "scores": [_rounded(score) for score in one.scores],
                    "best": None if one.best is None else _rounded(one.best),
                    "seconds": round(one.seconds, 1),
                    "counts": dict(one.counts),
                }
                for one in self.rounds
            ],
            "stopped": self.stopped,
            "counts": dict(self.counts),
        }


class Stop(Exception):
    """The search is over; the text says why."""


@dataclass(frozen=True)
class Search:
    """Looks for descriptions that make a better editor.

    Attributes:
        prompts: what the writer is told: templates (`FIELDS`), ``slots`` (``some``, ``none``), ``meanings`` of tasks.
        weights: of the measures whose weighted mean is a task's score; a measure that a task lacks is left out there.
        rounds: at most.
        patience: rounds in a row without a better best set before the search stops.
        per_round: sets written and scored a round.
        count: descriptions a task and set.
        seeds: of the trials of a set.
        calls: budget in calls of the writer, failed ones too; ``None``: none.
        minutes: budget in calls, waits and trials together; none is cut short; ``None``: none.
        attempts: answers asked for until a task has ``count`` descriptions; a set that has fewer is dropped.
        retries: times that a failed call is repeated; after these the search ends with an error.
        longest_wait: seconds; without the server's word, waits double from one second up to it.
        longest: characters of a description.
        examples: edits of a task that the writer is shown.
        shown: earlier sets that it is shown.
        seed: of the examples.

    Raises:
        UsageError: a setting is outside its rule, or a template has a field that nothing fills.
    """

    prompts: Mapping[str, Any]
    weights: Mapping[str, float]
    rounds: int = 6
    patience: int = 2
    per_round: int = 1
    count: int = 10
    seeds: Sequence[int] = (0,)
    calls: int | None = 200
    minutes: float | None = 60.0
    attempts: int = 3
    retries: int = 4
    longest_wait: float = 60.0
    longest: int = 200
    examples: int = 3
    shown: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"rounds": 1, "patience": 1, "per_round": 1, "count": 2, "attempts": 1, "longest": 20}
        least |= {"retries": 0, "longest_wait": 0, "examples": 0, "shown": 1, "calls": 1}
        for key, bound in least.items():
            value = getattr(self, key)
            if value is not None and value < bound:
                raise UsageError(f"search.{key} is {value}, but must be at least {bound}.")
        if self.minutes is not None and not self.minutes > 0:
            raise UsageError(f"search.minutes is {self.minutes}, but must be above 0, or null for no bound.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"search.seeds is {list(self.seeds)}: at least one is needed, and none twice.")
        if not self.weights or min(self.weights.values()) < 0 or not sum(self.weights.values()) > 0:
            raise UsageError(f"search.weights is {dict(self.weights)}: none may be below 0, and one must be above.")
        for key, own in FIELDS.items():
            text = self.prompts.get(key)
            if not isinstance(text, str):
                raise UsageError(f"prompts.{key} is missing: it must be text, as in conf/prompts/editkit.yaml.")
            _check_fields(f"prompts.{key}", text, own | (OF_THE_TASK if key in ("ask", "feedback", "mend") else set()))
        for key in ("some", "none"):
            _check_fields(f"prompts.slots.{key}", str(self.prompts.get("slots", {}).get(key, "")), {"slots"})

    def run(
        self,
        base: Instructions,
        pool: Mapping[str, Sequence[EditRequest]],
        writer: Writer,
        score: Score,
        history: History,
        report: Callable[[Found], None] = lambda found: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Found:
        """Search until the best set no longer rises, or the rounds or a budget are used up.

        Args:
            base: names, slots and template of the tasks.
            pool: requests of each task that is to be described, to draw examples from.
            writer: asked for descriptions.
            score: trains a trial editor and scores it.
            history: of an earlier run that was interrupted, or an empty one.
            report: gets the state after each round.
            sleep: waits so many seconds.

        Raises:
            UsageError: a task has no name or meaning, a call failed for good, or no set came about.
        """
        self.check(base, pool)
        tried: list[Tried] = []
        rounds: list[Round] = []

        def found(stopped: str = "") -> Found:
            written = [one for one in tried if one.round]
            best = max(written, key=lambda one: one.score, default=None)
            return Found(tried[0], best, tuple(rounds), stopped, history.counts())

        bare = {task: _bare(base.tasks[task]) for task in pool}
        tried.append(self._scored(0, 1, bare, score, history))
        stopped = ""
        while not stopped:
            number = len(rounds) + 1
            new: list[Tried] = []
            try:
                for candidate in range(1, self.per_round + 1):
                    tasks = self._written(number, candidate, base, pool, tried, writer, history, sleep)
                    if tasks:
                        new.append(self._scored(number, candidate, tasks, score, history))
            except Stop as stop:
                stopped = str(stop)
            tried += new
            if new or not stopped:
                best = max((one.score for one in tried if one.round), default=None)
                seconds = sum(event["seconds"] for event in history.events if event["round"] == number)
                scores = tuple(one.score for one in new)
                rounds.append(Round(number, scores, best, history.counts(number), seconds))
                report(found())
            stopped = stopped or self._enough(rounds)
        if not any(one.round for one in tried):
            raise UsageError(
                f"No complete set of descriptions was written ({stopped}; {said(history.counts())}): look at the "
                f"answers in {history.file}, then change the writer or search.attempts."
            )
        return found(stopped)

    def _enough(self, rounds: Sequence[Round]) -> str:
        """Why the search ends after these rounds; empty if it goes on."""
        if len(rounds) > self.patience and rounds[-1].best == rounds[-1 - self.patience].best:
            return f"the best has not risen for {self.patience} rounds (search.patience)"
        return f"{self.rounds} rounds were made (search.rounds)" if len(rounds) == self.rounds else ""

    def check(self, base: Instructions, tasks: Mapping[str, object]) -> None:
        """Raises UsageError unless each task has a name in ``base`` and a meaning in the prompts."""
        if not tasks:
            raise UsageError("tasks.train is empty: name the tasks that are to be described.")
        for task in tasks:
            if task not in base.tasks:
                raise UsageError(
                    f"descriptions {base.source}: no task '{task}'; give it a name and slots there, and any two "
                    "descriptions, or leave it out of tasks.train."
                )
            if not isinstance(self.prompts.get("meanings", {}).get(task), str):
                raise UsageError(f"prompts.meanings.{task} is missing: say in a sentence what the task is.")

    def _scored(
        self, number: int, candidate: int, tasks: Mapping[str, Described], score: Score, history: History
    ) -> Tried:
        """The set with its scores, from the history where they are known."""
        found: list[Scores] = []
        for seed in self.seeds:
            known = history.get("trial", round=number, candidate=candidate, seed=seed)
            if not known:
                if number:
                    self._check_minutes(history)
                began = time.monotonic()
                scores = score(self._name(number, candidate, seed), tasks, seed)
                known = [
                    history.add(
                        "trial",
                        round=number,
                        candidate=candidate,
                        seed=seed,
                        descriptions={task: list(one.descriptions) for task, one in tasks.items()},
                        scores=scores,
                        seconds=time.monotonic() - began,
                    )
                ]
            found.append({task: {**of, "score": self._weighted(task, of)} for task, of in known[0]["scores"].items()})
        means = {
            task: {key: statistics.fmean(one[task][key] for one in found) for key in of}
            for task, of in found[0].items()
        }
        by_seed = tuple(statistics.fmean(of["score"] for of in one.values()) for one in found)
        return Tried(number, candidate, tasks, means, by_seed)

    def _name(self, number: int, candidate: int, seed: int) -> str:
        which = f".{candidate}" if number and self.per_round > 1 else ""
        return f"round-{number}{which}" + (f"-seed-{seed}" if len(self.seeds) > 1 else "")

    def _weighted(self, task: str, scores: Mapping[str, float]) -> float:
        there = {key: weight for key, weight in self.weights.items() if key in scores}
        if not sum(there.values()) > 0:
            raise UsageError(
                f"search.weights names {', '.join(self.weights)}, but {task} has only {', '.join(scores)}: weigh one."
            )
        return sum(weight * scores[key] for key, weight in there.items()) / sum(there.values())

    def _written(
        self,
        number: int,
        candidate: int,
        base: Instructions,
        pool: Mapping[str, Sequence[EditRequest]],
        tried: Sequence[Tried],
        writer: Writer,
        history: History,
        sleep: Callable[[float], None],
    ) -> dict[str, Described] | None:
        """A new set; none if a task has too few descriptions after all attempts."""
        found = {}
        for task, requests in pool.items():
            named = base.tasks[task]
            place = {"round": number, "candidate": candidate, "task": task}
            known = history.get("answer", **place)
            messages = self.messages(task, named, requests, tried)
            kept: list[str] = []
            for attempt in range(self.attempts):
                if attempt < len(known):
                    event = known[attempt]
                else:
                    answer, seconds = self._answer(place, messages, writer, history, sleep)
                    texts, dropped = usable(answer, named.slots, self.count - len(kept), self.longest, kept)
                    missing = self.count - len(kept) - len(texts)
                    about = {"messages": messages, "answer": answer, "kept": texts, "dropped": dropped}
                    event = history.add("answer", **place, **about, missing=missing, seconds=seconds)
                kept += event["kept"]
                if len(kept) == self.count:
                    break
                mend = self._filled(
                    "mend",
                    task,
                    named,
                    kept=len(event["kept"]),
                    dropped=", ".join(f"{n} {reason}" for reason, n in event["dropped"].items()) or "none",
                    missing=event["missing"],
                )
                messages = [
                    *messages,
                    {"role": "assistant", "content": event["answer"]},
                    {"role": "user", "content": mend},
                ]
            else:
                return None
            found[task] = Described(named.name, tuple(kept), named.slots)
        return found

    def _answer(
        self,
        place: Mapping[str, Any],
        messages: Sequence[Message],
        writer: Writer,
        history: History,
        sleep: Callable[[float], None],
    ) -> tuple[str, float]:
        """What the writer says, and how long it took; calls that fail are repeated, and told in the history."""
        ask = Ask(place["task"], len(history.get("answer", task=place["task"])), tuple(messages))
        for repeated in range(self.retries + 1):
            if self.calls is not None and history.calls() >= self.calls:
                raise Stop(f"{self.calls} calls were made (search.calls)")
            self._check_minutes(history)
            began = time.monotonic()
            try:
                return writer.write(ask), time.monotonic() - began
            except Spent as error:
                raise Stop("the writer has no more answers") from error
            except Trouble as trouble:
                failed = trouble
            wait = min(2.0**repeated, self.longest_wait) if failed.wait is None else failed.wait
            seconds = time.monotonic() - began
            last = repeated == self.retries or wait > self.longest_wait
            seconds += 0.0 if last else wait
            about = {"messages": messages, "trouble": failed.kind, "detail": str(failed)}
            history.add("trouble", **place, **about, seconds=seconds)
            if last:
                break
            sleep(wait)
        if wait > self.longest_wait:
            raise UsageError(
                f"The writer's server asks to wait {wait:.0f} s ({failed}), longer than "
                f"search.longest_wait={self.longest_wait:g}: go on later with run.resume."
            )
        raise UsageError(
            f"The writer failed {self.retries + 1} times in a row, at last by a {failed.kind} ({failed}): "
            "see to it, then go on with run.resume."
        )

    def _check_minutes(self, history: History) -> None:
        if self.minutes is not None and history.minutes() >= self.minutes:
            raise Stop(f"{self.minutes:g} minutes were used (search.minutes)")

    def messages(
        self, task: str, named: Described, requests: Sequence[EditRequest], tried: Sequence[Tried]
    ) -> list[Message]:
        """What the writer is told at first: the task, examples, and the best sets so far with their scores."""
        drawn = random.Random(f"{self.seed}/{task}/examples").sample(
            range(len(requests)), min(self.examples, len(requests))
        )
        shown = [requests[index] for index in drawn]
        examples = "\n".join(
            self.prompts["example"].format(prompt=request.prompt, target=request.target) for request in shown
        )
        asked = [self._filled("ask", task, named, examples=examples)]
        best = sorted((one for one in tried if one.round), key=lambda one: one.scores[task]["score"], reverse=True)
        if best:
            sets = "\n\n".join(self._set(task, one) for one in best[: self.shown])
            bare = f"{tried[0].scores[task]['score']:.3f}"
            asked.append(self._filled("feedback", task, named, bare=bare, sets=sets))
        return [
            {"role": "system", "content": self.prompts["system"].strip()},
            {"role": "user", "content": "\n\n".join(text.strip() for text in asked)},
        ]

    def _set(self, task: str, one: Tried) -> str:
        scores = one.scores[task]
        measures = ", ".join(f"{key} {scores[key]:.3f}" for key in self.weights if key in scores)
        lines = "\n".join(f"- {text}" for text in one.tasks[task].descriptions)
        return self.prompts["set"].format(score=f"{scores['score']:.3f}", measures=measures, descriptions=lines).strip()

    def _filled(self, key: str, task: str, named: Described, **more: object) -> str:
        names = " and ".join(f"[{slot}]" for slot in named.slots)
        slots = self.prompts["slots"]["some" if named.slots else "none"].format(slots=names)
        fields = {"name": named.name, "meaning": self.prompts["meanings"][task], "slots": slots}
        return self.prompts[key].format(**fields, count=self.count, longest=self.longest, **more)


def usable(
    answer: str, slots: Sequence[str], wanted: int, longest: int, known: Sequence[str] = ()
) -> tuple[list[str], dict[str, int]]:
    """The descriptions in a writer's answer that can be used, and how many cannot, by reason.

    Args:
        answer: a JSON list of strings, maybe with words around it, or a numbered or bulleted list.
        slots: that each description must have, and no others.
        wanted: how many at most.
        longest: characters of each.
        known: descriptions that it must not repeat.
    """
    found = listed(answer)
    if found is None:
        return [], {"answer that is no list": 1}
    kept: list[str] = []
    dropped: Counter[str] = Counter()
    for text in found:
        text = " ".join(text.split()) if isinstance(text, str) else ""
        if not text:
            dropped["empty or no text"] += 1
        elif len(text) > longest:
            dropped[f"longer than {longest} characters"] += 1
        elif set(SLOT.findall(text)) != set(slots):
            dropped["without the right slots"] += 1
        elif text.casefold() in {other.casefold() for other in (*kept, *known)}:
            dropped["duplicate"] += 1
        elif len(kept) == wanted:
            dropped["beyond the number"] += 1
        else:
            kept.append(text)
    return kept, dict(dropped)


def listed(answer: str) -> list[Any] | None:
    """The list in an answer; ``None`` if there is none."""
    # A slot such as [TOPIC] is no list: one begins with a quotation mark.
    for begin in re.finditer(r'\[\s*"', answer):
        try:
            found, _ = json.JSONDecoder().raw_decode(answer[begin.start() :])
        except ValueError:
            continue
        return list(found)
    lines = re.findall(r"^\s*(?:\d+[.)]|[-*•])\s+(.+?)\s*$", answer, re.M)
    return [line.strip('"“”') for line in lines] or None


def said(counts: Mapping[str, Any]) -> str:
    """Counts of a history as words."""
    parts = [f"{counts['calls']} calls", f"{counts['kept']} descriptions kept"]
    if counts["short_answers"]:
        parts.append(f"{counts['short_answers']} answers with too few")
    for kind in ("dropped", "failed"):
        if counts[kind]:
            parts.append(f"{kind}: " + ", ".join(f"{n} {reason}" for reason, n in counts[kind].items()))
    return "; ".join(parts)


def _bare(task: Described) -> Described:
    """The name in place of a description; the second, kept one is never drawn, and only makes up the form."""
    return Described(task.name, (task.name, f"{task.name}."))


def _check_fields(key: str, text: str, known: set[str]) -> None:
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise UsageError(f"{key} cannot be filled in ({error}): write {{{{ and }}}} for plain braces.") from error
    if not fields <= known:
        named = ", ".join(f"{{{name}}}" for name in sorted(known)) or "no words in braces"
        raise UsageError(f"{key} has {{{min(fields - known)}}}, but only these are filled in: {named}.")


def _rounded(value: float) -> float:
    return round(value, 6)
