"""The page in a real browser: filters, sorting, single edits, the keyboard; no error, nothing asked of the network."""

import csv
import gzip
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from editkit.reporting import page, runs
from editkit.reporting.results import COLUMNS

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to look at the page with")

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
SCORES = {"mend": 0.9, "ft_l": 0.4, "instructedit": 0.95}
BAD = "<script>alert('\"1\"')</script><b>bold</b>"


@dataclass
class Opened:
    """The page as a reader has it before them, what its console said, and all it asked for."""

    tab: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def texts(self, selector: str) -> list[str]:
        return self.tab.locator(selector).all_inner_texts()

    def filter(self, name: str, *values: str) -> None:
        box = self.tab.locator(f"#filters details:has(summary:text('{name}:'))")
        box.locator("summary").click()
        for value in values:
            box.locator(f"input[value='{value}']").check()
        box.locator("summary").click()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    for seed in (0, 1):
        write(folder / str(seed), seed)
    failed = {"state": "failed", "why": f"ValueError: {BAD}"}
    (folder / "bad").mkdir()
    (folder / "bad" / "status.json").write_text(json.dumps(failed))
    page.write(runs.find([folder]), folder / "report" / "index.html")
    return folder / "report" / "index.html"


def write(folder: Path, seed: int) -> None:
    folder.mkdir()
    rows, records = [], []
    for editor, score in SCORES.items():
        for task in ("recent", "zsre"):
            about = {"editor": editor, "task": task, "protocol": "teacher_forced", "category": "", "regime": "single"}
            for regime, share in (("single", 1.0), ("sequential 1", 0.9), ("sequential 10", 0.5)):
                for metric in ("reliability", "locality"):
                    mean = score * share
                    rows.append(
                        [editor, task, regime, "teacher_forced", metric, mean, mean - 0.1, mean + 0.05, 9, seed]
                    )
            rows.append([editor, task, "single", "cost", "seconds_per_edit", 1 - score, 0.01, 0.9, 9, seed])
            for index in range(40):
                said = {
                    "prompt": f"{BAD} {index}",
                    "answer": "target",
                    "base": "before",
                    "edited": f"{editor} says {index}",
                }
                for measure in ("reliability", "locality"):
                    scores = {"": float(index < 40 * score)}
                    about |= {"measure": measure, "asked": "same", "request": f"{task}#{index}", "scores": scores}
                    records.append(about | said)
    with (folder / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    curves = [{"editor": "mend", "step": s, f"{k}/loss": 9.0 / s} for s in range(1, 50) for k in ("train", "valid")]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in curves))
    text = "".join(json.dumps(one) + "\n" for one in records)
    (folder / "records.jsonl.gz").write_bytes(gzip.compress(text.encode(), 1))
    (folder / "status.json").write_text(json.dumps({"state": "finished", "why": ""}))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as api:
        started = api.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, written: Path) -> Iterator[Opened]:
    tab = browser.new_page(viewport={"width": 1366, "height": 768})
    found = Opened(tab)
    tab.on("console", lambda message: found.said.append(message.text))
    tab.on("pageerror", lambda error: found.said.append(str(error)))
    tab.on("dialog", lambda dialog: found.said.append("a script from the data ran"))
    tab.on("request", lambda request: found.asked.append(request.url))
    tab.goto(written.as_uri())
    yield found
    tab.close()
    assert found.said == []
    assert set(found.asked) == {written.as_uri()}


FIRST = "#leaderboard table >> nth=0"


def test_every_part_is_drawn(opened: Opened) -> None:
    for part in ("leaderboard", "differences", "sequences", "training", "cost", "edits", "runs"):
        assert opened.tab.locator(f"#{part} :is(table, figure)").count() > 0, part
    assert "undefined" not in opened.tab.inner_text("body") and "NaN" not in opened.tab.inner_text("body")
    assert opened.tab.locator("[d*=NaN], [d*=undefined], [transform*=NaN]").count() == 0
    assert opened.tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert all(table.locator("caption").count() for table in opened.tab.locator("table").all())


def test_the_best_is_marked_and_a_head_sorts(opened: Opened) -> None:
    best = opened.texts(f"{FIRST} >> td.best")
    assert len(best) == 4 and all(text.startswith("95.0 ★") and "sd 0.0" in text for text in best)
    heads = f"{FIRST} >> tbody >> nth=0 >> th[scope=row]"
    assert opened.texts(heads) == ["mend", "ft_l", "instructedit"]
    for expected in (["instructedit", "mend", "ft_l"], ["ft_l", "mend", "instructedit"]):
        opened.tab.locator(f"{FIRST} >> th button:text('reliability')").click()
        assert opened.texts(heads) == expected
    assert opened.tab.locator(f"{FIRST} >> th[aria-sort=ascending]").count() == 1


def test_filters_are_kept_over_a_reload(opened: Opened) -> None:
    opened.filter("task", "zsre")
    opened.filter("editor", "mend", "ft_l")
    for _ in range(2):
        assert set(opened.texts("#leaderboard tbody th[scope=row]")) == {"mend", "ft_l"}
        assert [text.split()[0] for text in set(opened.texts("#leaderboard .task"))] == ["zsre"]
        assert opened.texts("#differences tbody th") == ["mend − ft_l"]
        assert opened.tab.locator("#edits caption").inner_text() == "1 to 25 of 160 edits"
        opened.tab.reload()


def test_a_filter_can_be_set_by_the_keyboard(opened: Opened) -> None:
    opened.tab.locator("#filters summary >> nth=0").focus()
    for key in ("Enter", "Tab", "Space", "Escape"):
        opened.tab.keyboard.press(key)
    assert opened.tab.locator("#filters summary >> nth=0").inner_text() == "editor: mend"
    assert opened.tab.locator("#filters details[open]").count() == 0


def test_single_edits_are_searched_and_opened(opened: Opened) -> None:
    opened.tab.fill("#search", "FT_L says 39")
    opened.tab.locator("#edits caption:text-is('1 to 4 of 4 edits')").wait_for()
    assert f"{BAD} 39" in opened.texts("#edits tbody tr >> nth=0")[0], "a prompt's markup must be read as text"
    opened.tab.locator("#edits .open >> nth=0").press("Enter")
    shown = opened.tab.inner_text("#one")
    for words in (f"{BAD} 39", "target", "before", "ft_l says 39", "reliability", "locality"):
        assert words in shown
    opened.tab.locator("#one button:text('instructedit')").first.click()
    assert "instructedit says 39" in opened.tab.inner_text("#one")
    opened.tab.keyboard.press("Escape")
    assert not opened.tab.locator("#one").is_visible()


def test_edits_that_do_not_hold_are_found(opened: Opened) -> None:
    opened.tab.select_option("#only", "missed")
    assert opened.tab.locator("#edits caption").inner_text().endswith(" of 120 edits")  # 4 + 24 + 2 of 40, 4 times
    opened.tab.click("#edits button:text('Next')")
    assert opened.tab.locator("#edits caption").inner_text().startswith("26 to 50")


def test_a_failed_run_says_why(opened: Opened) -> None:
    assert f"ValueError: {BAD}" in opened.tab.locator("#runs tr:has(.state-failed)").inner_text()


def test_light_and_dark(opened: Opened) -> None:
    def paper() -> str:
        return opened.tab.evaluate("getComputedStyle(document.body).backgroundColor")

    opened.tab.emulate_media(color_scheme="light")
    light = paper()
    opened.tab.emulate_media(color_scheme="dark")
    dark = paper()
    assert light != dark
    opened.tab.click("#theme")
    assert paper() == light
    opened.tab.reload()
    assert paper() == light, "the choice is lost by a reload"
