"""The mean of a run's last checkpoints, or the average that EMA kept, as a run of its own.

What comes out holds weights alone, as an imported run does: it is exported, validated, asked and
begun with (``init_from``) like any other, and not resumed. One parameter is in memory at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_train.checkpoint import callback_state, dcp, manifest
from llm_train.checkpoint.store import CheckpointStore
from llm_train.checkpoint.tensors import averaged
from llm_train.errors import ConfigError
from llm_train.exchange.staging import staged, write_run
from llm_train.exchange.tokenizer_files import FILE as TOKENIZER
from llm_train.exchange.weights import read_alone
from llm_train.exchange.weights import stored as sizes_of

_TEXTS = ("config.yaml", TOKENIZER)


def last_checkpoints(run: Path, count: int) -> list[Path]:
    """The newest complete checkpoints of a run, the last one first.

    Raises:
        ConfigError: there are fewer.
    """
    folder = run / "checkpoints"
    store = CheckpointStore(folder if folder.is_dir() else run)
    found = [path for _, path in store.committed() if not manifest.problems(path)]
    if len(found) < count:
        raise ConfigError(
            f"--last={count}: {run} holds {len(found)} complete checkpoints; name a run with more "
            "(checkpoint.keep_last and keep_every say how many stay), or average fewer"
        )
    return found[:count]


def average_checkpoints(paths: Sequence[Path], out: Path) -> Path:
    """Writes the mean of the weights of ``paths``, whose first one gives the rest.

    Raises:
        ConfigError: ``out`` holds something.
        CheckpointError: a checkpoint cannot be read.
    """
    stored = [sizes_of(path) for path in paths]

    def mean(key: str) -> Tensor:
        pairs = zip(paths, stored, strict=True)
        parts = [read_alone(path / "state", averaged(key, s), s) for path, s in pairs]
        if not parts[0].is_floating_point():
            return parts[0]
        return torch.stack([part.double() for part in parts]).mean(0).to(parts[0].dtype)

    return _write(paths[0], stored[0], mean, out)


def take_ema(path: Path, out: Path) -> Path:
    """Writes the average of the weights that ``EMA``, or a callback of Lightning's, kept.

    Raises:
        ConfigError: it kept none, or ``out`` holds something.
        CheckpointError: the checkpoint cannot be read.
    """
    folder, stored = path / callback_state.FOLDER, sizes_of(path)
    ours = folder.is_dir()
    left = {} if ours else callback_state.left_weights(path)  # by EMAWeightAveraging
    kept = dcp.keys(folder) if ours else dict.fromkeys(left)
    if not kept:
        raise ConfigError(
            f"--ema: {path} holds no average; train with EMA in trainer.callbacks, or use --last"
        )
    names = {f"model.{key.partition('.')[2]}": key for key in kept}

    def average(key: str) -> Tensor:
        if key not in names:  # a buffer
            return read_alone(path / "state", key, stored)
        found = left[names[key]] if left else read_alone(folder, names[key], kept)
        return found.to(stored[key].properties.dtype)

    return _write(path, stored, average, out)


def _write(
    source: Path, stored: Mapping[str, Any], load: Callable[[str], Tensor], out: Path
) -> Path:
    like = {
        key: torch.empty(meta.size, dtype=meta.properties.dtype, device="meta")
        for key, meta in stored.items()
        if key.startswith("model.")
    }
    files = [name for name in _TEXTS if (source / name).is_file()]
    texts = {name: (source / name).read_text(encoding="utf-8") for name in files}
    with staged(out) as stage:
        written = write_run(stage, like, load, texts, manifest.read(source).metadata)
    return out / "checkpoints" / written.name
