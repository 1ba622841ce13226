"""Bodies of text that ``prepare`` can read."""

from llm_train.discovery import load

load(__name__)
