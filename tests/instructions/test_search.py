"""The construction loop: it rises and stops, keeps to its budgets, counts what goes wrong, and goes on where it was."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import editkit
from editkit.errors import UsageError
from editkit.instructions import Instructions
from editkit.instructions import search as search_module
from editkit.instructions.descriptions import Described, write
from editkit.instructions.search import Found, History, Search, listed, usable
from editkit.instructions.writers import Ask, Spent, Trouble
from editkit.requests import EditRequest

PROMPTS = yaml.safe_load((Path(editkit.__file__).parents[1] / "conf" / "prompts" / "editkit.yaml").read_text())
BASE = Instructions()
POOL = {
    task: [EditRequest(f"{task}/x#{n}", task, f"S{n}", f"The {task} of S{n} is", f"T{n}") for n in range(5)]
    for task in ("convsent", "recent")
}


class Scripted:
    """Writes what ``answers`` say by task, or raises them; for ever the last."""

    def __init__(self, answers: Mapping[str, Sequence[Any]]) -> None:
        self.answers = answers
        self.asks: list[Ask] = []
        self.troubles = 0

    def write(self, ask: Ask) -> str:
        self.asks.append(ask)
        answers = self.answers[ask.task]
        answer = answers[min(ask.number + self.troubles, len(answers) - 1)]
        if isinstance(answer, Exception):
            self.troubles += isinstance(answer, Trouble)
            raise answer
        return answer if isinstance(answer, str) else json.dumps(answer)


def ten(word: str, task: str = "recent", count: int = 10) -> list[str]:
    slots = " [LABEL] [TOPIC]" if task == "convsent" else ""
    return [f"{word} {n}{slots}." for n in range(count)]


def rising(*words: str) -> Scripted:
    return Scripted({task: [ten(word, task) for word in words] for task in POOL})


class Trials:
    """Scores a set by the word it begins with: ``w7`` gives 0.7, and the bare names 0.35."""

    def __init__(self) -> None:
        self.made: list[tuple[str, int]] = []

    def __call__(self, name: str, tasks: Mapping[str, Described], seed: int) -> dict[str, dict[str, float]]:
        self.made.append((name, seed))
        found = {}
        for task, one in tasks.items():
            word = re.match(r"w(\d)", one.descriptions[0])
            value = (int(word[1]) if word else 3.5) / 10 + seed / 100
            found[task] = {"reliability": value + 0.1, "locality": value - 0.1, "other": 9.0}
        return found


def settings(**changes: Any) -> Search:
    given: dict[str, Any] = {"prompts": PROMPTS, "weights": {"reliability": 1.0, "locality": 1.0}}
    return Search(**{**given, **changes})


def run(tmp_path: Path, method: Search, writer: Scripted, trials: Any = None, **more: Any) -> Found:
    return method.run(BASE, POOL, writer, trials or Trials(), History(tmp_path / "history.jsonl"), **more)


def test_it_rises_and_stops_when_it_no_longer_does(tmp_path: Path) -> None:
    writer, trials, reports = rising("w3", "w5", "w4", "w5", "w9"), Trials(), []
    found = run(tmp_path, settings(), writer, trials, report=reports.append)
    assert found.best and (found.best.round, found.best.score) == (2, pytest.approx(0.5))
    assert found.bare.score == pytest.approx(0.35) and found.gains() == (pytest.approx(0.15),)
    assert [one.best for one in found.rounds] == [pytest.approx(best) for best in (0.3, 0.5, 0.5, 0.5)]
    assert "not risen for 2 rounds" in found.stopped and len(reports) == 4
    assert trials.made == [(f"round-{number}", 0) for number in range(5)]
    assert found.counts == {"calls": 8, "kept": 80, "short_answers": 0, "dropped": {}, "failed": {}}


def test_scores_go_back_to_the_writer_the_best_first(tmp_path: Path) -> None:
    writer = rising("w3", "w5", "w4")
    run(tmp_path, settings(rounds=3, shown=1), writer)
    first, *_, last = (ask.messages[-1]["content"] for ask in writer.asks if ask.task == "recent")
    assert BASE.tasks["recent"].name in first and first.count(" is to be answered by ") == 3
    assert "0.35" not in first and "w" not in re.findall(r"^- (\w)\d", first, re.M)
    assert "reached 0.350" in last and "Score 0.500 (reliability 0.600, locality 0.400):\n- w5 0." in last
    assert "w3 0." not in last
    (convsent, *_) = (ask.messages[-1]["content"] for ask in writer.asks if ask.task == "convsent")
    assert "[LABEL] and [TOPIC]" in convsent and "[LABEL]" not in first


def test_the_bare_names_are_scored_by_the_same_trial(tmp_path: Path) -> None:
    seen: list[Mapping[str, Described]] = []

    def score(name: str, tasks: Mapping[str, Described], seed: int) -> dict[str, dict[str, float]]:
        seen.append(tasks)
        return Trials()(name, tasks, seed)

    run(tmp_path, settings(rounds=1), rising("w3"), score)
    assert seen[0]["recent"].descriptions[:-1] == (BASE.tasks["recent"].name,)
    write(tmp_path / "bare.yaml", BASE, seen[0])  # of the form that an editor reads
    assert seen[0].keys() == seen[1].keys()


def test_all_sets_have_the_same_seeds(tmp_path: Path) -> None:
    trials = Trials()
    found = run(tmp_path, settings(rounds=1, per_round=2, seeds=[0, 4]), rising("w3", "w5"), trials)
    names = ["round-0", "round-1.1", "round-1.2"]
    assert trials.made == [(f"{name}-seed-{seed}", seed) for name in names for seed in (0, 4)]
    assert found.best and found.best.candidate == 2
    assert found.best.by_seed == (pytest.approx(0.5), pytest.approx(0.54))
    assert found.gains() == (pytest.approx(0.15), pytest.approx(0.15))
    assert found.summary()["gain"] == {"mean": 0.15, "sd": 0.0}


def test_a_search_that_was_killed_repeats_nothing(tmp_path: Path) -> None:
    """Cut after each event, in the middle of writing the next one: together both parts are the whole."""

    def script() -> Scripted:
        short = ten("w4", count=7)
        return Scripted(
            {
                "recent": [ten("w3"), "no list\u2028at all", short, ten("w5", count=12), *[ten("w4")] * 5],
                "convsent": [ten("w3", "convsent")] * 9,
            }
        )

    def told(file: Path) -> list[dict[str, Any]]:
        return [{**json.loads(line), "seconds": 0} for line in file.read_text().splitlines()]

    method = settings(per_round=2)
    (tmp_path / "whole").mkdir()
    whole, trials = script(), Trials()
    expected = run(tmp_path / "whole", method, whole, trials)
    lines = (tmp_path / "whole" / "history.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == len(whole.asks) + len(trials.made) > 15
    for cut in range(len(lines)):
        file = tmp_path / "history.jsonl"
        file.write_text("".join(lines[:cut]) + lines[cut][: cut + 1])
        again, trials = script(), Trials()
        found = run(tmp_path, method, again, trials)
        assert told(file) == told(tmp_path / "whole" / "history.jsonl")
        assert len(again.asks) + len(trials.made) == len(lines) - cut
        assert (found.best, found.stopped, found.counts) == (expected.best, expected.stopped, expected.counts)


def test_what_is_no_history_is_refused(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text("{\n")
    with pytest.raises(UsageError, match="no history of a search"):
        History(tmp_path / "history.jsonl")


@pytest.mark.parametrize(
    ("changes", "calls", "rounds", "why"),
    [
        ({"rounds": 2}, 4, 2, r"2 rounds were made"),
        ({"calls": 3}, 3, 1, r"3 calls were made"),
        ({"calls": 4}, 4, 2, r"4 calls were made"),
        ({"minutes": 2.5}, 3, 1, r"2\.5 minutes were used"),
    ],
)
def test_budgets_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], calls: int, rounds: int, why: str
) -> None:
    now = [0.0]
    monkeypatch.setattr(search_module.time, "monotonic", lambda: now[0])

    def score(name: str, tasks: Mapping[str, Described], seed: int) -> dict[str, dict[str, float]]:
        now[0] += 60.0
        return Trials()(name, tasks, seed)

    writer = rising("w1", "w2", "w3", "w4", "w5")
    inner = writer.write

    def slow(ask: Ask) -> str:
        now[0] += 12.0
        return inner(ask)

    writer.write = slow  # type: ignore[method-assign]
    found = run(tmp_path, settings(**changes), writer, score)
    assert (len(writer.asks), len(found.rounds)) == (calls, rounds)
    assert re.search(why, found.stopped)


def test_a_writer_without_more_answers_ends_the_search(tmp_path: Path) -> None:
    found = run(tmp_path, settings(), Scripted({task: [ten("w3", task), Spent()] for task in POOL}))
    assert found.stopped == "the writer has no more answers" and found.best


def test_calls_that_fail_are_repeated_and_counted(tmp_path: Path) -> None:
    waits: list[float] = []
    script = [Trouble("rate limit", "429", 7.0), Trouble("server error", "500"), Trouble("timeout", "slow")]
    writer = Scripted({"convsent": [*script, ten("w3", "convsent")], "recent": [ten("w3")]})
    found = run(tmp_path, settings(rounds=1), writer, sleep=waits.append)
    assert waits == [7.0, 2.0, 4.0]
    assert found.counts["failed"] == {"rate limit": 1, "server error": 1, "timeout": 1}
    assert found.counts["calls"] == len(writer.asks) == 5


def test_a_writer_that_always_fails_ends_the_search_and_can_be_taken_up_again(tmp_path: Path) -> None:
    waits: list[float] = []
    writer = Scripted({task: [Trouble("server error", "500 oh")] for task in POOL})
    with pytest.raises(UsageError, match=r"failed 4 times in a row, at last by a server error \(500 oh\)"):
        run(tmp_path, settings(retries=3, longest_wait=3.0), writer, sleep=waits.append)
    assert len(writer.asks) == 4 and waits == [1.0, 2.0, 3.0]
    trials = Trials()
    found = run(tmp_path, settings(rounds=1), rising("w3"), trials)
    assert found.best and trials.made == [("round-1", 0)] and found.counts["failed"] == {"server error": 4}


def test_a_wait_without_measure_is_not_waited(tmp_path: Path) -> None:
    writer = Scripted({task: [Trouble("rate limit", "429", 9999.0)] for task in POOL})
    with pytest.raises(UsageError, match=r"asks to wait 9999 s .*search\.longest_wait=60"):
        run(tmp_path, settings(), writer, sleep=lambda seconds: pytest.fail("slept"))
    assert len(writer.asks) == 1


def test_what_is_missing_is_asked_for_again(tmp_path: Path) -> None:
    writer = Scripted({"convsent": [ten("w3", "convsent")], "recent": [[*ten("w3", count=7), "w3 0."], ten("x")]})
    found = run(tmp_path, settings(rounds=1), writer)
    *_, first, second = writer.asks
    assert second.messages[: len(first.messages)] == first.messages
    answer, mend = second.messages[-2:]
    assert answer["role"] == "assistant" and "7 of these can be used. Left out: 1 duplicate." in mend["content"]
    assert "Write 3 more" in mend["content"]
    assert found.best and found.best.tasks["recent"].descriptions == (*ten("w3", count=7), *ten("x", count=3))
    assert found.counts["short_answers"] == 1
    assert found.counts["dropped"] == {"duplicate": 1, "beyond the number": 7}


def test_a_set_that_stays_incomplete_is_not_scored(tmp_path: Path) -> None:
    writer = Scripted({"convsent": [*["no list"] * 3, ten("w3", "convsent")], "recent": [ten("w3")]})
    trials = Trials()
    found = run(tmp_path, settings(rounds=2), writer, trials)
    assert [one.scores for one in found.rounds] == [(), (pytest.approx(0.3),)]
    assert [name for name, _ in trials.made] == ["round-0", "round-2"]
    silent = Scripted({task: ["I would rather not."] for task in POOL})
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="No complete set of descriptions was written .*9 answer that is no list"):
        run(tmp_path / "other", settings(), silent)
    assert len(silent.asks) == 9  # three attempts in each of three rounds


@pytest.mark.parametrize(
    ("answer", "kept", "dropped"),
    [
        ('["a", "b"]', ["a", "b"], {}),
        ('Here:\n```json\n["a",\n "b"]\n```\nAnd [TOPIC].', ["a", "b"], {}),
        ('{"descriptions": ["a", "b"]}', ["a", "b"], {}),
        ("1. a\n2) b\n", ["a", "b"], {}),
        ('- "a"\n* b\n', ["a", "b"], {}),
        ('["a", "A", " a "]', ["a"], {"duplicate": 2}),
        ('["known", "b"]', ["b"], {"duplicate": 1}),
        ('["a [TOPIC]", "b"]', ["b"], {"without the right slots": 1}),
        ('["a", 3, "", null]', ["a"], {"empty or no text": 3}),
        (json.dumps(["a", "b" * 21]), ["a"], {"longer than 20 characters": 1}),
        ('["a", "b", "c", "d"]', ["a", "b", "c"], {"beyond the number": 1}),
        ("[]", [], {"answer that is no list": 1}),
        ("Sorry.", [], {"answer that is no list": 1}),
        ('["a", "b', [], {"answer that is no list": 1}),
        ('"a"', [], {"answer that is no list": 1}),
    ],
)
def test_what_can_be_used_of_an_answer(answer: str, kept: list[str], dropped: dict[str, int]) -> None:
    assert usable(answer, (), wanted=3, longest=20, known=["known"]) == (kept, dropped)


def test_slots_must_all_be_there() -> None:
    answer = json.dumps(["[LABEL] of [TOPIC]", "[LABEL]", "[TOPIC]", "[LABEL] [TOPIC] [NAME]", "none"])
    assert usable(answer, ("LABEL", "TOPIC"), 10, 50) == (["[LABEL] of [TOPIC]"], {"without the right slots": 4})
    assert listed('1. A [LABEL] view of [TOPIC]\n2. "x"') == ["A [LABEL] view of [TOPIC]", "x"]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"rounds": 0}, "search.rounds is 0, but must be at least 1"),
        ({"count": 1}, "search.count is 1"),
        ({"minutes": 0}, "search.minutes is 0"),
        ({"seeds": []}, "search.seeds is"),
        ({"seeds": [1, 1]}, "none twice"),
        ({"weights": {"reliability": 0.0}}, "search.weights is"),
        ({"weights": {"a": -1.0, "b": 2.0}}, "search.weights is"),
        ({"prompts": {**PROMPTS, "ask": "{nmae}"}}, "prompts.ask has {nmae}, but only these"),
        ({"prompts": {**PROMPTS, "ask": "{"}}, "prompts.ask cannot be filled in"),
        ({"prompts": {**PROMPTS, "set": None}}, "prompts.set is missing"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(**changes)
    assert part in str(caught.value)


def test_tasks_that_nobody_has_described_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no task 'other'"):
        settings().check(BASE, {"other": []})
    with pytest.raises(UsageError, match=r"prompts\.meanings\.recent is missing"):
        settings(prompts={**PROMPTS, "meanings": {}}).check(BASE, {"recent": []})
    with pytest.raises(UsageError, match=r"tasks\.train is empty"):
        settings().check(BASE, {})
    with pytest.raises(UsageError, match=r"search\.weights names nothing, but convsent has only reliability"):
        run(tmp_path, settings(weights={"nothing": 1.0}), rising("w3"))
