"""The parts that all studies share: settings, rows in a file, and one way to measure a peer.

A row is one line of JSON that holds the versions alongside the numbers. It is written as soon as it
is known, so an interrupted run keeps what it has.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.duel import Peer
from benchmarks.judge import read_rows
from benchmarks.peers.ours import configuration, write_shards
from benchmarks.shapes import Preset, gpu_presets
from benchmarks.usage import arguments
from benchmarks.work import Job, Shape, write_tokens
from llm_train.model.network import Counts, Transformer

# A user would set these on a GPU, beyond the settings of benchmarks/peers/ours.py.
RECIPE = ("--model.loss=ChunkedCausalLM",)
# One graph fuses the loss by itself.
ONE_GRAPH = ("--model.loss=CausalLM",)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the process of a study is told.

    Attributes:
        study: name of the study in rows.
        out: file of rows.
        directory: folder for tokens, logs and runs; deleted afterwards.
        rehearse: whether to run tiny shapes, on the CPU where there is no device.
        deadline: seconds since the epoch after which the process is killed.
        nanogpt: checkout of nanoGPT, or "".
        shakespeare: text of Shakespeare, or "".
        thorough: whether to try all candidates where one would do.
        shapes: names to which the throughput study is limited; an empty list means all.
        versions: versions that are put into every row.
    """

    study: str
    out: str
    directory: str
    rehearse: bool
    deadline: float
    nanogpt: str
    shakespeare: str
    thorough: bool
    shapes: list[str]
    versions: dict[str, Any]

    @classmethod
    def from_arguments(cls) -> Settings:
        """Reads the settings from the command line."""
        return cls(**json.loads(arguments("settings", more="part")[0]))

    def dump(self) -> str:
        """Returns the settings as one line of JSON."""
        return json.dumps(asdict(self))

    @property
    def device(self) -> str:
        """The type of device on which models run."""
        return "cpu" if self.versions["memory_gib"] is None else "cuda"

    @property
    def variant(self) -> str:
        """The peers' variant: compiling tiny models on a CPU takes longer than running them."""
        return "eager" if self.device == "cpu" else "compiled"

    @property
    def presets(self) -> dict[str, Preset]:
        """The GPU's shapes, or their tiny twins."""
        return gpu_presets(self.rehearse)

    def emit(self, case: str, **numbers: Any) -> None:
        """Writes one row."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"study": self.study, "case": case, **numbers}
        with open(self.out, "a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "time": now, "versions": self.versions}) + "\n")
        shown = {k: _short(v) for k, v in row.items() if k not in ("study", "rounds", "curve")}
        print(f"{self.study}: " + " ".join(f"{k}={v}" for k, v in shown.items()), flush=True)

    def has(self, seconds: float, case: str) -> bool:
        """Returns whether a case is still to be done and may be: writes a row if time is short."""
        if self.done(case):
            return False
        if self.rehearse or time.time() + seconds < self.deadline:
            return True
        self.emit(case, skipped="time")
        return False

    def done(self, *cases: str) -> bool:
        """Returns whether earlier commands of the day gave the rows, of this device and code."""
        rows = read_rows(Path(self.out))
        here = [self.versions[key] for key in ("device", "commit")]
        found = {
            row["case"]
            for row in rows
            if row["study"] == self.study
            and [row["versions"].get(key) for key in ("device", "commit")] == here
            and not {"error", "skipped"} & set(row)
        }
        return set(cases) <= found

    def tokens(self, vocab: int) -> str:
        """Writes a file of random tokens once, and alongside it the same tokens as shards."""
        path = Path(self.directory) / f"tokens-{vocab}.bin"
        if not path.exists():
            # Files hold uint16, so only the first 65,536 ids of a larger vocabulary occur.
            part = path.with_suffix(".part")
            write_tokens(part, min(vocab, 1 << 16), 200_000 if self.rehearse else 20_000_000)
            write_shards(str(part), vocab)
            Path(f"{part}.shards").rename(f"{path}.shards")
            part.rename(path)
        return str(path)

    def job(self, shape: Shape, *, overrides: Sequence[str] = (), **more: Any) -> Job:
        """Returns a job on this device; of several ``overrides`` of one key the last one counts."""
        values: dict[str, Any] = {
            "shape": shape,
            "device": self.device,
            "dtype": "float32" if self.device == "cpu" else "bfloat16",
            "variant": self.variant,
            "tokens": more.get("tokens") or self.tokens(shape.vocab),
            "warmup": 3 if self.rehearse else 10,
            "threads": 1 if self.rehearse else 8,
            "options": {"path": self.nanogpt, "overrides": [*RECIPE, *overrides]},
        }
        return Job(**{**values, **more})

    def ours(self, name: str, preset: Preset, *overrides: str, **more: Any) -> Peer:
        """Returns our own process on a preset."""
        job = self.job(preset.shape, overrides=(*preset.arguments(), *overrides), **more)
        return Peer(name=name, module="benchmarks.peers.ours", job=job)


def _short(value: Any) -> Any:
    return f"{value:.5g}" if isinstance(value, float) else value


def counts(preset: Preset) -> Counts:
    """Counts parameters and FLOPs of a preset on the meta device."""
    job = Job(
        shape=preset.shape,
        device="cpu",
        dtype="float32",
        variant="eager",
        tokens="",
        warmup=1,
        threads=1,
        options={},
    )
    arguments = configuration(job, Path())["model"]["network"]["init_args"]
    with torch.device("meta"):
        return Counts(Transformer(**{**arguments, **preset.network}).build())


def at(preset: Preset, micro_batch: int) -> Preset:
    """Returns the preset with another micro-batch."""
    return replace(preset, shape=preset.at(micro_batch, preset.shape.tokens_per_step))
