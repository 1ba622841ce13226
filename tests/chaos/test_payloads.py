"""Files made by an enemy: refused in one line, in bounded time and memory.

The enemy knows the formats and signs what he wrote: checksums are right. A pickle that is loaded
anywhere would leave a mark; so would a module that is imported.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from llm_train.checkpoint import manifest
from llm_train.checkpoint.dcp import Reader
from llm_train.checkpoint.manifest import CheckpointManifest
from llm_train.testing.command import run
from llm_train.testing.configs import tiny, write
from tests.chaos.harm import require_no_harm
from tests.chaos.trials import first

pytestmark = pytest.mark.chaos


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.mark, "w")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    config = write(folder / "c.yaml", tiny(folder / "run", steps=4))
    assert run("fit", "-c", str(config)).code == 0
    return folder / "run"


# --- checkpoints ----------------------------------------------------------------------------------

FILES = [
    *("state/.metadata", "state/__0_0.distcp", "state/optimizer_scalars.json"),
    *("rank-00000.pt", "callbacks.pt", "config.yaml", "manifest.json"),
]
VERBS: dict[str, list[str]] = {
    "resume": ["fit", "--budget=6 steps", "--resume"],
    "validate": ["validate", "--checkpoint"],
}


def as_pickle(evil: Evil) -> bytes:
    return pickle.dumps(evil)


def as_torch_file(evil: Evil) -> bytes:
    torch.save(evil, buffer := io.BytesIO())
    return buffer.getvalue()


def as_array(evil: Evil) -> bytes:
    np.save(buffer := io.BytesIO(), np.array([evil], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def big_pickle(evil: Evil) -> bytes:
    """Asks for 2^63 bytes before anything else."""
    return b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + pickle.dumps(evil)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("form", first(1, [as_pickle, as_torch_file, as_array, big_pickle]))
@pytest.mark.parametrize("verb", first(1, VERBS))
def test_code_in_a_file_of_a_checkpoint(
    verb: str, form: Callable[[Evil], bytes], name: str, original: Path, mark: Path
) -> None:
    run_dir = mark.with_name("run")
    shutil.copytree(original, run_dir)
    checkpoint = run_dir / "checkpoints" / "step-00000004"
    (checkpoint / name).write_bytes(form(Evil(mark)))
    if name != manifest.NAME:
        sign(checkpoint)
    config = write(mark.with_name("c.yaml"), tiny(run_dir, steps=4))
    command, *flags = VERBS[verb]
    outcome = run(command, "-c", str(config), *flags, str(checkpoint))
    read = verb == "resume" or name in ("state/.metadata", "state/__0_0.distcp", "manifest.json")
    require_no_harm(outcome, refused=read)


def sign(checkpoint: Path, **changes: Any) -> None:
    """Writes a manifest that fits the files as they are now."""
    about = manifest.read(checkpoint)
    (checkpoint / manifest.NAME).unlink()
    files = manifest.record_files(checkpoint)
    metadata = {**about.metadata, **changes}
    manifest.write(
        checkpoint, CheckpointManifest(sequence=about.sequence, metadata=metadata, files=files)
    )


def swollen(original: Path, checkpoint: Path, key: str, numbers: int) -> None:
    """Makes the index of a checkpoint claim that a tensor has so many numbers."""
    index = Reader(original / "checkpoints" / checkpoint.name / "state").read_metadata()
    stored = index.state_dict_metadata[key]
    assert isinstance(stored, TensorStorageMetadata)
    stored.size = torch.Size([numbers])
    stored.chunks[0].sizes = stored.size
    (checkpoint / "state" / ".metadata").write_bytes(pickle.dumps(index))
    sign(checkpoint)


@pytest.mark.parametrize("numbers", first(0, [1 << 20, 1 << 29, 1 << 45]))
@pytest.mark.parametrize("key", ["model.norm.weight", "optimizer.norm.weight.step"])
def test_tensors_that_claim_to_be_larger(
    key: str, numbers: int, original: Path, mark: Path
) -> None:
    run_dir = mark.with_name("run")
    shutil.copytree(original, run_dir)
    swollen(original, run_dir / "checkpoints" / "step-00000004", key, numbers)
    config = write(mark.with_name("c.yaml"), tiny(run_dir, steps=6))
    require_no_harm(run("fit", "-c", str(config), "--resume", "auto"))


def test_a_manifest_that_claims_another_run(original: Path, mark: Path) -> None:
    for changes in ({"step": 1 << 70}, {"world_size": 1 << 40}, {"data": {"consumed": -1}}):
        run_dir = mark.with_name("run")
        shutil.copytree(original, run_dir)
        sign(run_dir / "checkpoints" / "step-00000004", **changes)
        config = write(mark.with_name("c.yaml"), tiny(run_dir, steps=6))
        require_no_harm(run("fit", "-c", str(config), "--resume", "auto"))
        shutil.rmtree(run_dir)


# --- a run's other files --------------------------------------------------------------------------

BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
TEXTS = {
    "nothing": "",
    "zeros": "\0" * 10_000,
    "brackets": "[" * 200_000,
    "bomb": BOMB,
    "digits": "9" * 1_000_000,
    "types": json.dumps({"pid": "x", "step": [1], "host": {}, "event": 7, "train/loss": "1e999"}),
}


@pytest.mark.parametrize("text", first(0, TEXTS))
@pytest.mark.parametrize(
    "name", [".lease-00000001", "metrics.jsonl", "config.yaml", "derived.json", "wandb_id.txt"]
)
def test_texts_of_a_run_folder(name: str, text: str, original: Path, mark: Path) -> None:
    run_dir = mark.with_name("run")
    shutil.copytree(original, run_dir)
    path = run_dir / name
    path.write_text(TEXTS[text] + "\n")
    if name.startswith(".lease"):
        os.utime(path, (0, 0))  # nobody has shown life since
    config = write(mark.with_name("c.yaml"), tiny(run_dir, steps=6))
    require_no_harm(run("report", str(run_dir)), refused=False)
    require_no_harm(run("fit", "-c", str(config), "--resume", "auto"), refused=False)
