"""Pretraining of decoder-only language models with PyTorch Lightning, from one YAML file."""

__version__ = "0.1.0"
