"""Rules about FP8 products: with what, on what, and whether there is anything to convert.

Three functions, because they may be asked at different times: ``float8`` always, ``layers`` when a
network may be built on the meta device, ``present`` when a run is about to start on devices that
are here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import torch

from llm_train.check.table import on_meta
from llm_train.check.trainer import precision_of
from llm_train.model.network.float8 import ALIGNMENT, fitting_layers, lacks_float8, nothing_fits
from llm_train.settings import Settings


def float8(settings: Settings) -> Iterator[str]:
    """What model.float8 needs of other keys and of the installation."""
    recipe = str(settings.task.construction.float8)
    if recipe == "none":
        return
    if importlib.util.find_spec("torchao") is None:
        yield (
            f"model.float8={recipe} needs torchao, which is not installed; "
            "pip install 'llm-train[torchao]', or set model.float8=none"
        )
    if type(settings.strategy).__name__ == "ZeRO":
        yield (
            f"model.float8={recipe} does not work under ZeRO, where DeepSpeed casts weights "
            "itself; set trainer.strategy to ddp or fsdp, or model.float8=none"
        )
    if settings.on_cuda:
        yield from _on_cuda(settings, recipe)


def _on_cuda(settings: Settings, recipe: str) -> Iterator[str]:
    if settings.task.construction.compile == "none":
        yield (
            f"model.float8={recipe} with model.compile=none is slower than bf16, since scales and "
            "casts are not fused; set model.compile=blocks, or model.float8=none"
        )
    precision = precision_of(settings)
    if not precision.startswith("bf16"):
        yield (
            f"trainer.precision={precision} with model.float8={recipe} leaves everything else in "
            "fp32; set trainer.precision to bf16-mixed or bf16-true, or model.float8=none"
        )
    batch = settings.batch
    tokens = batch.per_device * batch.sequence
    if tokens % ALIGNMENT:
        yield (
            f"batch.per_device={batch.per_device} x batch.sequence={batch.sequence} = {tokens} "
            f"tokens are not a multiple of {ALIGNMENT}, as model.float8={recipe} needs for the "
            f"gradients of weights; make batch.sequence a multiple of {ALIGNMENT}, or set "
            "model.float8=none"
        )


def layers(settings: Settings) -> Iterator[str]:
    """At least one layer must have dimensions that FP8 products can have; builds on meta."""
    recipe = str(settings.task.construction.float8)
    if recipe == "none":
        return
    network = on_meta(settings)
    if not fitting_layers(network):
        yield nothing_fits(network, recipe)


def present(settings: Settings) -> Iterator[str]:
    """Whether the devices that a run is about to use have FP8 units."""
    recipe = str(settings.task.construction.float8)
    if recipe == "none" or not settings.on_cuda or not torch.cuda.is_available():
        return
    wanted = settings.trainer.get("devices", "auto")
    here = torch.cuda.device_count()
    indices = wanted if isinstance(wanted, list) else range(min(settings.devices, here))
    found = {lacks_float8(torch.device("cuda", index)) for index in indices if index < here}
    for missing in sorted(found - {""}):
        yield f"model.float8={recipe} {missing}; set model.float8=none"
