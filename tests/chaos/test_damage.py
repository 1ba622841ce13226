"""Damaged files of checkpoints: found before anything is used, and the older checkpoint is taken.

An alteration is made to the newest of three checkpoints and taken back. The choice of what to
resume from is the product's own; the last alteration of each trial is met by a real resume, whose
losses must be those of the unbroken run.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from llm_train.checkpoint import manifest
from llm_train.checkpoint.store import CheckpointStore, Found
from llm_train.errors import CheckpointError
from llm_train.testing.checkpoints import tensors_of
from llm_train.testing.command import run
from llm_train.testing.configs import losses, tiny, write
from llm_train.testing.fork_server import ForkServer
from tests.chaos.trials import trials

ALTERATIONS, CLEAN = 100, 10
KINDS = {"flip": 60, "cut": 10, "grow": 5, "zero": 5, "drop": 8, "swap": 6, "stale": 6}


@pytest.fixture(scope="module")
def original(
    fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A run of six steps, saved at 2, 4 and 6, by one process or by two; made once."""

    @cache
    def made(strategy: str) -> Path:
        folder = tmp_path_factory.mktemp(strategy)
        ranks = 2 if strategy == "fsdp" else 0
        command = ("fit", "-c", str(config_of(folder / "run", strategy)))
        assert set(fork_server.run(*command, ranks=ranks, log=folder / "log.txt")) == {0}
        return folder / "run"

    return made


def config_of(run_dir: Path, strategy: str) -> Path:
    # Masks of dropout depend on the ranks, and a trial resumes in one process.
    dropout = {"model__network__init_args__dropout": 0.0}
    return write(run_dir.with_suffix(".yaml"), tiny(run_dir, trainer__strategy=strategy, **dropout))


@pytest.mark.parametrize(
    ("strategy", "seed"),
    [
        *trials("damage-single", 50, "single", short=1),
        *trials("damage-fsdp", 50, "fsdp", short=1),
    ],
)
def test_damage(
    strategy: str,
    seed: int,
    original: Callable[[str], Path],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    draw = random.Random(f"damage-{strategy}-{seed}")
    run_dir = tmp_path / "run"
    unbroken = original(strategy)
    shutil.copytree(unbroken, run_dir)
    store = CheckpointStore(run_dir / "checkpoints", keep_last=3)
    older, newest = (store.root / f"step-{step:08d}" for step in (4, 6))
    written = manifest.read(newest)
    done: Counter[str] = Counter()
    while done["alterations"] < ALTERATIONS:
        before = {path: path.read_bytes() for path in newest.rglob("*") if path.is_file()}
        (kind,) = draw.choices(list(KINDS), list(KINDS.values()))
        alter(kind, draw, newest, older)
        if all(path.exists() and path.read_bytes() == content for path, content in before.items()):
            continue  # two files that are alike were swapped, for instance
        done["alterations"] += 1
        if newest.joinpath(manifest.NAME).exists() and not manifest.problems(newest):
            assert manifest.read(newest) == written  # a space of the manifest has become another
            done["harmless"] += 1
        else:
            require_passed_over(store, newest, older)
            if done["alterations"] == ALTERATIONS:
                require_resumed(run_dir, unbroken, newest.name)
        for path, content in before.items():
            path.write_bytes(content)
    wanted = tensors_of(unbroken / "checkpoints" / newest.name)
    for _ in range(CLEAN):
        assert store.newest() == Found(newest)
        found = tensors_of(newest)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    for name, number in (done | Counter(clean_loads=CLEAN)).items():
        record_property(name, number)


def alter(kind: str, draw: random.Random, checkpoint: Path, other: Path) -> None:
    """Damages one file of a checkpoint, or exchanges it for another one."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    path = draw.choice(files)
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    if kind == "flip":
        content[place] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del content[place:]
    elif kind == "grow":
        content += draw.randbytes(draw.randint(1, 4096))
    elif kind == "zero":
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    elif kind == "stale":  # the same file of an older checkpoint
        content = bytearray((other / path.relative_to(checkpoint)).read_bytes())
    elif kind == "swap":
        second = draw.choice(files)
        content = bytearray(second.read_bytes())
        second.write_bytes(path.read_bytes())
    if kind == "drop":
        path.unlink()
    else:
        path.write_bytes(content)


def require_passed_over(store: CheckpointStore, damaged: Path, older: Path) -> None:
    """The older checkpoint is found, the damaged one is named, and refused when it is asked for."""
    found = store.newest()
    assert found.path == older
    ((skipped, reason),) = found.skipped
    assert skipped == damaged
    assert reason
    with pytest.raises(CheckpointError, match=damaged.name):
        store.resolve(damaged)


def require_resumed(run_dir: Path, unbroken: Path, damaged: str) -> None:
    copy = run_dir.with_name("resumed")
    shutil.copytree(run_dir, copy)
    outcome = run("fit", "-c", str(config_of(copy, "single")), "--resume", "auto")
    assert outcome.code == 0, outcome
    assert f"skipped {copy / 'checkpoints' / damaged}: " in outcome.out
    assert losses(copy) == pytest.approx(losses(unbroken), rel=1e-6)
    shutil.rmtree(copy)
