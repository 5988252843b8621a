"""What an instructed editor is told before an edit: a template filled with a task's descriptions."""

from editkit.instructions.descriptions import Instructions

__all__ = ["Instructions"]
