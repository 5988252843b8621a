"""Vectors computed once: by key in memory up to a bound and, if a folder is named, on disk for later runs.

On disk a model's vectors lie in files that are written whole under a name of their own and never changed, so that runs
share a folder without locks and a killed one leaves nothing half. Every entry carries a checksum and is checked when it
is read: what is damaged is as if it were not there.
"""

import hashlib
import os
import secrets
import zlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editkit.errors import UsageError

Key = tuple[int, ...]
"""What a vector is of, as integers: token ids and whatever else it depends on."""
FILE_BYTES = 64 * 2**20  # vectors wait in memory until a file of this size is full


class Cache:
    """Where vectors are kept, and how many.

    Args:
        memory_gb: of each table (hidden states under one block; base outputs) on the model's device, at most; the
            oldest make room for new ones. A batch always fits.
        folder: where they are kept for later runs and shared with others; null: nowhere.
        disk_gb: of that folder at most; the files longest unused go first.
    """

    def __init__(self, memory_gb: float = 4.0, folder: str | None = None, disk_gb: float = 50.0) -> None:
        if min(memory_gb, disk_gb) < 0:
            raise UsageError(f"cache.memory_gb is {memory_gb} and cache.disk_gb {disk_gb}, but neither can be below 0.")
        self.memory_gb, self.folder, self.disk_gb = memory_gb, folder, disk_gb

    def table(self, *names: str) -> "Table":
        """A table of its own for what ``names`` say: the model, then what of it."""
        shelf = None
        if self.folder is not None:
            root = Path(self.folder).expanduser()
            shelf = Shelf(root, root.joinpath(*names), int(self.disk_gb * 2**30))
        return Table(int(self.memory_gb * 2**30), shelf)


class Table:
    """Rows of vectors by key on one device: a ring that doubles until it is at its limit, then overwrites its oldest.

    Attributes:
        states: all rows.
        where: each key's first row.
    """

    def __init__(self, limit: int, shelf: "Shelf | None" = None) -> None:
        self.states = torch.empty(0)
        self.where: dict[Key, int] = {}
        self._limit = limit
        self._shelf = shelf
        self._head = 0
        self._oldest_first: deque[tuple[int, int, Key]] = deque()

    def missing(self, keys: Sequence[Key], device: torch.device) -> list[Key]:
        """Which of ``keys`` are neither here nor on the shelf; those that are there are brought to ``device``."""
        gone = list(dict.fromkeys(key for key in keys if key not in self.where))
        if self._shelf is None or not gone:
            return gone
        found = self._shelf.take(gone)
        if found:
            self._put(list(found), [states.to(device, non_blocking=True) for states in found.values()])
        return [key for key in gone if key not in found]

    def add(self, keys: Sequence[Key], states: Sequence[Float[Tensor, "rows d"]]) -> None:
        """Keep ``states`` under ``keys``, none of which is here."""
        if self._shelf is not None:
            self._shelf.put(keys, states)
        self._put(keys, states)

    def reserve(self, rows: int, like: Float[Tensor, "rows d"]) -> None:
        """Make the table so large that no two batches of ``rows`` rows drive each other out."""
        width = like.shape[-1] * like.element_size()
        most = max(3 * rows, self._limit // width)
        have = len(self.states)
        size = min(most, max(3 * rows, 2 * have, 1024))
        if size > have and (have < 3 * rows or (self._head + rows > have and have < most)):
            table = like.new_empty(size, like.shape[-1])
            if have:
                table[:have] = self.states
            self.states = table

    def flush(self) -> None:
        """Write what waits for its file to be full."""
        if self._shelf is not None:
            self._shelf.flush()

    def _put(self, keys: Sequence[Key], states: Sequence[Tensor]) -> None:
        new = torch.cat(list(states))
        self.reserve(len(new), new)
        if self._head + len(new) > len(self.states):
            while self._oldest_first and self._oldest_first[0][0] >= self._head:
                del self.where[self._oldest_first.popleft()[2]]
            self._head = 0
        end = self._head + len(new)
        while self._oldest_first and self._oldest_first[0][0] < end and self._oldest_first[0][1] > self._head:
            del self.where[self._oldest_first.popleft()[2]]
        self.states[self._head : end] = new
        for key, rows in zip(keys, states, strict=True):
            self.where[key] = self._head
            self._oldest_first.append((self._head, self._head + len(rows), key))
            self._head += len(rows)


class Shelf:
    """Vectors by key in a folder of files: see the module. ``root`` is what is bounded to ``limit`` bytes."""

    def __init__(self, root: Path, folder: Path, limit: int) -> None:
        self._root, self._folder, self._limit = root, folder, limit
        self._where: dict[bytes, tuple[str, int, int, int]] = {}
        self._open: dict[str, Any] = {}
        self._seen_at = -1
        self._waiting: dict[bytes, Tensor] = {}
        self._waiting_bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"Cannot write to '{folder}' ({error.strerror}): set cache.folder elsewhere.") from error

    def take(self, keys: Sequence[Key]) -> dict[Key, Float[Tensor, "rows d"]]:
        """Those of ``keys`` that are here and whole."""
        self._look()
        found = {}
        for key in keys:
            name = digest(key)
            if name in self._waiting:
                found[key] = self._waiting[name]
            elif name in self._where:
                file, begin, end, checksum = self._where[name]
                states = self._read(file, begin, end)
                if states is not None and checked(states) == checksum:
                    found[key] = states
                else:
                    del self._where[name]
        return found

    def put(self, keys: Sequence[Key], states: Sequence[Float[Tensor, "rows d"]]) -> None:
        for key, rows in zip(keys, states, strict=True):
            self._waiting[digest(key)] = rows.detach().cpu().clone()
            self._waiting_bytes += rows.numel() * rows.element_size()
        if self._waiting_bytes >= FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one file, and make room for it; a full disk only means that less is kept."""
        if not self._waiting:
            return
        lengths = torch.tensor([len(rows) for rows in self._waiting.values()])
        ends = lengths.cumsum(0)
        sums = torch.tensor([checked(rows) for rows in self._waiting.values()])
        names = torch.frombuffer(bytearray(b"".join(self._waiting)), dtype=torch.int64).view(-1, 2)
        index = torch.cat([names, torch.stack([ends - lengths, ends, sums], 1)], 1)
        file = self._folder / f"{secrets.token_hex(8)}.safetensors"
        part = file.with_suffix(f".{os.getpid()}.part")
        try:
            tensors = {"index": index, "states": torch.cat(list(self._waiting.values()))}
            save_file(tensors, part, {"index": str(checked(index))})
            part.replace(file)
        except (SafetensorError, OSError):
            part.unlink(missing_ok=True)
        self._waiting, self._waiting_bytes = {}, 0
        self._make_room()

    def _look(self) -> None:
        """Read the indexes of files that have come since."""
        try:
            changed = self._folder.stat().st_mtime_ns
        except OSError:
            return
        if changed == self._seen_at:
            return
        self._seen_at = changed
        for file in self._folder.glob("*.safetensors"):
            if file.name in self._open:
                continue
            try:
                opened = safe_open(file, "pt")
                index = opened.get_tensor("index")
                if str(checked(index)) != (opened.metadata() or {}).get("index"):
                    raise SafetensorError("another checksum")
            except (SafetensorError, OSError):
                opened, index = None, torch.empty(0, 5, dtype=torch.int64)
            self._open[file.name] = opened
            names = [name.numpy().tobytes() for name in index[:, :2]]
            for name, (begin, end, checksum) in zip(names, index[:, 2:].tolist(), strict=True):
                self._where[name] = (file.name, begin, end, checksum)

    def _read(self, file: str, begin: int, end: int) -> Tensor | None:
        try:
            os.utime(self._folder / file)  # the file longest unused goes first
        except OSError:
            pass  # gone from the folder, but still open here
        try:
            return self._open[file].get_slice("states")[begin:end]
        except (SafetensorError, OSError, IndexError):
            return None

    def _make_room(self) -> None:
        files = []
        for file in self._root.rglob("*.safetensors"):
            try:
                about = file.stat()
            except OSError:  # another run has made room
                continue
            files.append((about.st_mtime_ns, about.st_size, file))
        total = sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if total <= self._limit:
                break
            file.unlink(missing_ok=True)
            total -= size


def digest(key: Key) -> bytes:
    """16 bytes that stand for ``key``."""
    return hashlib.blake2b(torch.tensor(key, dtype=torch.int64).numpy().tobytes(), digest_size=16).digest()


def checked(tensor: Tensor) -> int:
    """The checksum of a tensor's bytes (CRC-32)."""
    return zlib.crc32(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
