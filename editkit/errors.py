"""The one error a user's input can cause: told in one sentence, without a traceback, with exit code 2."""

from collections.abc import Sequence


class UsageError(Exception):
    """What is wrong with the input, as one sentence that names the value, the rule it breaks and the fix."""


def check_choice(key: str, value: str, allowed: Sequence[str]) -> None:
    """Raises UsageError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise UsageError(f"{key} is {value!r}, but must be one of {', '.join(allowed)}.")
