"""Times head and cross entropy alone, forward and backward: ours, torch's, Liger's and CCE's.

Every method has bfloat16 hidden states and weights and returns the sum over targets. Each method
runs in a process of its own, so that one that crashes the device loses its own rows and no others.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.studies.common import Settings

Method = Callable[[Tensor, Tensor, Tensor], Tensor]

# The shapes of the presets come first, in case time runs out.
VOCABS, WIDTHS, COUNTS = (50304, 128256, 32768), (768, 2048, 4096), (32768, 8192)


def _ours(compiled: bool) -> Method:
    from llm_train.model.loss import ChunkedCausalLM
    from llm_train.model.network.base import Projection

    loss = ChunkedCausalLM().compiled() if compiled else ChunkedCausalLM()

    def method(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        projection = Projection(weight, weight.shape[0], 0.0)
        return loss(hidden.unsqueeze(0), projection, targets.unsqueeze(0)).objective

    return method


def _plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")


def _torch() -> Method:
    options = torch.nn.LinearCrossEntropyOptions()

    def method(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=options)

    return method


def _liger() -> Method:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return lambda hidden, weight, targets: loss(weight, hidden, targets)


def _cce() -> Method:
    from cut_cross_entropy import linear_cross_entropy

    return lambda hidden, weight, targets: linear_cross_entropy(
        hidden, weight, targets, reduction="sum"
    )


METHODS: dict[str, Callable[[], Method]] = {
    "ours chunked": lambda: _ours(compiled=False),
    "ours chunked, compiled": lambda: _ours(compiled=True),
    "plain": lambda: _plain,
    "plain, compiled": lambda: torch.compile(_plain, dynamic=False),
    "torch linear_cross_entropy": _torch,
    "Liger": _liger,
    "CCE": _cce,
}


def measure(device: str, method: Method, vocab: int, width: int, count: int) -> dict[str, Any]:
    """Measures milliseconds of forward and backward, and memory beyond inputs and weights."""
    cuda = device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(count, width, device=device, dtype=dtype, generator=generator)
    weight = torch.randn(vocab, width, device=device, dtype=dtype, generator=generator) * 0.02
    targets = torch.randint(vocab, (count,), device=device, generator=generator)
    hidden.requires_grad_()
    weight.requires_grad_()
    wait = torch.cuda.synchronize if cuda else (lambda: None)
    seconds, value = [], 0.0
    for index in range(13 if cuda else 5):
        hidden.grad = weight.grad = None
        if index == 3 and cuda:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if cuda else 0
        wait()
        begin = time.perf_counter()
        result = method(hidden, weight, targets)
        result.backward()
        wait()
        if index >= 3:
            seconds.append(time.perf_counter() - begin)
        value = float(result.detach()) / count
    low, _, high = statistics.quantiles(seconds, n=4)
    peak = torch.cuda.max_memory_allocated() - before if cuda else None
    return {
        "milliseconds": 1000 * statistics.median(seconds),
        "spread": 500 * (high - low),
        "extra_gib": peak / 2**30 if peak is not None else None,
        "nats_per_token": value,
    }


def run(settings: Settings, name: str) -> None:
    """Measures one method over all shapes; a method that cannot be imported is one row."""
    try:
        method = METHODS[name]()
    except (ImportError, AttributeError) as problem:
        settings.emit(name, skipped=f"not installed: {problem}"[:200])
        return
    shapes = [(v, d, n) for v in VOCABS for d in WIDTHS for n in COUNTS]
    for vocab, width, count in [(512, 64, 128)] if settings.rehearse else shapes:
        sizes = {"vocab": vocab, "width": width, "tokens": count}
        if not settings.has(20, name):
            return
        try:
            numbers = measure(settings.device, method, vocab, width, count)
        except Exception as problem:  # whatever a kernel raises is this row's result
            numbers = {"error": f"{type(problem).__name__}: {problem}".splitlines()[0][:200]}
            torch.cuda.empty_cache()
        settings.emit(name, **sizes, **numbers)


def main() -> None:
    settings = Settings.from_arguments()
    if len(sys.argv) == 3:
        run(settings, sys.argv[2])
        return
    for index, name in enumerate(METHODS):
        left = settings.deadline - time.time()
        share = replace(settings, deadline=time.time() + left / (len(METHODS) - index))
        command = [sys.executable, "-m", "benchmarks.studies.loss", share.dump(), name]
        done = subprocess.run(command, check=False)
        if done.returncode:
            settings.emit(name, error=f"the process ended with {done.returncode}")


if __name__ == "__main__":
    main()
