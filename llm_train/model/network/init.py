"""Initial weights as a function of (seed, parameter name) alone.

The usual way, one generator that the modules draw from in turn, makes a weight depend on everything
that was drawn before it: build order, other parameters' shapes, the sharding, the device. Here each
parameter has its own CPU generator, seeded by a hash of the seed and the name. It is drawn in
float32 and in full, then written into whatever the parameter is by then: a tensor of another dtype
or device, or this rank's shard, cut out locally without communication. One full parameter exists at
a time.
"""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from llm_train.model.network.base import Initial, LanguageModel
from llm_train.runtime.sharded import local_part, own_part

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")

Gather = Callable[[nn.Parameter], AbstractContextManager[object]]
Start = Callable[[str, Tensor], None]
"""Writes over a parameter that was drawn, whole and on the CPU, what a run is to begin with."""


def as_drawn(name: str, full: Tensor) -> None:
    """The start of a run that begins with nothing but its seed."""


def canonical_name(name: str) -> str:
    """The name of a parameter without what compilation and recomputation wrappers add.

    >>> canonical_name("layers.0._orig_mod._checkpoint_wrapped_module.mlp.up.weight")
    'layers.0.mlp.up.weight'
    """
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def sample(initial: Initial, shape: torch.Size, *, seed: int, name: str) -> Tensor:
    """The full parameter, in float32 on the CPU.

    Rows after ``initial.rows`` are zero and not drawn: torch's generator does not give the same
    prefix for another length, so padding drawn along would change the real rows.
    """
    full = torch.zeros(shape, dtype=torch.float32, device="cpu")
    real = full[: initial.rows] if initial.rows else full
    if initial.std == 0.0:
        real.fill_(initial.mean)
        return full
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator(device="cpu")
    generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)  # 63 bits: fits int64
    real.normal_(initial.mean, initial.std, generator=generator)
    if initial.shape is not None:
        initial.shape(real)
    return full


@torch.no_grad()
def initialise(
    network: LanguageModel,
    seed: int,
    gathered: Gather = lambda _: nullcontext(),
    start: Start = as_drawn,
) -> None:
    """Gives every parameter its initial value, in place.

    Args:
        network: materialised, on any device, in any dtype, sharded by fully_shard or not.
        seed: two networks with the same seed agree in every parameter they share by name and shape.
        gathered: context in which a parameter that a strategy has taken apart is whole and may be
            written, for DeepSpeed ZeRO 3.
        start: writes over what was drawn.
    """
    written: set[str] = set()
    for raw_name, parameter in network.named_parameters():  # a tied parameter comes once
        name = canonical_name(raw_name)
        assert name not in written, f"two parameters are called {name}"
        assert not parameter.is_meta, f"{name} has no storage; call materialise first"
        initial = network.initial(name)
        with gathered(parameter):
            full = sample(initial, parameter.shape, seed=seed, name=name)
            start(name, full)
            local_part(parameter).copy_(own_part(full, parameter))
        written.add(name)


def materialise(
    network: LanguageModel,
    device: torch.device | str,
    buffers: torch.device | str | None = None,
) -> None:
    """Gives parameters without memory some on ``device``, still undefined, and moves all else.

    Args:
        network: changed in place; a tensor that has storage keeps its values.
        device: of parameters.
        buffers: where buffers are used; where parameters are if not given.
    """
    elsewhere = device if buffers is None else buffers

    def place(tensor: Tensor) -> Tensor:
        target = device if isinstance(tensor, nn.Parameter) else elsewhere
        return torch.empty_like(tensor, device=target) if tensor.is_meta else tensor.to(target)

    network._apply(place)  # type: ignore[no-untyped-call]
    left = [name for name, buffer in network.named_buffers() if buffer.is_meta]
    assert torch.device(elsewhere).type == "meta" or not left, f"buffers without storage: {left}"
