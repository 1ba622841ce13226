"""Weights from and to other people's files: Hugging Face folders, and checkpoints of other runs."""
