"""Bodies of text that ``prepare`` can read."""
