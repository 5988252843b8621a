"""What a run measures beside scores."""

from pathlib import Path

import pytest
import torch

from editkit.run import Peak, cost

CPU = torch.device("cpu")


def test_peak_memory_is_of_what_came_after() -> None:
    earlier = Peak(CPU)
    large = torch.ones(50_000_000)  # 190 MiB
    held = earlier.mib()
    del large
    later = Peak(CPU)
    assert held is not None and held - 150 > (later.mib() or held)
    assert [row.metric for row in cost([1.0], later.mib(), 1, "mend", "zsre", "single", 0)][1:] == ["peak_memory_mib"]


def test_peak_memory_is_left_out_where_it_cannot_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, text: str) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refused)
    assert [row.metric for row in cost([1.0], Peak(CPU).mib(), 1, "mend", "zsre", "single", 0)] == ["seconds_per_edit"]
