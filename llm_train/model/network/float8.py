"""FP8 matrix products in the blocks' linear layers, through torchao.

What is unusual: nothing about the network changes but the arithmetic. A converted layer is still an
``nn.Linear`` that holds the very same ``Parameter``, so names, initial weights, checkpoints, FLOP
counts, optimizers and sharding see no difference, and a checkpoint loads into a network without
FP8. Weights, gradients and optimizer state stay in their own dtype: input, weight and output
gradient are scaled and rounded to 8 bits before each of a layer's three products and forgotten
after it. Head and embedding are left alone: their rounding errors reach the loss directly.

The two recipes are torchao's:

- ``tensorwise``: one scale a tensor; e4m3 forward, e5m2 for the gradient of the output.
- ``rowwise``: one scale a row, a power of two; e4m3 throughout. More accurate where single rows are
  large, less fast: only the forward product uses the row-wise kernel, the two of backward use the
  tensor-wise one and multiply the scales in afterwards.

What follows from torchao 0.18's source, with either recipe:

- Both dimensions of a weight must be multiples of 16, and so must the tokens of a micro-batch (they
  are the inner dimension of the weight's gradient). Generation and validation do not need that.
- Scales and casts are plain torch operators. Only a compiler fuses them; uncompiled, FP8 is slower
  than bf16. Converted blocks trace without a graph break.
- A weight is scaled and cast anew in every micro-batch, forward and backward, from fp32 under
  ``bf16-mixed``. Under fully_shard it is gathered in bf16 and cast afterwards: torchao's FP8
  all-gather is not used, because its weights are a tensor subclass that checkpoints would hold.
- Activations are saved for backward in their own dtype: no memory is saved.
- ``Selective`` recomputation sees a product as ``aten.mm``, and so keeps its output by default.
- Accumulation is torchao's choice: fast (less exact) in forward, full in backward.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import nn

from llm_train.context import Context, Model
from llm_train.errors import ConfigError, missing_package
from llm_train.model.network.base import LanguageModel
from llm_train.runtime.extras import library
from llm_train.runtime.quiet import quiet

Recipe = Literal["tensorwise", "rowwise"]

ALIGNMENT = 16
"""Dimensions of FP8 products must be multiples of this: 16 bytes of 8-bit values."""

_OLDEST_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0


def problems(context: Context) -> Iterator[str]:
    """What model.float8 needs of other keys, of the installation, of layers and of devices."""
    recipe = context.float8
    if recipe == "none":
        return
    if missing := missing_package("torchao", "torchao", f"model.float8={recipe}"):
        yield missing
    if context.accelerator.type == "cuda":
        yield from _cuda_problems(context)
    here = context.here if context.running and context.accelerator.type != "cpu" else ()
    devices = [torch.device(context.accelerator.type, index) for index in here]
    yield from _unmet(context.network, recipe, devices)


def _cuda_problems(context: Context) -> Iterator[str]:
    recipe, batch = context.float8, context.batch
    if context.compile == "none":
        yield (
            f"model.float8={recipe} with model.compile=none is slower than bf16, since scales and "
            "casts are not fused; set model.compile=blocks, or model.float8=none"
        )
    if not context.precision.startswith("bf16"):
        yield (
            f"trainer.precision={context.precision} with model.float8={recipe} leaves everything "
            "else in fp32; set trainer.precision to bf16-mixed or bf16-true, or model.float8=none"
        )
    tokens = batch.per_device * batch.sequence
    if tokens % ALIGNMENT:
        yield (
            f"batch.per_device={batch.per_device} x batch.sequence={batch.sequence} = {tokens} "
            f"tokens are not a multiple of {ALIGNMENT}, as model.float8={recipe} needs for the "
            f"gradients of weights; make batch.sequence a multiple of {ALIGNMENT}, or set "
            "model.float8=none"
        )


def to_float8(network: LanguageModel, recipe: Recipe, device: torch.device) -> None:
    """Makes the linear layers inside ``network.blocks()`` multiply in FP8, in place.

    Goes before recomputation, compilation, sharding and initialisation; parameters may be on the
    meta device. Layers whose dimensions do not fit stay as they are. On a CPU the products are
    emulated in fp32 from operands rounded to FP8: right, slow, for rehearsal.

    Args:
        network: changed in place.
        recipe: how operands are scaled.
        device: where the network will run.

    Raises:
        ConfigError: torchao is absent, ``device`` has no FP8 units, or no layer fits.
    """
    for problem in _unmet(network, recipe, [device]):
        raise ConfigError(problem)
    with quiet():
        float8 = library("torchao.float8", "torchao", f"model.float8={recipe}")
    config = float8.Float8LinearConfig.from_recipe_name(recipe)
    config = dataclasses.replace(config, emulate=device.type == "cpu")
    for block in network.blocks():
        float8.convert_to_float8_training(block, module_filter_fn=_fits, config=config)
    # In every forward under CUDA's autocast torchao asks for its dtype by a deprecated name.
    warnings.filterwarnings("ignore", r"torch\.get_autocast_gpu_dtype\(\)", DeprecationWarning)


def lacks_float8(device: torch.device) -> str:
    """Why ``device`` cannot multiply in FP8, as the end of a sentence; empty if it can."""
    if device.type == "cpu":
        return ""
    if device.type != "cuda":
        return f"runs on CUDA devices (and, emulated, on CPUs), not on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability >= _OLDEST_CAPABILITY:
        return ""
    return (
        f"needs compute capability 8.9 or higher, and {torch.cuda.get_device_name(device)} has "
        f"{capability[0]}.{capability[1]}"
    )


def _unmet(network: Model, recipe: str, devices: Iterable[torch.device]) -> Iterator[str]:
    """What ``devices`` lack, and a network of which no layer fits."""
    for missing in sorted({lacks_float8(device) for device in devices} - {""}):
        yield f"model.float8={recipe} {missing}; set model.float8=none"
    modules = (module for block in network.blocks() for module in block.modules())
    layers = [module for module in modules if isinstance(module, nn.Linear)]
    if not any(_fits(layer) for layer in layers):
        shapes = sorted({f"{each.out_features} x {each.in_features}" for each in layers})
        yield (
            f"model.float8={recipe} converts no layer: none of the blocks' linear layers "
            f"({', '.join(shapes) or 'there are none'}) has two dimensions that are multiples of "
            f"{ALIGNMENT}; change the network's widths, or set model.float8=none"
        )


def _fits(layer: nn.Linear, _name: str = "") -> bool:
    """Whether FP8 units can run a layer; torchao asks it of linear layers alone, by name too."""
    return layer.in_features % ALIGNMENT == 0 and layer.out_features % ALIGNMENT == 0
