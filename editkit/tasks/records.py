"""A JSON file as records that know where they stand, so that a complaint names the file, the record and the key.

Read with the standard library only: inference of types, as tables want it, turns all-date answers into dates and fails
on the uneven nesting of editing data.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editkit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Node:
    """One value of a record, with its place; the record itself is the node without a key.

    Attributes:
        value: what stands in the file.
        file: the file it was read from.
        task: the task it belongs to.
        index: which record of the file it is in, from 0.
        counts: what was mended or left out so far in this file, by kind; shared by all its nodes.
        key: the way from the record to this value, e.g. ``locality.Forgetfulness[0].prompt``.
    """

    value: Any
    file: Path
    task: str
    index: int
    counts: Counter[str]
    key: str = ""

    @property
    def id(self) -> str:
        """Names the record for good, e.g. ``counterfact/test_cf.json#17``."""
        return f"{self.task}/{self.file.name}#{self.index}"

    def _at(self, key: str, value: Any) -> "Node":
        return Node(value, self.file, self.task, self.index, self.counts, key)

    def wrong(self, expected: str) -> UsageError:
        """The complaint that this value is not what it has to be; the caller raises it."""
        key = f", key '{self.key}'" if self.key else ""
        shown = json.dumps(self.value, ensure_ascii=False)
        shown = shown if len(shown) <= 80 else shown[:80] + "…"
        place = f"{self.file}, record {self.index}{key}"
        return UsageError(f"{place}: expected {expected}, found {shown}; correct the record or remove it.")

    def __getitem__(self, key: str) -> "Node":
        """The value under ``key`` of an object; raises UsageError where it is missing."""
        node = self.get(key)
        if node is None:
            raise self.wrong(f"an object with the key '{key}'")
        return node

    def get(self, key: str) -> "Node | None":
        """The value under ``key`` of an object, ``None`` where it is missing or null."""
        return self.fields().get(key)

    def fields(self) -> dict[str, "Node"]:
        """The values of an object by key, without those that are null."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        prefix = f"{self.key}." if self.key else ""
        return {key: self._at(prefix + key, value) for key, value in self.value.items() if value is not None}

    def items(self) -> Iterator["Node"]:
        """The values of a list."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        for position, value in enumerate(self.value):
            yield self._at(f"{self.key}[{position}]", value)

    def text(self, blank: bool = False) -> str:
        """A string without surrounding space, which is counted; an empty one only where ``blank`` allows it."""
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        text = self.value.strip()
        if not text and not blank:
            raise self.wrong("a string that is not empty")
        if text and text != self.value:
            self.counts["stray_spaces"] += 1
        return text

    def answers(self) -> tuple[str, ...]:
        """The aliases in a string, a list of strings or a list of alias lists: any of them is right.

        Blank and repeated ones are left out, blank ones counted; none may be left. Not the first *item* but the first
        *answer* is the canonical one: indexing blindly turns a plain string into its first letter.
        """
        if isinstance(self.value, str):
            found = [self.text(blank=True)]
        elif isinstance(self.value, list):
            found = []
            for item in self.items():
                aliases = item.items() if isinstance(item.value, list) else [item]
                found.extend(alias.text(blank=True) for alias in aliases)
        else:
            raise self.wrong("a string, a list of strings or a list of lists of strings")
        self.counts["blank_answers"] += found.count("")
        return tuple(dict.fromkeys(answer for answer in found if answer))


def read_records(file: Path, task: str, counts: Counter[str]) -> tuple[list[Node], str]:
    """The records of a JSON file that holds a list of objects, and the file's SHA-256 in hexadecimal.

    Raises:
        UsageError: the file cannot be read, is not JSON, is not a list of objects, or holds no record.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror}): check its permissions.") from error
    try:
        values = json.loads(content)
    except ValueError as error:  # both of bad JSON and of bytes that are not UTF-8
        raise UsageError(f"{file} is not JSON ({error}): replace it with a whole copy.") from error
    if not isinstance(values, list):
        raise UsageError(f"{file}: expected a list of records, found {type(values).__name__}: wrap them in [ ].")
    if not values:
        raise UsageError(f"{file} holds no record: a split needs at least one, so name another file.")
    records = [Node(value, file, task, index, counts) for index, value in enumerate(values)]
    return records, hashlib.sha256(content).hexdigest()
