"""Where a model is: a folder, the bundled one, or the Hugging Face Hub, which is asked only for what is not here."""

import os
import socket
from importlib.resources import files
from pathlib import Path

from editkit.errors import UsageError

WANTED = ["*.json", "*.safetensors", "*.model", "*.txt"]


def source(path: str, key: str = "model.path") -> str:
    """A folder transformers can read: ``path`` itself, the bundled model, or the Hub's copy of ``path``.

    Raises:
        UsageError: there is none, said of the setting ``key``.
    """
    folder = here(path, key)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        return snapshot_download(path, allow_patterns=WANTED)
    except GatedRepoError as error:
        raise UsageError(
            f"{key} is {path!r}, which its owner gives only to those who ask: accept its terms on "
            f"https://huggingface.co/{path}, then run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"{key} is {path!r}, but the Hub has no such model, or shows it to its owner only: check the name, or run "
            "`hf auth login`."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{key} is {path!r}, which could not be fetched whole ({reason}): try again.") from error


def here(path: str, key: str = "model.path") -> str | None:
    """The folder of ``path`` on this machine; None if the Hub, which can be reached, has to be asked.

    Raises:
        UsageError: it is not here, and cannot be fetched either.
    """
    if path == "bundled":
        return str(files("editkit.bundled") / "model")
    if Path(path).is_dir():
        return path
    if path.count("/") > 1 or path.startswith((".", "/", "~")):
        raise UsageError(f"{key} is {path!r}, but there is no such folder: give a model's folder or its Hub id.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(path, allow_patterns=WANTED, local_files_only=True)
    except HFValidationError as error:
        raise UsageError(f"{key} is {path!r}, which is neither a folder nor a Hub id: give one of them.") from error
    except LocalEntryNotFoundError:
        if not reachable():
            raise UsageError(
                f"{key} is {path!r}, which is neither a folder nor in the local Hub cache, and the Hub cannot be "
                "reached: give a folder, or go online once."
            ) from None
        return None


def reachable(seconds: float = 2.0) -> bool:
    """Whether the Hugging Face Hub answers; never asks when ``HF_HUB_OFFLINE`` is set."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return False
    try:
        socket.create_connection(("huggingface.co", 443), seconds).close()
    except OSError:
        return False
    return True
