"""Task files on disk become edit requests: read, mixed and split."""

from editkit.tasks.mix import Mix, Splits, Task

__all__ = ["Mix", "Splits", "Task"]
