"""Pictures and tables of docs/theory, each from runs of our own."""
