"""The one error a user's input can cause: told in one sentence, without a traceback, with exit code 2."""


class UsageError(Exception):
    """What is wrong with the input, as one sentence that names the value, the rule it breaks and the fix."""
