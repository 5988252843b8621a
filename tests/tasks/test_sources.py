"""A Hub data set in the cache is used without the network; what is not there is told in one sentence."""

from pathlib import Path

import pytest

from editkit.errors import UsageError
from editkit.tasks.sources import find_file


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "datasets--owner--facts"
    snapshot = repo / "snapshots" / ("0" * 40)
    (snapshot / "benchmark" / "ZsRE").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    file = snapshot / "benchmark" / "ZsRE" / "ZsRE-test-all.json"
    file.write_text("[]")
    return file


def test_a_cached_data_set_is_found_offline(cached):
    assert find_file("owner/facts", ["**/absent.json", "**/ZsRE/ZsRE-test-all*.json"], "zsre/test") == cached


def test_a_file_the_cached_data_set_lacks_is_told(cached):
    with pytest.raises(UsageError, match=r"zsre/test.*absent\.json"):
        find_file("owner/facts", ["**/absent.json"], "zsre/test")


def test_a_folder_comes_before_a_data_set_of_its_name(cached, tmp_path, monkeypatch):
    (tmp_path / "owner" / "facts").mkdir(parents=True)
    (tmp_path / "owner" / "facts" / "x.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    assert find_file("owner/facts", ["**/x.json"], "x/test") == Path("owner/facts/x.json")
