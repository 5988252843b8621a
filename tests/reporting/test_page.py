"""The page for a browser: everything logged is in it, nothing is averaged that must not be, and data stays text."""

import csv
import gzip
import itertools
import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from editkit import cli, status
from editkit.analysis.figures import STYLES
from editkit.errors import UsageError
from editkit.reporting import page, pairs, runs, table
from editkit.reporting.results import COLUMNS

INPUTS = {
    "protocols": "1",
    "model": {"name": "toy", "fingerprint": "aa"},
    "data": {"sha256": {"recent/test": "b" * 64}},
}
FINISHED = {
    "state": "finished",
    "why": "",
    "started": "2026-01-01T00:00:00+00:00",
    "ended": "2026-01-01T00:10:00+00:00",
}


def result(editor: str, mean: float, metric: str = "reliability", regime: str = "single", seed: int = 0) -> list[Any]:
    return [editor, "recent", regime, "teacher_forced", metric, mean, mean - 0.012345, mean + 0.054321, 100, seed]


def record(editor: str, request: str, score: float, **others: Any) -> dict[str, Any]:
    base = {"editor": editor, "request": request, "task": "recent", "protocol": "teacher_forced"}
    said = {"measure": "reliability", "asked": "same", "category": "", "prompt": f"Prompt of {request}"}
    answers = {"answer": "yes", "base": "no", "edited": "yes", "scores": {"": score}, "regime": "single"}
    return base | said | answers | others


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run's folder as a run would: whatever is None is left out."""

    def make(
        name: str,
        results: list[list[Any]] | None = None,
        records: list[dict[str, Any]] | None = None,
        curves: list[dict[str, Any]] | None = None,
        inputs: dict[str, Any] | None = INPUTS,
        status: dict[str, Any] | None = FINISHED,
        **config: Any,
    ) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        for file, content in (("inputs.json", inputs), ("status.json", status)):
            if content is not None:
                (folder / file).write_text(json.dumps(content))
        if results is not None:
            with (folder / "results.csv").open("w", newline="") as csv_file:
                csv.writer(csv_file).writerows([COLUMNS, *results])
        if records is not None:
            text = "".join(json.dumps(one) + "\n" for one in records)
            (folder / "records.jsonl.gz").write_bytes(gzip.compress(text.encode(), 1))
        if curves is not None:
            (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in curves))
        return tmp_path / "runs"

    return make


def made(folder: Path) -> tuple[str, dict[str, Any]]:
    """The page, and the data in it."""
    text = page.html(runs.find([folder]))
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return text, json.loads(data)


def test_the_page_holds_every_number_of_the_results(write: Any) -> None:
    rows = [
        result(e, m, metric) for (e, m), metric in itertools.product([("mend", 0.9), ("ft_l", 0.4)], table.MEASURES)
    ]
    write("a", rows)
    _, data = made(write("b", [result("mend", 0.123456, seed=1)]))
    names = data["words"]
    found = [[*(names[index] for index in row[1:6]), *row[6:]] for row in data["rows"]]
    assert found == [*rows, result("mend", 0.123456, seed=1)]


def test_values_that_are_not_finite_are_left_blank(write: Any) -> None:
    _, data = made(write("a", [[*result("mend", 0.5)[:5], "nan", "-inf", "inf", 3, 0]]))
    assert data["rows"][0][6:9] == [None, None, None]


def test_data_never_becomes_markup(write: Any) -> None:
    bad = "</script><script>alert('\"1\"')</script><!-- \u2028 & <b>"
    records = [record("mend", bad, 1.0, prompt=bad, edited=bad, category=bad)]
    text, data = made(write("a", [result("mend", 1.0)], records, status=FINISHED | {"why": bad}))
    assert text.count("<script") == text.count("</script") == 2
    assert "<!--" not in text and "\u2028" not in text and "<b>" not in text
    question = [data["texts"][index] for index in data["questions"][0]]
    assert (question[0], question[5], data["runs"][0]["why"]) == (bad, bad, bad)


def test_the_script_makes_no_markup_of_text_and_asks_for_nothing(write: Any) -> None:
    text, _ = made(write("a", [result("mend", 1.0)]))
    for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "import("):
        assert dangerous not in text
    addresses = set(re.findall(r"https?://[^\s\"']*", text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "a namespace's name, which nothing loads"


@pytest.mark.parametrize(
    ("part", "value", "differs"),
    [
        ("protocols", "2", "protocols 2"),
        ("model", {"name": "toy", "fingerprint": "cc"}, "model toy cc"),
        ("data", {"sha256": {"recent/test": "d" * 64}}, "data "),
    ],
)
def test_runs_of_other_protocols_models_or_data_are_kept_apart(
    write: Any, capsys: pytest.CaptureFixture[str], part: str, value: Any, differs: str
) -> None:
    records = [record("mend", f"#{index}", index % 2) for index in range(8)]
    others = [record("ft_l", f"#{index}", 0) for index in range(8)]
    write("a", [result("mend", 0.8)], records)
    folder = write(
        "b", [result("mend", 0.6, seed=1), result("ft_l", 0.2, seed=1)], records + others, inputs=INPUTS | {part: value}
    )
    _, data = made(folder)
    assert [run["group"] for run in data["runs"]] == [0, 1]
    assert data["groups"][1]["name"].startswith(differs) and data["groups"][0]["name"] != data["groups"][1]["name"]
    assert [group["kind"] for group in data["groups"]] == [kind(INPUTS, part), kind(INPUTS | {part: value}, part)]
    assert {pair[0] for pair in data["pairs"]} == {1}, "mend of one group was compared with ft_l of another"
    assert cli.main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "80.0" in printed and "60.0" in printed and "70.0" not in printed and differs in printed


def kind(inputs: dict[str, Any], part: str) -> dict[str, str]:
    return {
        "protocols": {"protocols": inputs["protocols"]},
        "model": {"model": "toy " + inputs["model"]["fingerprint"]},
        "data": {"recent/test": inputs["data"]["sha256"]["recent/test"][:12]},
    }[part]


def test_runs_of_one_kind_are_one_group(write: Any) -> None:
    write("a", [result("mend", 0.8)])
    _, data = made(write("b", [result("mend", 0.6, seed=1)]))
    assert data["groups"] == [{"name": "", "kind": {}}]


def test_a_failed_run_is_shown_with_its_reason(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write("good", [result("mend", 0.8)])
    failed = FINISHED | {"state": "failed", "why": "OutOfMemoryError: [2 GiB] too much"}
    folder = write("bad", status=failed, inputs=None, run={"editor": "ke"}, baselines={"ft_l": {}})
    _, data = made(folder)
    shown = {run["name"]: run for run in data["runs"]}
    assert shown["bad"]["state"] == "failed" and shown["bad"]["why"] == failed["why"] and shown["bad"]["group"] is None
    assert shown["bad"]["editors"] == ["ke", "ft_l"]
    assert cli.main(["report", str(folder)]) == 0
    assert "failed: bad  OutOfMemoryError: [2 GiB] too much" in capsys.readouterr().out


def test_a_run_whose_process_is_gone_was_killed(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write("a", [result("mend", 0.8)], status=FINISHED | {"state": "running", "pid": 7, "host": "node1"})
    assert cli.main(["report", str(folder)]) == 0
    assert "killed: a  process 7 on node1 is gone" in capsys.readouterr().out


def test_runs_that_all_failed_have_a_page(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write("bad", status=FINISHED | {"state": "failed", "why": "no"})
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "failed: bad  no",
        f"Page for a browser: {folder}/report/index.html",
    ]


def test_the_page_lies_where_it_is_wanted(write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write("a", [result("mend", 0.8)])
    assert cli.main(["report", str(folder), "--page", str(tmp_path / "new" / "p.html"), "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    assert (tmp_path / "new" / "p.html").read_text().startswith("<!doctype html>") and not (folder / "report").exists()
    assert "Page" not in out and err.endswith("p.html\n")
    assert cli.main(["report", str(folder), "--page", "/dev/null/p.html"]) == 2
    assert "name another place for the page with --page" in capsys.readouterr().err


def test_a_page_already_there_is_no_run(write: Any) -> None:
    folder = write("a", [result("mend", 0.8)])
    for _ in range(2):
        page.write(runs.find([folder, folder / "a"]), folder / "report" / "index.html")
    assert [one.name for one in runs.find([folder, folder / "a"])] == ["a"]


def test_the_paired_bootstrap_is_the_slow_loop() -> None:
    generator, seed, resamples = random.Random(0), 3, 40

    def scores() -> dict[str, dict[str, list[float]]]:
        return {
            f"#{edit}": {c: [generator.random() for _ in range(2)] for c in "xyz" if (edit + ord(c)) % 3}
            for edit in range(9)
        }

    first, second = scores(), scores()
    (found,) = pairs.differences({"portability": {"a": first, "b": second}}, resamples, seed)
    draws, slow = np.random.default_rng(seed), []
    for _ in range(resamples):
        counts = draws.multinomial(len(first), [1 / len(first)] * len(first))
        picked = [edit for edit, count in zip(first, counts, strict=True) for _ in range(count)]
        slow.append(overall(first, picked) - overall(second, picked))
    assert (found.low, found.high) == pytest.approx(np.percentile(slow, [2.5, 97.5]), abs=1e-12)
    assert found.mean == pytest.approx(overall(first, list(first)) - overall(second, list(second)), abs=1e-12)
    assert found.edits == 9


def overall(scores: dict[str, dict[str, list[float]]], edits: list[str]) -> float:
    """Means of a category's questions, then over edits, then over categories."""
    categories: dict[str, list[float]] = {}
    for edit in edits:
        for category, values in scores[edit].items():
            categories.setdefault(category, []).append(sum(values) / len(values))
    return sum(sum(values) / len(values) for values in categories.values()) / len(categories)


def test_only_edits_of_both_editors_are_compared() -> None:
    first = {"#1": {"": [1.0]}, "#2": {"": [0.0]}}
    second = {"#2": {"": [0.0]}, "#3": {"": [0.0]}}
    (found,) = pairs.differences({"reliability": {"a": first, "b": second}})
    assert (found.mean, found.edits, found.p) == (0.0, 1, 1.0)
    assert pairs.differences({"reliability": {"a": first, "b": {"#3": {"": [0.0]}}}}) == []


@pytest.mark.parametrize("edits", [1, 4, 200])
def test_p_is_small_only_where_edits_are_many(edits: int) -> None:
    one, zero = ({f"#{index}": {"": [value]} for index in range(edits)} for value in (1.0, 0.0))
    (found,) = pairs.differences({"reliability": {"a": one, "b": zero}})
    assert (found.mean, found.p) == (1.0, 2.0 ** (1 - edits))


def test_p_is_seldom_small_where_there_is_no_difference() -> None:
    generator = np.random.default_rng(0)

    def drawn() -> dict[str, dict[str, list[float]]]:
        return {f"#{index}": {"": [float(value)]} for index, value in enumerate(generator.random(60) < 0.7)}

    found = pairs.differences({str(trial): {"a": drawn(), "b": drawn()} for trial in range(200)}, 500)
    assert 1 <= sum(one.p < 0.05 for one in found) <= 22  # of 200 at 5 %: outside this once in 1,000 draws
    assert all(one.p_holm >= one.p for one in found) and sum(one.p_holm < 0.05 for one in found) <= 1


def test_holm_is_the_textbook_example() -> None:
    assert pairs.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert pairs.holm([]) == []


def test_seeds_are_joined_before_editors_are_compared(write: Any) -> None:
    for seed in (0, 1):
        records = [record("mend", f"#{index}", seed) for index in range(4)]
        records += [record("ft_l", f"#{index}", 0) for index in range(4)]
        folder = write(str(seed), [result("mend", 0.8, seed=seed), result("ft_l", 0.8, seed=seed)], records, seed=seed)
    _, data = made(folder)
    begins = [0, "", "recent", "single", "teacher_forced"]
    assert [pair[:9] for pair in data["pairs"]] == [
        [*begins, measure, "mend", "ft_l", 0.5] for measure in ("reliability", "reliability_bare")
    ]


def test_editors_that_read_instructions_are_compared_with_and_without_them(write: Any) -> None:
    records = [record("instructedit", "#1", score, asked=asked) for asked, score in (("instructed", 1), ("bare", 0))]
    rows = [result(editor, 0.5) for editor in ("instructedit", "mend")]
    _, data = made(write("a", rows, [*records, record("mend", "#1", 0.25)]))
    assert [(pair[5], pair[8]) for pair in data["pairs"]] == [("reliability", 0.75), ("reliability_bare", -0.25)]


def test_of_a_sequence_the_end_is_compared(write: Any) -> None:
    regimes = ("sequential 9", "sequential 10")
    records = [record(editor, "#1", 1, regime=regime) for editor in ("mend", "ft_l") for regime in regimes]
    _, data = made(write("a", [result(e, 0.5, regime=r) for e in ("mend", "ft_l") for r in regimes], records))
    assert {pair[3] for pair in data["pairs"]} == {"sequential 10"}


def test_editors_of_other_settings_are_told_apart_as_in_the_table(write: Any) -> None:
    for name, rank in (("a", 1), ("b", 2)):
        folder = write(name, [result("mend", 0.8)], editor={"rank": rank}, trainer={"steps": rank})
    found = runs.find([folder])
    _, data = made(folder)
    told = {(data["words"][row[1]], data["runs"][row[0]]["condition"]) for row in data["rows"]}
    assert told == {(score.editor, score.condition) for score in runs.scores(found)}
    assert told == {("mend rank=1", "trainer.steps=1"), ("mend rank=2", "trainer.steps=2")}


def test_curves_are_thinned_to_means_of_neighbours(write: Any) -> None:
    curves = [{"editor": "mend", "step": step, "train/loss": float(step)} for step in range(1, 601)]
    curves[10:10] = [{"editor": "mend", "step": 10, "valid/loss": None, "valid/kl": 2.0}]
    _, data = made(write("a", [result("mend", 0.8)], curves=curves))
    train, valid = data["curves"]
    assert train["steps"] == list(range(2, 601, 2)) and train["values"]["loss"] == [s - 0.5 for s in train["steps"]]
    assert valid["split"] == "valid" and valid["values"] == {"loss": [None], "kl": [2.0]}


def test_a_half_written_point_is_left_out_and_damaged_records_are_named(write: Any) -> None:
    folder = write("a", [result("mend", 0.8)], curves=[{"editor": "mend", "step": 1, "train/loss": 1.0}])
    with (folder / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"editor": "mend", "st')
    assert made(folder)[1]["curves"][0]["steps"] == [1]
    (folder / "a" / "records.jsonl.gz").write_bytes(gzip.compress(b"{}" * 99)[:-9])
    with pytest.raises(UsageError, match="records.jsonl.gz' cannot be read"):
        made(folder)


def test_single_edits_hold_all_that_was_said(write: Any) -> None:
    asked = [record("mend", "#1", 1.0, edited="Åland"), record("mend", "#1", 0.25, measure="locality", category="Near")]
    _, data = made(write("a", [result("mend", 0.8)], [*asked, record("mend", "#2", 0.0)]))
    ((run, editor, task, regime, kept, total, flat),) = data["cells"]
    text = data["texts"]
    assert (run, text[editor], text[task], text[regime], kept, total, len(flat)) == (
        0,
        "mend",
        "recent",
        "single",
        2,
        2,
        9,
    )
    assert [text[index] for index in data["questions"][flat[3]]] == [
        *("#1", "teacher_forced", "locality", "same", "Near", "Prompt of #1", "yes", "no")
    ]
    assert text[flat[1]] == "Åland" and data["scores"][flat[5]] == {"": 0.25}


def test_too_many_edits_leave_the_same_ones_of_every_run(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_QUESTIONS", 200)
    for name in ("a", "b"):
        folder = write(name, [result("mend", 0.8)], [record("mend", f"#{index}", 1.0) for index in range(500)])
    _, data = made(folder)
    kept = [{data["questions"][question][0] for question in cell[6][::3]} for cell in data["cells"]]
    assert kept[0] == kept[1] and 20 < len(kept[0]) <= 100
    assert [cell[4:6] for cell in data["cells"]] == [[len(kept[0]), 500]] * 2


def test_two_hundred_runs_weigh_little_and_are_quick(write: Any) -> None:
    generator, words = random.Random(0), [f"word{index}" for index in range(300)]
    editors = [f"editor{index}" for index in range(10)]
    prompts = [" ".join(generator.choices(words, k=20)) for _ in range(500)]
    for number in range(200):
        editor, seed = editors[number % 10], number // 10
        said = [" ".join(generator.choices(words, k=3)) for _ in prompts]
        records = [
            record(editor, f"#{index}", 1.0, prompt=prompt, edited=answer)
            for index, (prompt, answer) in enumerate(zip(prompts, said, strict=True))
        ]
        curves = [{"editor": editor, "step": step, "train/loss": generator.random()} for step in range(500)]
        folder = write(
            str(number), [result(editor, 0.5, m, seed=seed) for m in table.MEASURES], records, curves, seed=seed
        )
    began = time.perf_counter()
    text, data = made(folder)
    assert time.perf_counter() - began < 20
    assert len(text.encode()) < 25e6
    assert sum(cell[4] for cell in data["cells"]) == 100_000, "edits were left out that would have fitted"


def test_watching_ends_when_nothing_runs(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write("a", [result("mend", 0.8)], status=FINISHED | {"state": "running"})
    target, seen = folder / "report" / "index.html", []

    def say(line: str) -> None:
        seen.append(line)
        if target.exists():
            assert 'http-equiv="refresh"' in target.read_text()
        (folder / "a" / "status.json").write_text(json.dumps(FINISHED))

    with (folder / "a" / "run.log").open("a") as log:
        status.claim(folder / "a", log)
        page.watch([folder], target, say, pause=0.01)
    assert seen == ["1 running", "1 finished"]
    assert 'http-equiv="refresh"' not in target.read_text()


def test_ctrl_c_ends_watching_with_success(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write("a", [result("mend", 0.8)], status=FINISHED | {"state": "running"})

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    assert cli.main(["report", "--watch", str(folder)]) == 0
    assert (folder / "report" / "index.html").exists()


def test_colours_are_those_of_the_figures_in_their_order(write: Any) -> None:
    text, _ = made(write("a", [result("mend", 1.0)]))
    assert re.findall(r"\.s\d \{ --c: light-dark\((#\w+),", text) == [colour for colour, _ in STYLES]


def test_figures_with_a_caption_are_shown_and_others_are_not(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write("one", [result("mend", 0.9)])
    for name, caption in {"map": 'Maps & "more" <script>', "bare": None}.items():
        (folder / f"{name}.png").write_bytes(name.encode())
        if caption:
            (folder / f"{name}.txt").write_text(caption)
    assert cli.main(["report", str(folder), "--format", "csv"]) == 0
    text = (folder / "report" / "index.html").read_text()
    assert text.count("<img ") == 1
    assert "data:image/png;base64,bWFw" in text
    assert "<figcaption>Maps &amp; &quot;more&quot; &lt;script&gt;</figcaption>" in text
