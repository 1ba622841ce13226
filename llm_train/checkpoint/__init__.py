"""Saving, finding and verifying checkpoints."""
