"""Fixtures for all tests. Nothing in the tests reaches out to the network."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data that EDITKIT_DATA names; tests that need it are skipped where it is unset."""
    folder = os.environ.get("EDITKIT_DATA")
    if not folder:
        pytest.skip("EDITKIT_DATA is unset: set it to a folder of KnowEdit's files to run the tests on real data")
    return Path(folder)
