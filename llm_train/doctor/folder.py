"""The run folder: room for the checkpoints, speed, and what the store and the lease rely on.

Folders that do not exist yet are on the file system of the nearest one that does. Everything is
tried in a scratch folder there, which is removed again.
"""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llm_train.checkpoint.remote import folder_at
from llm_train.context import Finding
from llm_train.plan.cost_model import weights_of
from llm_train.runtime import disk
from llm_train.settings import Settings
from llm_train.trainer.strategy.cost import Workload

_CHUNK = bytes(4 << 20)
_MOST_BYTES, _MOST_SECONDS = 256 << 20, 3.0
_SLOW_BYTES_PER_SECOND = 50 << 20
_SLOW_SAVE_SECONDS = 600.0


def checkpoint_bytes(settings: Settings) -> int:
    """Weights and optimizer state, as far as that is known; no strategy saves them twice."""
    work = Workload(
        weights=weights_of(settings.task.network_config),
        optimizer=settings.task.optimizer_config,
        precision=settings.precision,
    )
    state = work.optimizer_bytes(lambda w: w.extent)
    return work.width * sum(work.elements()) + (0 if math.isnan(state) else int(state))


def disk_space(settings: Settings) -> Iterator[Finding]:
    """Room for all checkpoints that are kept, and for one more while it is written."""
    policy, tokens = settings.checkpoint, settings.batch.tokens
    keep = policy.keep_every.steps(tokens)
    kept = settings.derive().total_steps // keep if keep else 0
    size, place = checkpoint_bytes(settings), _nearest(settings.run_dir / "checkpoints")
    free, least = shutil.disk_usage(place).free, size * (policy.keep_last + 1)
    text = f"{_gib(free)} free in {place}, {_gib(size)} a checkpoint"
    remedy = f"free {_gib(least + size * kept - free)}, or lower checkpoint.keep_last or keep_every"
    if free < least:
        text += f" x (keep_last={policy.keep_last} + 1) = {_gib(least)}"
        yield Finding("disk space", text, "failed", remedy)
    elif free < least + size * kept:
        text += f", {kept} of which keep_every keeps"
        yield Finding("disk space", text, "warning", remedy)
    else:
        yield Finding("disk space", text)


def write_speed(settings: Settings) -> Iterator[Finding]:
    """How fast a checkpoint can be on the disk."""
    size = checkpoint_bytes(settings)
    with _scratch(settings.run_dir / "checkpoints") as place:
        written, began = 0, time.perf_counter()
        with open(place / "file", "wb", buffering=0) as file:
            while written < min(size, _MOST_BYTES) and time.perf_counter() - began < _MOST_SECONDS:
                written += file.write(_CHUNK)
            os.fsync(file.fileno())
    rate = written / (time.perf_counter() - began)
    seconds = size / rate
    text = f"{rate / 2**20:,.0f} MiB/s with fsync; saving takes about {seconds:,.1f} s"
    slow = rate < _SLOW_BYTES_PER_SECOND or seconds > _SLOW_SAVE_SECONDS
    remedy = "put the run folder on a faster disk, or save less often (checkpoint.every)"
    yield Finding("write speed", text, "warning" if slow else "ok", remedy * slow)


def file_system(settings: Settings) -> Iterator[Finding]:
    """Atomic rename, exclusive creation, flushed directories, links: all that files rely on."""
    remedy = "put the run folder on another file system (trainer.default_root_dir)"
    with _scratch(settings.run_dir) as place:
        one, two = place / "one", place / "two"
        one.write_text("new")
        two.write_text("old")
        disk.sync(one)
        disk.rename(one, two)
        if one.exists() or two.read_text() != "new":
            yield Finding("file system", "rename does not replace a file", "failed", remedy)
        try:
            os.close(os.open(two, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            yield Finding("file system", "O_EXCL creates what exists", "failed", remedy)
        except FileExistsError:
            pass
        try:
            one.symlink_to(two)
        except OSError as error:
            yield Finding("file system", f"no symbolic links: {error}", "warning", remedy)
    yield Finding("file system", f"rename, O_EXCL, fsync and links work in {place.parent}")


def remote(settings: Settings) -> Iterator[Finding]:
    """Whether the second home of checkpoints takes a file, and gives it back."""
    if not (url := settings.checkpoint.remote):
        return
    fs, name = folder_at(url), ".doctor"
    new = not fs.exists("")
    fs.makedirs("", exist_ok=True)
    fs.pipe_file(name, b"doctor")
    same = fs.cat_file(name) == b"doctor"
    fs.rm_file(name)
    if new:
        with suppress(OSError):  # an object store has no folders
            fs.rmdir("")
    text = f"{url} {'gives back' if same else 'changes'} what it is given"
    yield Finding("remote", text, "ok" if same else "failed", "use another URL" * (not same))


def _nearest(path: Path) -> Path:
    """The path, or the folder in which it would be made."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=_nearest(path)) as place:
        yield Path(place)


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"
