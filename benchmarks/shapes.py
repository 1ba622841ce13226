"""Lists the shapes that are measured, with a user's settings for them on one GPU of 139 GiB.

``micro_batches`` are candidates, not settings: the throughput study tries them in this order and
keeps the fastest that fits. A tiny twin keeps what may break (family, grouped heads, positions,
overrides, accumulation) and shrinks the rest, so that a rehearsal on a CPU goes through the code
that the GPU will run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.work import Shape

TOKENS_PER_STEP = 65_536


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A shape and how it is run.

    Attributes:
        shape: the shape, with the first candidate as its batch.
        parameters: number of distinct parameters, with the padding of the vocabulary.
        micro_batches: samples per micro-batch, the most promising first.
        network: arguments of ``Transformer`` that a ``Shape`` does not have.
        overrides: further ``--key=value`` arguments of llm_train.
        must: tokens/s that must be reached on one H200.
        aim: tokens/s that are hoped for.
        roof: tokens/s that a realistic roofline allows.
    """

    shape: Shape
    parameters: int
    micro_batches: tuple[int, ...]
    network: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    must: int = 0
    aim: int = 0
    roof: int = 0

    def at(self, micro_batch: int, tokens_per_step: int = TOKENS_PER_STEP) -> Shape:
        """Returns the shape with another micro-batch and about as many tokens per step."""
        accumulation = max(1, tokens_per_step // (micro_batch * self.shape.sequence))
        return replace(self.shape, batch=micro_batch, accumulation=accumulation)

    def arguments(self) -> tuple[str, ...]:
        """Returns all overrides, for the command line."""
        values = (f"--model.network.init_args.{k}={_text(v)}" for k, v in self.network.items())
        return (*values, *self.overrides)

    def tiny(self) -> Preset:
        """Returns a twin that is small enough for one CPU core."""
        group = self.shape.heads // self.shape.kv_heads
        kv_heads = 1 if group > 1 else 2
        width = 16 * group * kv_heads
        shape = replace(
            self.shape,
            vocab=512,
            layers=2,
            width=width,
            heads=group * kv_heads,
            kv_heads=kv_heads,
            mlp=4 * width,
            sequence=32,
            batch=2,
            accumulation=2,
        )
        return replace(self, shape=shape, parameters=0, micro_batches=(2,))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _gpt2(name: str, layers: int, width: int, heads: int, sequence: int = 1024) -> Shape:
    return Shape(
        name=name,
        vocab=50304,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=heads,
        mlp=4 * width,
        sequence=sequence,
        batch=1,
    )


def _llama(name: str, layers: int, width: int, heads: int, mlp: int, sequence: int) -> Shape:
    return Shape(
        name=name,
        family="llama",
        vocab=128256,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=8,
        mlp=mlp,
        sequence=sequence,
        batch=1,
        bias=False,
    )


def _preset(shape: Shape, parameters: int, micro_batches: tuple[int, ...], **more: Any) -> Preset:
    preset = Preset(shape=shape, parameters=parameters, micro_batches=micro_batches, **more)
    return replace(preset, shape=preset.at(micro_batches[0]))


_GPU = [
    _preset(
        _gpt2("gpt2-124m", 12, 768, 12),
        124_475_904,
        (64, 32, 128),
        must=470_000,
        aim=520_000,
        roof=586_000,
    ),
    _preset(
        _gpt2("gpt2-124m-heads128-rotary", 12, 768, 6),
        123_689_472,  # rotary: there is no table of positions
        (64, 32, 128),
        network={"positions": "rotary"},
        must=520_000,
        aim=570_000,
        roof=616_000,
    ),
    _preset(
        _gpt2("gpt2-350m", 24, 1024, 16),
        354_871_296,
        (32, 64, 16),
        must=180_000,
        aim=200_000,
        roof=219_000,
    ),
    _preset(
        _gpt2("gpt2-774m", 36, 1280, 20),
        774_090_240,
        (32, 16, 64),
        must=90_000,
        aim=98_000,
        roof=107_000,
    ),
    _preset(
        _gpt2("gpt2-1.5b", 48, 1600, 25),
        1_557_686_400,
        (16, 32, 8),
        must=50_000,
        aim=54_000,
        roof=56_100,
    ),
    _preset(
        _gpt2("gpt2-1.3b-2048", 24, 2048, 16, sequence=2048),
        1_315_819_520,
        (16, 8, 32),
        must=60_000,
        aim=66_000,
        roof=71_500,
    ),
    _preset(
        _llama("llama-1b-2048", 16, 2048, 32, 8192, 2048),
        1_235_814_400,
        (16, 8, 32),
        network={"tied": True},
        must=62_000,
        aim=70_000,
        roof=75_600,
    ),
    _preset(
        _llama("llama-8b-4096", 32, 4096, 32, 14336, 4096),
        8_030_261_248,
        (2, 1, 3),
        # bfloat16 weights, gradients and moments take 64 GB instead of 128.
        overrides=(
            "--trainer.precision=bf16-true",
            "--model.optimizer=LowBitAdamW",
            "--model.optimizer.init_args.state=bf16",
        ),
        must=11_800,
        aim=12_800,
        roof=13_500,
    ),
]
GPU: dict[str, Preset] = {preset.shape.name: preset for preset in _GPU}

# The shapes of `python -m benchmarks.cpu`, which fit one core.
_NANO = replace(_gpt2("nanogpt-cpu", 4, 128, 4, sequence=64), vocab=65)
_TINY = _gpt2("gpt2-tiny-width", 12, 128, 2, sequence=256)
CPU: dict[str, Preset] = {
    "nanogpt-cpu": Preset(shape=replace(_NANO, batch=12), parameters=809_856, micro_batches=(12,)),
    "gpt2-tiny-width": Preset(
        shape=replace(_TINY, batch=2), parameters=8_851_200, micro_batches=(2,)
    ),
}


def gpu_presets(rehearse: bool) -> dict[str, Preset]:
    """Returns the GPU's shapes, or their tiny twins under the same names."""
    return {name: preset.tiny() if rehearse else preset for name, preset in GPU.items()}
