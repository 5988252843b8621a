"""Who writes descriptions: a server that speaks OpenAI's protocol, a local model, or a recording."""

import http.client
import json
import math
import os
import random
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message as Headers
from email.utils import parsedate_to_datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import yaml

from editkit.errors import UsageError

Message = Mapping[str, str]
"""One turn of a conversation: ``role`` (system, user or assistant) and ``content``."""


@dataclass(frozen=True)
class Ask:
    """What a writer is asked: a conversation about one task, which has had ``number`` answers before."""

    task: str
    number: int
    messages: tuple[Message, ...]


class Writer(Protocol):
    def write(self, ask: Ask) -> str:
        """The answer.

        Raises:
            Trouble: there is none now, but asking again may help.
            Spent: there will be no more.
            UsageError: asking again cannot help.
        """
        ...


class Trouble(Exception):
    """A call that failed in a way that may pass.

    Attributes:
        kind: what is counted: ``timeout``, ``connection``, ``rate limit``, ``server error`` or ``malformed reply``.
        wait: seconds to wait before the next call, where the server said so.
    """

    def __init__(self, kind: str, detail: str, wait: float | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.wait = wait


class Spent(Exception):
    """The writer has no more answers."""


class Recorded:
    """Answers from a file, each task's in their order.

    Args:
        script: ``bundled``, a recording written by hand for the bundled tasks; a YAML file that maps a task to its
            answers, each a text or a list of descriptions; or JSON lines with ``task`` and ``answer``, such as the
            ``history.jsonl`` of a search (lines without an answer are passed over).

    Raises:
        UsageError: no such file, or one of another form.
    """

    def __init__(self, script: str) -> None:
        file = Path(str(files("editkit.bundled") / "writer.yaml")) if script == "bundled" else Path(script).expanduser()
        try:
            text = file.read_text(encoding="utf-8")
            self._answers = _from_lines(text) if file.suffix == ".jsonl" else _from_yaml(text)
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
            raise UsageError(
                f"writer.script is {script!r}, which is no recording ({reason}): name a YAML file of answers by task, "
                "or a search's history.jsonl."
            ) from error

    def write(self, ask: Ask) -> str:
        answers = self._answers.get(ask.task, [])
        if ask.number >= len(answers):
            raise Spent
        return answers[ask.number]


def _from_yaml(text: str) -> dict[str, list[str]]:
    content = yaml.safe_load(text)
    if not isinstance(content, dict) or not all(isinstance(answers, list) for answers in content.values()):
        raise ValueError("a mapping of tasks to lists of answers is needed")
    return {
        task: [answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False) for answer in answers]
        for task, answers in content.items()
    }


def _from_lines(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        entry = json.loads(line)
        if not isinstance(entry, dict):
            raise ValueError("each line must be a mapping")
        if "answer" in entry:
            found.setdefault(str(entry.get("task")), []).append(str(entry["answer"]))
    if not found:
        raise ValueError("no line has an answer")
    return found


class OpenAI:
    """A server that speaks OpenAI's chat completions over HTTP; one call an answer, redirections not followed.

    The key is read from the environment once, sent in the header alone, and blotted out of whatever the server says.

    Args:
        base_url: such as ``http://localhost:8000/v1``; calls go to ``/chat/completions`` below it.
        model: as the server calls it.
        key: name of the environment variable that holds the key; ``None`` for a server that wants none.
        timeout: seconds a call may take, from the first byte to the last.
        options: further fields of the request, such as ``temperature``.

    Raises:
        UsageError: the address is none, or the key is not there.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        key: str | None = "OPENAI_API_KEY",
        timeout: float = 120.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        address = urllib.parse.urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname or address.username is not None:
            raise UsageError(
                "writer.base_url must be an address such as http://localhost:8000/v1, without a name or password in it."
            )
        if not timeout > 0:
            raise UsageError(f"writer.timeout is {timeout}, but counts seconds: set it above 0.")
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._body = {"model": model, **(options or {})}
        self._key = _from_environment(key) if key is not None else ""
        self._timeout = timeout
        self._opener = urllib.request.build_opener(_StayHere)

    def write(self, ask: Ask) -> str:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        body = json.dumps({**self._body, "messages": [dict(message) for message in ask.messages]}).encode()
        reply = self._sent(urllib.request.Request(self._url, body, headers))
        try:
            answer = json.loads(reply)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            answer = None
        if not isinstance(answer, str) or not answer.strip():
            raise Trouble("malformed reply", f"no text at choices[0].message.content in {_short(reply)!r}")
        return answer.encode(errors="replace").decode()  # JSON can spell halves of characters, which no file can hold

    def _sent(self, request: urllib.request.Request) -> str:
        """What the server replies, if it does so with success."""
        deadline = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return self._read(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, deadline) from error
        except TimeoutError as error:
            raise Trouble("timeout", f"no answer within {self._timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise Trouble("timeout", f"no connection within {self._timeout:g} s") from error
            raise Trouble("connection", f"{self._url} cannot be reached ({reason})") from error

    def _read(self, response: Any, deadline: float) -> str:
        # A socket's timeout starts anew with every byte; a server that drips must not hold the search.
        read = b""
        while part := response.read1(65536):
            read += part
            if time.monotonic() > deadline:
                raise TimeoutError
        return self._blotted(read.decode(errors="replace"))

    def _blotted(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def _refusal(self, error: urllib.error.HTTPError, deadline: float) -> Exception:
        try:
            said = f"{error.code} {_short(self._read(error, deadline))}".rstrip()
        except (OSError, http.client.HTTPException):
            said = str(error.code)
        if error.code == 429:
            return Trouble("rate limit", said, _retry_after(error.headers))
        if error.code == 408 or error.code >= 500:
            return Trouble("server error", said, _retry_after(error.headers))
        return UsageError(f"The writer's server refused ({said}): check writer.base_url, writer.model and the key.")


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Takes a redirection for a refusal: followed, it would carry the key elsewhere."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def _from_environment(name: str) -> str:
    # Who puts the key itself here by mistake must not find it in a message or in the folder's config.yaml.
    if not re.fullmatch("[A-Z_][A-Z0-9_]*", name):
        raise UsageError(
            "writer.key must be the name of an environment variable, such as OPENAI_API_KEY, never the key itself."
        )
    key = os.environ.get(name, "").strip()
    if not key:
        raise UsageError(
            f"The environment variable {name} is not set: put the key there, or set writer.key=null for a server "
            "that wants none."
        )
    if not key.isascii() or not key.isprintable():
        raise UsageError(f"The environment variable {name} holds no key: plain letters and digits are needed.")
    return key


def _retry_after(headers: Headers) -> float | None:
    """Seconds from now, of a header that gives them or a date."""
    said = (headers.get("Retry-After") or "").strip()
    try:
        seconds = float(said)
    except ValueError:
        try:
            date = parsedate_to_datetime(said)
        except ValueError:
            return None
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:199] + "…"


class Local:
    """A causal language model of transformers, with its chat template if it has one.

    Args:
        path: a folder or a Hub id.
        tokens: new tokens at most.
        temperature: of the draw; 0 takes the likeliest token.
        dtype: torch's name of the weights' type, or ``auto``, as they are stored.
        device: such as ``cpu`` or ``cuda:1``; ``auto`` is a GPU if there is one.
        seed: of the draw; the same question gets the same answer.

    Raises:
        UsageError: there is no such model, or (on writing) a question does not fit into its context.
    """

    def __init__(
        self,
        path: str,
        tokens: int = 1000,
        temperature: float = 1.0,
        dtype: str = "auto",
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from editkit.hub import source
        from editkit.lm import quiet

        if tokens < 1 or temperature < 0:
            raise UsageError(
                f"writer.tokens is {tokens} and writer.temperature {temperature}: at least 1 and 0 are needed."
            )
        quiet()
        folder = source(path, "writer.path")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"No model can be loaded from {path!r} ({reason}): set writer.path to its folder."
            ) from error
        self._tokens = tokens
        self._temperature = temperature
        self._seed = seed

    def write(self, ask: Ask) -> str:
        import torch
        from transformers import GenerationConfig

        ids = self._ids(ask.messages)
        room = getattr(self._model.config, "max_position_embeddings", None)
        if room is not None and ids.shape[1] + self._tokens > room:
            raise UsageError(
                f"The question has {ids.shape[1]} tokens, which with writer.tokens={self._tokens} is more than the "
                f"model's {room}: lower writer.tokens, search.shown or search.examples."
            )
        config = GenerationConfig(
            max_new_tokens=self._tokens,
            do_sample=self._temperature > 0,
            temperature=self._temperature or None,
            eos_token_id=self._model.generation_config.eos_token_id,
            pad_token_id=self._tokenizer.eos_token_id,
        )
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(random.Random(f"{self._seed}/{ask.task}/{ask.number}").getrandbits(31))
            written = self._model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        return str(self._tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))

    def _ids(self, messages: Sequence[Message]) -> Any:
        if self._tokenizer.chat_template:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, tokenize=False
            )
            return self._tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(self._model.device)
        text = "\n\n".join(message["content"] for message in messages) + "\n\n"
        return self._tokenizer(text, return_tensors="pt").input_ids.to(self._model.device)
