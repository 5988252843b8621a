"""editkit: a configuration-driven framework for editing knowledge in language models."""

__version__ = "0.1.0"
