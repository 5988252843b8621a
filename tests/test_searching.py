"""`editkit instructions`: a whole search on the bundled world, offline and against a server, and what it leaves."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from editkit import cli
from editkit.instructions import Instructions
from editkit.reporting import runs

KEY = "sk-very-secret"
FAST = ["debug=fast", "trainer.progress=false"]


def search(*words: str) -> int:
    return cli.main(["instructions", "search", *FAST, *words])


def test_a_search_ends_with_a_file_that_an_editor_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "search"
    assert search(f"run.dir={folder}", "search.rounds=2", "search.seeds=[0,1]") == 0
    said = capsys.readouterr().out
    assert "round 1: " in said and "round 2: " in said and "bare names" in said
    assert "without the right slots" in said and "standard deviation over seeds" in said
    assert f"editor.descriptions={folder}/descriptions.yaml" in said.replace("\n", "")

    found = Instructions(str(folder / "descriptions.yaml"))
    assert set(found.tasks) == set(Instructions().tasks)
    assert (
        found.tasks["zsre"] == Instructions().tasks["zsre"] and found.tasks["recent"] != Instructions().tasks["recent"]
    )
    assert all(len(task.descriptions) == 10 for task in found.tasks.values())
    best = found.history["best"]
    events = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    (trial, _) = (e for e in events if e["kind"] == "trial" and e["round"] == best["round"])
    assert trial["descriptions"]["recent"] == list(found.tasks["recent"].descriptions)
    assert set(best["tasks"]) == {"recent", "counterfact", "convsent"} and len(best["by_seed"]) == 2

    read = json.loads((folder / "inputs.json").read_text())["data"]["sha256"]
    assert len(read) == 3 and not any("test" in name for name in read)
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert not list((folder / "checkpoints").iterdir())
    assert [one.state for one in runs.find([folder])] == ["finished"]

    assert search(f"run.dir={folder}") == 2
    assert "holds a search" in capsys.readouterr().err
    assert cli.main(["instructions", "show", str(folder / "descriptions.yaml")]) == 0
    assert found.tasks["recent"].descriptions[0] in capsys.readouterr().out


def test_a_search_that_was_killed_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "search"
    assert search(f"run.dir={folder}", "search.rounds=1") == 0
    lines = (folder / "history.jsonl").read_text().splitlines(keepends=True)
    whole = yaml.safe_load((folder / "descriptions.yaml").read_text())
    (folder / "history.jsonl").write_text("".join(lines[:3]) + lines[3][:40])
    (folder / "descriptions.yaml").unlink()
    assert cli.main(["instructions", "search", f"run.resume={folder}"]) == 0
    again = (folder / "history.jsonl").read_text().splitlines(keepends=True)
    assert again[:3] == lines[:3] and len(again) == len(lines)
    found = yaml.safe_load((folder / "descriptions.yaml").read_text())
    assert found["tasks"] == whole["tasks"] and found["history"]["best"] == whole["history"]["best"]
    assert cli.main(["instructions", "search", f"run.resume={folder}", "search.rounds=2"]) == 2
    assert cli.main(["instructions", "search", f"run.resume={tmp_path}"]) == 2
    assert "no run's folder" in capsys.readouterr().err
    assert cli.main(["run", f"run.resume={folder}"]) == 2
    assert "begun by editkit instructions search" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("run: {}\n")
    assert cli.main(["instructions", "search", f"run.resume={tmp_path}"]) == 2
    assert "begun by editkit run: go on" in capsys.readouterr().err


class Handler(BaseHTTPRequestHandler):
    """Fails in each way once, then writes well."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        calls: list[str] = self.server.calls  # type: ignore[attr-defined]
        calls.append(self.headers["Authorization"])
        slots = " [LABEL] [TOPIC]" if "[TOPIC]" in asked else ""
        content = json.dumps([f"Call {len(calls)} says {n}{slots}." for n in range(10)])
        status, body = 200, json.dumps({"choices": [{"message": {"content": content}}]})
        if len(calls) in (1, 2, 3):
            status, body = [(429, "slow down"), (500, KEY), (200, "{not json")][len(calls) - 1]
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TEST_KEY", KEY)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.calls = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_search_against_a_server_leaves_no_key(
    tmp_path: Path, server: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    folder, url = tmp_path / "search", f"http://127.0.0.1:{server.server_address[1]}/v1"
    writer = ["writer=openai", "writer.model=any", f"writer.base_url={url}", "writer.key=TEST_KEY"]
    assert search(*writer, f"run.dir={folder}", "search.rounds=1") == 0
    assert server.calls == [f"Bearer {KEY}"] * 6
    said = capsys.readouterr().out
    assert "failed: 1 rate limit, 1 server error, 1 malformed reply" in said.replace("\n", " ")
    assert KEY not in said
    for path in folder.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()
