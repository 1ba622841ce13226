"""Pretraining of decoder-only language models with PyTorch Lightning, from one YAML file.

The public interface, all of it. A run that trains:

    settings = llm_train.load_settings("configs/quickstart.yaml", options={"budget": "20 steps"})
    result = llm_train.build(settings).fit()

A checkpoint that computes:

    pretrained = llm_train.load_checkpoint(result.path)
    logits = pretrained.logits(tokens)

Nothing here ends the process: what a person did wrong is an ``LLMTrainError`` whose message has one
line for each problem. Importing this package costs nothing; each name imports what it needs.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm_train.errors import CheckpointError, ConfigError, DataError, LLMTrainError

if TYPE_CHECKING:
    from llm_train.check import notes, problems, table
    from llm_train.run.pretrained import Pretrained
    from llm_train.run.training import Result, Run, build, validate
    from llm_train.settings import Settings

__version__ = "0.2.0"
__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "LLMTrainError",
    "Pretrained",
    "Result",
    "Run",
    "Settings",
    "build",
    "load_checkpoint",
    "load_settings",
    "notes",
    "problems",
    "table",
    "validate",
]
# Imported when they are first asked for, because Lightning takes seconds.
_LATER = {
    **dict.fromkeys(("notes", "problems", "table"), "llm_train.check"),
    **dict.fromkeys(("Result", "Run", "build", "validate"), "llm_train.run.training"),
    "Pretrained": "llm_train.run.pretrained",
    "Settings": "llm_train.settings",
}


def load_settings(
    *files: str | Path,
    options: Mapping[str, object] | None = None,
    allow_import: Sequence[str] = (),
) -> Settings:
    """Reads a configuration and builds its parts; nothing is trained or written.

    Args:
        *files: YAML files, later ones laid over earlier ones.
        options: values by dotted key, which win over the files: ``{"trainer.devices": 2}``.
        allow_import: modules that a ``class_path`` may import besides our own, torch and lightning.

    Raises:
        ConfigError: anything wrong with a key or value; one line for each problem.
    """
    from llm_train.cli import load_settings as load

    words = [word for file in files for word in ("-c", str(file))]
    for key, value in (options or {}).items():
        words.append(f"--{key}={value if isinstance(value, str | Path) else json.dumps(value)}")
    return load(words, allow_import)


def load_checkpoint(
    where: str | Path, *, device: str = "auto", allow_import: Sequence[str] = ()
) -> Pretrained:
    """Builds the network of a checkpoint and reads its weights, whatever strategy wrote them.

    Args:
        where: a checkpoint directory, or a run directory for its newest checkpoint.
        device: auto, cpu, cuda, cuda:1 and so on.
        allow_import: as for ``load_settings``.

    Raises:
        CheckpointError: no complete checkpoint, or one that does not fit its configuration.
        ConfigError: a device that cannot be used.
    """
    from llm_train.cli import load_settings as load
    from llm_train.cli.spelling import expanded
    from llm_train.runtime.lean_imports import import_lightning

    import_lightning()
    from llm_train.run import pretrained

    def read(words: Sequence[str]) -> Settings:
        return load(words, allow_import)

    return pretrained.load_checkpoint(expanded(str(where)), read, device)


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"llm_train has no {name}; it has {', '.join(__all__)}")
    from llm_train.runtime.lean_imports import import_lightning

    import_lightning()
    return getattr(importlib.import_module(_LATER[name]), name)
