"""Ways to get a tokenizer. Whatever the way, it is kept as one ``tokenizer.json``."""
