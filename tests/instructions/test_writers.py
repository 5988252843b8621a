"""Writers: a real server on the loopback that behaves and misbehaves, a small local model, and recordings."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from editkit.errors import UsageError
from editkit.instructions.writers import Ask, Local, OpenAI, Recorded, Spent, Trouble

ASK = Ask("recent", 0, ({"role": "system", "content": "Write."}, {"role": "user", "content": "Ten, please."}))
KEY = "sk-very-secret"


class Server(ThreadingHTTPServer):
    """Speaks chat completions; ``replies`` are (status, headers, text), of which the last is repeated for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[tuple[int, dict[str, str], str]] = []
        self.seen: list[tuple[str, dict[str, str], Any]] = []
        self.release = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, dict(self.headers), body))
        status, headers, text = self.server.replies[min(len(self.server.seen), len(self.server.replies)) - 1]
        if status == 0:  # hangs
            self.server.release.wait(10)
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if headers.get("X-Drip"):
            while not self.server.release.wait(0.05):
                self.wfile.write(b" ")
            return
        self.wfile.write(text.encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TEST_KEY", KEY)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.release.set()
        running.shutdown()
        thread.join()


def says(text: object) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def writer(server: Server, **settings: Any) -> OpenAI:
    return OpenAI(**{"base_url": server.url, "model": "small", "key": "TEST_KEY", "timeout": 5.0, **settings})


def test_a_server_is_asked_in_its_protocol(server: Server) -> None:
    server.replies = [(200, {}, says("[]"))]
    assert writer(server, options={"temperature": 0.5}).write(ASK) == "[]"
    ((path, headers, body),) = server.seen
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert body == {"model": "small", "temperature": 0.5, "messages": [dict(message) for message in ASK.messages]}
    server.replies = [(200, {}, says("a\ud800b"))]
    assert writer(server, key=None).write(ASK) == "a?b"
    assert "Authorization" not in server.seen[1][1]


@pytest.mark.parametrize(
    ("status", "headers", "text", "kind", "wait"),
    [
        (429, {"Retry-After": "7"}, "slow down", "rate limit", 7.0),
        (429, {"Retry-After": "soon"}, "", "rate limit", None),
        (429, {"Retry-After": "nan"}, "", "rate limit", None),
        (429, {"Retry-After": format_datetime(datetime.now(UTC) - timedelta(hours=1))}, "", "rate limit", 0.0),
        (500, {}, "oh", "server error", None),
        (503, {"Retry-After": "2"}, "", "server error", 2.0),
        (200, {}, "<html>", "malformed reply", None),
        (200, {}, "{}", "malformed reply", None),
        (200, {}, says(None), "malformed reply", None),
        (200, {}, says(" "), "malformed reply", None),
        (200, {}, '{"choices": []}', "malformed reply", None),
        (200, {"Content-Length": "999"}, says("[]")[:-5], "malformed reply", None),
    ],
)
def test_a_failure_that_may_pass_is_told_by_kind(
    server: Server, status: int, headers: dict[str, str], text: str, kind: str, wait: float | None
) -> None:
    server.replies = [(status, headers, text)]
    with pytest.raises(Trouble) as caught:
        writer(server).write(ASK)
    assert (caught.value.kind, caught.value.wait) == (kind, wait)
    assert len(server.seen) == 1


@pytest.mark.parametrize("reply", [(0, {}, ""), (200, {"X-Drip": "yes"}, "")], ids=["hangs", "drips"])
def test_a_call_ends_at_its_timeout(server: Server, reply: tuple[int, dict[str, str], str]) -> None:
    server.replies = [reply]
    with pytest.raises(Trouble, match=r"0\.3 s") as caught:
        writer(server, timeout=0.3).write(ASK)
    assert caught.value.kind == "timeout"


def test_a_server_that_is_not_there() -> None:
    with Server() as gone:
        pass
    with pytest.raises(Trouble, match="cannot be reached") as caught:
        OpenAI(gone.url, "small", key=None).write(ASK)
    assert caught.value.kind == "connection"


def test_a_refusal_is_one_sentence_that_does_not_repeat_the_key(server: Server) -> None:
    server.replies = [(401, {}, f"wrong key {KEY}")]
    with pytest.raises(UsageError, match=r"401 wrong key \*\*\*\): check writer.base_url") as caught:
        writer(server).write(ASK)
    assert KEY not in str(caught.value)


def test_a_redirection_does_not_get_the_key(server: Server) -> None:
    server.replies = [(302, {"Location": f"{server.url}/elsewhere"}, ""), (200, {}, says("[]"))]
    with pytest.raises(UsageError, match="refused"):
        writer(server).write(ASK)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("value", "name", "expected"),
    [
        (None, "TEST_KEY", "TEST_KEY is not set"),
        ("  ", "TEST_KEY", "TEST_KEY is not set"),
        ("sk\x07zz", "TEST_KEY", "holds no key"),
        ("sk-1", "gsk_abc123", "never the key itself"),
    ],
)
def test_a_key_that_is_not_there(monkeypatch: pytest.MonkeyPatch, value: str | None, name: str, expected: str) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TEST_KEY", value)
    with pytest.raises(UsageError, match=expected) as caught:
        OpenAI("http://localhost/v1", "small", key=name)
    assert "abc123" not in str(caught.value) and "zz" not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc", "http://me:word@host/v1", ""])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UsageError, match="must be an address") as caught:
        OpenAI(url, "small", key=None)
    assert "word@" not in str(caught.value)


def test_recordings_answer_each_task_in_order(tmp_path: Path) -> None:
    plain, lines = tmp_path / "own.yaml", tmp_path / "history.jsonl"
    plain.write_text('recent: [[One, "Two"], plain text]\n')
    lines.write_text('{"kind": "trial"}\n{"task": "recent", "answer": "[1]"}\n{"task": "zsre", "answer": "[2]"}\n')
    own, again = Recorded(str(plain)), Recorded(str(lines))
    assert [own.write(Ask("recent", number, ())) for number in (0, 1, 0)] == ['["One", "Two"]', "plain text"] + [
        '["One", "Two"]'
    ]
    assert again.write(Ask("zsre", 0, ())) == "[2]"
    for ask in (Ask("recent", 2, ()), Ask("other", 0, ())):
        with pytest.raises(Spent):
            own.write(ask)


@pytest.mark.parametrize(
    ("name", "text"), [("a.yaml", "a: ["), ("a.yaml", "- 1"), ("a.jsonl", "{"), ("a.jsonl", "[]"), ("a.jsonl", "{}\n")]
)
def test_what_is_no_recording_is_one_sentence(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match="is no recording") as caught:
        Recorded(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="No such file"):
        Recorded(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"])
def test_a_local_model_writes_the_same_again(make_lm: Callable[..., Any], tmp_path: Path, template: str | None) -> None:
    lm = make_lm("llama", torch.float32)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    local = Local(str(tmp_path), tokens=20, device="cpu")
    local._tokenizer.chat_template = template
    state = torch.random.get_rng_state()
    first = local.write(ASK)
    assert local.write(ASK) == first != local.write(Ask("recent", 1, ASK.messages))
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(UsageError, match=r"lower writer\.tokens"):
        Local(str(tmp_path), tokens=5000, device="cpu").write(ASK)


def test_a_local_model_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"writer\.path is '\./nowhere'"):
        Local("./nowhere")
