"""A tiny run as YAML, for tests that go through the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_train.runtime import yaml12

VOCAB = 61


def tiny(run_dir: Path, *, steps: int = 6, **overrides: Any) -> dict[str, Any]:
    """Two layers, 16 features, random tokens; seconds on one core.

    Args:
        run_dir: where the run writes.
        steps: optimizer steps.
        **overrides: dotted keys with ``__`` for dots, for instance ``batch__tokens=256``.
    """
    config: dict[str, Any] = {
        "seed": 7,
        "budget": f"{steps} steps",
        "batch": {"tokens": 128, "sequence": 16, "per_device": 2},
        "checkpoint": {"every": "2 steps", "keep_last": 100},
        "model": {
            "network": {
                "class_path": "Transformer",
                "init_args": {
                    "vocab_size": VOCAB,
                    "layers": 2,
                    "width": 16,
                    "heads": 2,
                    "max_sequence": 16,
                    "dropout": 0.1,
                },
            },
            "optimizer": {"class_path": "AdamW", "init_args": {"learning_rate": 0.01}},
            "schedule": {"class_path": "WarmupCosine", "init_args": {"warmup": "2 steps"}},
        },
        "data": {
            "source": {
                "class_path": "RandomTokens",
                "init_args": {
                    "vocabulary": VOCAB,
                    "length": 4000,
                    "held_out_length": 300,
                    "seed": 3,
                },
            }
        },
        "trainer": {
            "accelerator": "cpu",
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            "default_root_dir": str(run_dir),
        },
    }
    for key, value in overrides.items():
        place = config
        *path, last = key.split("__")
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return config


def write(path: Path, config: dict[str, Any]) -> Path:
    """Writes ``config`` as YAML."""
    path.write_text(yaml12.dump(config))
    return path
