"""Where data files are: a folder, the bundled world, or a data set on the Hugging Face Hub."""

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from editkit.errors import UsageError


def find_file(root: str, patterns: Sequence[str], wanted: str) -> Path:
    """The file under ``root`` that fits the first pattern which any file fits.

    Args:
        root: a folder; ``bundled``, the generated world that comes with the package; or, where no such folder exists,
            the id of a Hub data set, ``owner/name``. Of that only files that fit are fetched, and what is in the Hub's
            cache is used without asking the network.
        patterns: globs relative to ``root``, in order of preference.
        wanted: what the file is for, in error messages.

    Raises:
        UsageError: there is no such folder or data set, no pattern fits, or one fits more than one file.
    """
    if root == "bundled":
        return _pick(Path(str(files("editkit.bundled"))) / "world", patterns, wanted)
    folder = Path(root).expanduser()
    if folder.is_dir():
        return _pick(folder, patterns, wanted)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", root):
        return _fetch(root, patterns, wanted)
    raise UsageError(
        f"tasks.root={root}: no such folder; name one that holds the task files, a Hub data set (owner/name) "
        "or the generated world (tasks.root=bundled)."
    )


def _pick(folder: Path, patterns: Sequence[str], wanted: str) -> Path:
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(str(path.relative_to(folder)) for path in found)
            raise UsageError(f"{wanted}: {pattern} must fit one file in {folder} but fits {names}: keep one of them.")
        if found:
            return found[0]
    raise UsageError(
        f"{wanted}: no file in {folder} fits {' or '.join(patterns)}; point tasks.root=… at the folder that holds it."
    )


def _fetch(repo: str, patterns: Sequence[str], wanted: str) -> Path:
    from huggingface_hub import snapshot_download  # half a second, and only for this

    # The Hub's globs know no `**`: their `*` crosses folders. What they let through too many, _pick leaves out.
    allowed = [pattern.replace("**/", "*") for pattern in patterns]
    for cached in (True, False):
        try:
            folder = snapshot_download(
                repo, repo_type="dataset", allow_patterns=allowed, local_files_only=cached, etag_timeout=5
            )
            return _pick(Path(folder), patterns, wanted)
        except (OSError, ValueError, UsageError) as error:
            # A cache without the file says nothing yet; the Hub's own answer is the last word.
            if isinstance(error, UsageError) and not cached:
                raise
            reason = str(error).strip().splitlines()[0]
    raise UsageError(
        f"tasks.root={repo}: no such folder, and no Hub data set of that name could be fetched ({reason}); check the "
        "name and the connection, or name a folder."
    )
