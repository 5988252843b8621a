"""Descriptions of editing tasks from a YAML file, given to requests by seed."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from editkit.errors import UsageError
from editkit.requests import EditRequest

SLOT = re.compile(r"\[([A-Z]+)\]")
SLOTS = ("LABEL", "TOPIC")


@dataclass(frozen=True)
class Described:
    """A task's name and descriptions, the last of which is kept for tests; each carries all the slots."""

    name: str
    descriptions: tuple[str, ...]
    slots: tuple[str, ...] = ()


class Instructions:
    """Puts an instruction before a request's prompt: ``Task: …``, ``Description: …``, ``Input: …`` in three lines.

    The form of InstructEdit (https://arxiv.org/abs/2402.16123, section 3.2), with descriptions of one's own.

    Attributes:
        source: a set of descriptions that comes with the package, ``editkit``, or the path of a YAML file of that form
            (``conf/descriptions/editkit.yaml`` says it by example; keys it does not know, such as scores, are ignored).
        template: with the slots ``{task}`` and ``{description}``; the prompt follows it directly.
        tasks: what each task is called and how it is described.
        history: how a search found the set; empty if none did.

    Raises:
        UsageError: no such set or file, or one that is not of the form above.
    """

    def __init__(self, source: str = "editkit") -> None:
        self.source = source
        content = _load(source)
        self.template: str = content.get("template", "")
        if not isinstance(self.template, str) or not all(s in self.template for s in ("{task}", "{description}")):
            raise UsageError(f"descriptions {source}: 'template' must be text with {{task}} and {{description}} in it.")
        tasks = content.get("tasks")
        if not isinstance(tasks, dict) or not tasks:
            raise UsageError(f"descriptions {source}: 'tasks' must map each task's key to its name and descriptions.")
        self.tasks: Mapping[str, Described] = {key: _described(f"{source}, {key}", task) for key, task in tasks.items()}
        self.history: Mapping[str, Any] = content.get("history") or {}
        if not isinstance(self.history, dict):
            raise UsageError(f"descriptions {source}: 'history' must be as a search wrote it, or be left out.")

    def give(self, request: EditRequest, seed: int, which: str | int = "seen") -> EditRequest:
        """The request with its instruction.

        Args:
            request: the same record gets the same description each time.
            seed: of the draw.
            which: ``seen`` draws from the descriptions for training, ``unseen`` is the one kept, and a number that one,
                from 0. To ask what an instruction does there are wrong ones: ``none``; ``other``, another task's name
                and one of its descriptions ("positive" stands for a sentiment that the record does not have); and
                ``shuffled``, a seen one with its words in another order.

        Raises:
            UsageError: the request's task is not described, there is no such description, or the record has nothing for
                one of its slots.
        """
        if request.task not in self.tasks:
            known = ", ".join(self.tasks)
            raise UsageError(f"descriptions {self.source}: no task '{request.task}', only {known}; describe it there.")
        if which == "none":
            return replace(request, instruction="")
        task, filling = self.tasks[request.task], {"LABEL": request.label, "TOPIC": request.subject}
        draw = random.Random(f"{seed}/{request.id}/description")
        if which == "other":
            task = draw.choice([other for key, other in self.tasks.items() if key != request.task] or [task])
            filling["LABEL"] = request.label or "positive"
        *seen, unseen = task.descriptions
        if which in ("seen", "other"):
            description = draw.choice(seen)
        elif which == "shuffled":
            words = draw.choice(seen).split()
            description = " ".join(draw.sample(words, len(words)))
        elif which == "unseen":
            description = unseen
        elif str(which).isdigit() and int(which) < len(task.descriptions):
            description = task.descriptions[int(which)]
        else:
            raise UsageError(
                f"description {which!r}: seen, unseen, none, other, shuffled or a number from 0 to "
                f"{len(task.descriptions) - 1} is needed."
            )
        for slot in task.slots:
            if not filling[slot]:
                raise UsageError(f"descriptions {self.source}: record {request.id} has nothing to put for [{slot}].")
        # One pass each, so that a topic that looks like a slot stays as it is.
        description = SLOT.sub(lambda match: filling[match[1]], description)
        fields = {"{task}": task.name, "{description}": description}
        instruction = re.sub(r"\{task\}|\{description\}", lambda match: fields[match[0]], self.template)
        return replace(request, instruction=instruction)


def _load(source: str) -> dict[str, Any]:
    shipped = files("editkit.conf") / "descriptions"
    if source.endswith((".yaml", ".yml")):
        file = Path(source).expanduser()
    else:
        file = Path(str(shipped / f"{source}.yaml"))
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(sorted(Path(entry.name).stem for entry in shipped.iterdir()))
        raise UsageError(
            f"descriptions {source}: no such file; give the path of a YAML file, or a name known to editkit: {known}."
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"descriptions {source} cannot be read as YAML ({reason}): correct the file.") from error
    if not isinstance(content, dict):
        raise UsageError(f"descriptions {source}: a mapping with the keys 'template' and 'tasks' is needed.")
    return content


def _described(place: str, task: Any) -> Described:
    if not isinstance(task, dict) or not isinstance(task.get("name"), str) or not task["name"].strip():
        raise UsageError(f"descriptions {place}: a task needs a 'name'.")
    descriptions, slots = task.get("descriptions"), task.get("slots", [])
    if not isinstance(descriptions, list) or not all(isinstance(text, str) and text.strip() for text in descriptions):
        raise UsageError(f"descriptions {place}: 'descriptions' must be a list of sentences.")
    if len(descriptions) < 2:
        raise UsageError(f"descriptions {place}: at least two are needed, as the last is kept for tests.")
    texts = tuple(" ".join(text.split()) for text in descriptions)
    if repeated := [text for index, text in enumerate(texts) if text in texts[:index]]:
        raise UsageError(f"descriptions {place}: each must differ from the others, but '{repeated[0]}' stands twice.")
    if not isinstance(slots, list) or not set(slots) <= set(SLOTS):
        raise UsageError(f"descriptions {place}: 'slots' is {slots}, but may only list {' and '.join(SLOTS)}.")
    for text in texts:
        if set(SLOT.findall(text)) != set(slots):
            wanted = ", ".join(f"[{slot}]" for slot in slots) or "no slot"
            raise UsageError(f"descriptions {place}: '{text}' must have {wanted} in it, as 'slots' says.")
    return Described(task["name"].strip(), texts, tuple(slots))


def write(
    file: Path, base: Instructions, tasks: Mapping[str, Described], more: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Puts a set of descriptions into ``file`` in one step, once it was read back and found right.

    Args:
        file: a name that ends in ``.yaml``.
        base: whose template it has, and whose tasks as far as ``tasks`` has no others.
        tasks: described anew.
        more: further keys, which are ignored in reading.

    Raises:
        UsageError: a task is not of the form.
    """
    content: dict[str, Any] = {"template": base.template, "tasks": {}}
    for key, task in {**base.tasks, **tasks}.items():
        slots = {"slots": list(task.slots)} if task.slots else {}
        content["tasks"][key] = {"name": task.name, **slots, "descriptions": list(task.descriptions)}
    content |= more or {}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.stem}.part.yaml")
    part.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=10_000), encoding="utf-8")
    Instructions(str(part))
    part.replace(file)
