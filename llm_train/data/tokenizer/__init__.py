"""Ways to get a tokenizer. Whatever the way, it is kept as one ``tokenizer.json``."""

from llm_train.discovery import load

load(__name__)
