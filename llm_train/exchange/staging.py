"""Folders that have their names when they are complete, and runs that hold weights alone."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from llm_train.checkpoint import callback_state, dcp
from llm_train.checkpoint.store import CheckpointStore
from llm_train.errors import ConfigError


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """An empty folder alongside ``out``, which gets its name when the block ends well.

    Raises:
        ConfigError: ``out`` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; name a folder that does not exist yet")
    out = out.resolve()  # a link
    if out == Path.cwd():  # whose name another folder would get
        raise ConfigError(f"{out} is the present folder; name one that does not exist yet")
    stage = out.with_name(f"{out.name}.partial")
    if stage.exists():  # whose it is cannot be known
        raise ConfigError(f"{stage} is in the way, of another export or a killed one; remove it")
    try:
        stage.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be made ({error.strerror}); name another place") from error
    try:
        yield stage
        stage.replace(out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def write_run(
    stage: Path,
    like: Mapping[str, Tensor],
    load: Callable[[str], Tensor],
    texts: Mapping[str, str],
    metadata: Mapping[str, Any],
) -> Path:
    """Writes a run that holds weights alone and cannot be resumed; returns its checkpoint.

    Args:
        stage: an empty folder.
        like: shapes and types of the weights, as tensors on the meta device.
        load: gives each.
        texts: further files of the run and of its checkpoint.
        metadata: of the checkpoint.
    """
    store = CheckpointStore(stage / "checkpoints")
    inside = store.stage(metadata["step"])
    dcp.write_each(inside / "state", like, load)
    callback_state.write(inside, {"callbacks": {}})
    for place in (stage, inside):
        for name, text in texts.items():
            (place / name).write_text(text, encoding="utf-8")
    return store.commit(metadata["step"], {**metadata, "strategy": "import"})
