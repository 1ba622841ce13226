"""Saving, finding and verifying checkpoints."""

from llm_train.checkpoint.manifest import FileRecord, Manifest
from llm_train.checkpoint.store import CheckpointStore, Found

__all__ = ["CheckpointStore", "FileRecord", "Found", "Manifest"]
