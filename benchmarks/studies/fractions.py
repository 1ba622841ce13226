"""Measures which fractions of a device's peaks single kernels reach at the presets' shapes.

Matrix products (forward and both of backward), attention (causal, forward and backward), a fused
element-wise chain, the update of AdamW with clipping, and a plain copy. ``benchmarks/fractions.py``
puts them in the place of assumptions.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.roofline import PRESETS, preset
from benchmarks.studies.common import Settings
from llm_train.model.network import Transformer
from llm_train.model.optimizer import AdamW
from llm_train.runtime.devices import DEVICES

_KERNELS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
_TOKENS = 16_384  # rows of a product: a micro-batch of 16 x 1024
_REPEATS = 15
WHOLE = ("gpt2-124m", "llama-1b")  # whose norm and optimizer are measured, too


def milliseconds(work: Callable[[], object], *, warm_up: int = 5) -> float:
    """The median of repeats, each between two events, after the cache was overwritten."""
    for _ in range(warm_up):
        work()
    flush = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")  # more than any cache
    pairs = []
    torch.cuda._sleep(100_000_000)  # cycles, some 50 ms, in which the host gets ahead of the device
    for _ in range(_REPEATS):
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def products(network: Transformer) -> Iterable[tuple[str, int, int]]:
    """Names, inputs and outputs of a network's matrix products."""
    width, hidden = network.width, network.hidden
    kv_width = network.head_dim * network.key_value_heads
    gated = 2 if network.activation == "swiglu" else 1
    yield "query, key, value", width, width + 2 * kv_width
    yield "attention's output", width, width
    yield "up", width, gated * hidden
    yield "down", hidden, width
    yield "head", width, network.padded_vocab_size


def product(rows: int, inputs: int, outputs: int) -> tuple[float, float]:
    """Milliseconds and FLOPs of y = x W and of both gradients."""
    x, w, g = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        for shape in ((rows, inputs), (outputs, inputs), (rows, outputs))
    )
    taken = sum(milliseconds(work) for work in (lambda: x @ w.T, lambda: g @ w, lambda: g.T @ x))
    return taken, 6.0 * rows * inputs * outputs


def attention(network: Transformer, sequence: int, kernel: SDPBackend) -> tuple[float, float]:
    """Milliseconds and causal FLOPs of forward and backward."""
    size = network.width // network.heads
    batch = max(1, _TOKENS // sequence)
    kv_heads = network.kv_heads or network.heads
    query, key, value = (
        torch.randn(
            batch, heads, sequence, size, device="cuda", dtype=torch.bfloat16, requires_grad=True
        )
        for heads in (network.heads, kv_heads, kv_heads)
    )
    gradient = torch.randn_like(query)

    def work() -> None:
        found = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=kv_heads != network.heads
        )
        torch.autograd.grad(found, (query, key, value), gradient)

    with sdpa_kernel(kernel):
        taken = milliseconds(work)
    return taken, 6.0 * batch * sequence * network.width * sequence


def _chain(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    residual = residual + x
    return residual, F.rms_norm(residual.float(), weight.shape, weight).to(x.dtype)


def elementwise(width: int) -> tuple[float, float]:
    """Milliseconds and bytes of a residual and a norm in one kernel: two reads, two writes."""
    x, residual = (torch.randn(_TOKENS, width, device="cuda").bfloat16() for _ in range(2))
    weight = torch.ones(width, device="cuda")
    compiled = torch.compile(_chain)
    return milliseconds(lambda: compiled(x, residual, weight)), 4.0 * x.numel() * x.element_size()


def copy(size: int) -> tuple[float, float]:
    """Milliseconds and bytes, read and written."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return milliseconds(lambda: target.copy_(source)), 2.0 * size


def update(network: Transformer) -> tuple[float, float]:
    """Milliseconds and bytes of clipping and of our AdamW: 32 a parameter, as the roofline counts.

    The bf16 copy of the weights, 2 bytes more there, is cast in the forward.
    """
    with torch.device("meta"):
        built = network.build()
    built.to_empty(device="cuda")
    optimizer = AdamW(learning_rate=1e-4).build(built.named_parameters())
    weights = list(built.parameters())
    for weight in weights:
        weight.data.normal_(std=0.02)
        weight.grad = torch.randn_like(weight)

    def work() -> None:
        torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        optimizer.step()

    return milliseconds(work, warm_up=3), 32.0 * sum(weight.numel() for weight in weights)


def main() -> None:
    settings = Settings.from_arguments()
    if settings.device == "cpu":
        settings.emit("all", skipped="needs CUDA")
        return
    name = settings.versions["device"]
    device = next((device for device in DEVICES.values() if device.name == name), None)
    if device is None:
        settings.emit("all", skipped=f"the peaks of {name} are not known")
        return
    flops, bandwidth = device.peak_flops("bf16"), device.bytes_per_second

    def emit(
        case: str, part: str, work: Callable[[], tuple[float, float]], seconds: float = 5
    ) -> None:
        if not settings.has(seconds, case):
            return
        try:
            taken, amount = work()
        except RuntimeError as problem:  # a kernel that cannot do the shape, or too little memory
            settings.emit(case, error=str(problem).split("\n")[0][:200])
            return
        peak = bandwidth if part in ("copy", "element-wise", "optimizer") else flops
        fraction = amount / (taken / 1000) / peak
        row = {"part": part, "preset": case.split(" ")[0], "milliseconds": taken, "amount": amount}
        settings.emit(case, **row, fraction=fraction)
        torch.cuda.empty_cache()

    emit("copy", "copy", partial(copy, 1 << 24 if settings.rehearse else 1 << 30))
    for name in PRESETS[:1] if settings.rehearse else PRESETS:
        network, sequence, _ = preset(name)
        for kernel, backend in _KERNELS.items():
            work = partial(attention, network, sequence, backend)
            emit(f"{name} attention, {kernel}", "attention", work)
        for matrix, inputs, outputs in products(network):
            rows = _TOKENS // 8 if settings.rehearse or matrix == "head" else _TOKENS
            emit(f"{name} {matrix}", "products", partial(product, rows, inputs, outputs))
        if name in WHOLE:
            work = partial(elementwise, network.width)
            emit(f"{name} norm and residual", "element-wise", work, seconds=20)
            emit(f"{name} AdamW", "optimizer", partial(update, network), seconds=10)


if __name__ == "__main__":
    main()
