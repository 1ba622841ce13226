"""Saving, finding and verifying checkpoints."""

from llm_train.checkpoint.manifest import CheckpointManifest, FileRecord
from llm_train.checkpoint.store import CheckpointStore, Found

__all__ = ["CheckpointManifest", "CheckpointStore", "FileRecord", "Found"]
