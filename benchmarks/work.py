"""Defines what every peer gets: a shape, a file of tokens, and a pacer that says when to run.

A peer is a process that builds its model, warms up and then waits. The parent lets one peer at a
time run a few steps, in an order that is shuffled for each round, so that every disturbance of the
machine (a warm cache, a busy neighbour, a falling clock) affects all peers alike.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np

from benchmarks.usage import arguments


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder-only Transformer and its batch.

    Attributes:
        name: name in results.
        family: gpt2 (LayerNorm, GELU, learned positions, tied) or llama (RMSNorm, SwiGLU, rotary).
        vocab: number of token ids, with padding.
        layers: number of blocks.
        width: features of the residual stream.
        heads: number of query heads.
        kv_heads: number of key/value heads.
        mlp: hidden features of the feed-forward part.
        sequence: positions per sample.
        batch: samples per micro-batch.
        accumulation: micro-batches per optimizer step.
        bias: whether linear layers and norms have biases; transformers' GPT-2 always has them.
    """

    name: str
    family: str = "gpt2"
    vocab: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    sequence: int
    batch: int
    accumulation: int = 1
    bias: bool = True

    @property
    def tokens_per_step(self) -> int:
        """The number of target tokens in an optimizer step."""
        return self.batch * self.sequence * self.accumulation


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the process of a peer is told.

    Attributes:
        shape: the model and its batch.
        device: cpu or cuda.
        dtype: float32 or bfloat16 (mixed: fp32 master weights).
        variant: form of the peer, for instance eager or compiled.
        tokens: file of uint16 token ids.
        warmup: optimizer steps before the first measurement.
        threads: torch's threads on a CPU.
        options: options that only this peer understands.
    """

    shape: Shape
    device: str
    dtype: str
    variant: str
    tokens: str
    warmup: int
    threads: int
    options: dict[str, Any]

    def dump(self) -> str:
        """Returns the job as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_arguments(cls) -> Job:
        """Reads the job from the command line; from here on, prints go to standard error."""
        (text,) = arguments("job")
        global _answers  # noqa: PLW0603 - one process, one channel to the parent
        _answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        values = json.loads(text)
        values["shape"] = Shape(**values["shape"])
        return cls(**values)


_answers: TextIO = sys.stdout


def write_tokens(path: Path, vocab: int, count: int = 4_000_000) -> Path:
    """Writes random ids, on whose values the speed of a dense model does not depend."""
    ids = np.random.default_rng(0).integers(0, vocab, count, dtype=np.uint16)
    ids.tofile(path)
    return path


class Pacer:
    """Tells the parent how long each round took, and waits between rounds.

    Args:
        job: the job of this process.
        parameters: number of the model's parameters, which the parent compares between peers.
    """

    def __init__(self, job: Job, parameters: int) -> None:
        self._device, self._parameters = job.device, parameters
        self._left = self._steps = job.warmup
        self._answers = _answers
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def step(self) -> None:
        """Counts a step; call it after every optimizer step."""
        self._left -= 1
        if self._left:
            return
        self._synchronise()
        seconds = time.perf_counter() - self._start
        answer = {
            "steps": self._steps,
            "seconds": seconds,
            "cpu_seconds": time.process_time() - self._cpu_start,
            "parameters": self._parameters,
            **self._memory(),
        }
        self._answers.write(json.dumps(answer) + "\n")
        command = sys.stdin.readline().strip()
        if not command:
            leave()
        self._left = self._steps = int(command)
        self._synchronise()
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def _synchronise(self) -> None:
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()

    def _memory(self) -> dict[str, float]:
        if self._device == "cuda":
            import torch

            return {
                "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
                "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
            }
        return {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def leave() -> NoReturn:
    """Ends the process at once, because a Trainer would save and validate first."""
    sys.stderr.flush()
    os._exit(0)


def prepare(job: Job) -> Any:
    """Sets threads and seeds, and returns the torch device."""
    import torch

    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    return torch.device(job.device)
