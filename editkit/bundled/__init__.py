"""The bundled default: a generated world in the four tasks' formats, and a small language model that knows it."""
