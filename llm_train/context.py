"""What a part may know of the others, so that it can report which combinations it refuses.

A part is whatever a configuration is made of: network, loss, optimizer, schedule, recompute policy,
source, recipe, strategy, callback, logger. ``check`` walks over all parts and asks each for its
problems; it knows none of them by name. What one part must know of another is declared by the
other as a *trait*: not "is it FSDP?" but "does it communicate between the blocks?", so that the
rules hold for a new class as soon as it declares its traits. The defaults of traits forbid nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from llm_train.derived import Derived
from llm_train.units import Batch, Duration

if TYPE_CHECKING:  # preparing data needs no torch, which takes a second and a half
    import torch
    from torch import nn

    from llm_train.runtime.devices import Kind


class Finding(NamedTuple):
    """What ``llm-train doctor`` found.

    Attributes:
        about: what was looked at.
        text: what it is like.
        state: whether a run can live with it.
        remedy: what to do; "" where nothing is wrong, or where the text says it.
    """

    about: str
    text: str
    state: Literal["ok", "warning", "failed"] = "ok"
    remedy: str = ""


class Part:
    """Base of every family: something that a configuration consists of."""

    def parts(self) -> Iterator[Part]:
        """The parts that this one is made of."""
        yield from ()

    def problems(self, context: Context) -> Iterator[str]:
        """What is wrong with this part here, one line each: key, value, rule, way out."""
        yield from ()

    def notes(self, context: Context) -> Iterator[str]:
        """What is not wrong but deserves a second thought, one line each."""
        yield from ()

    def examine(self) -> Iterator[Finding]:
        """What the world outside is like, as far as this part depends on it, in bounded time."""
        yield from ()


class Model(Protocol):
    """What parts ask of a network that was built on the meta device."""

    def blocks(self) -> Sequence[nn.Module]:
        """The repeated layers, in order."""

    def tensor_limits(self) -> Mapping[str, tuple[int, int]]:
        """What tensor parallelism cuts, by configuration key: its size, and that of a piece."""

    def modules(self) -> Iterator[nn.Module]:
        """All modules."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters."""


@dataclass(frozen=True, kw_only=True)
class StrategyTraits:
    """What other parts need to know of a strategy.

    Attributes:
        name: what to call it in a message.
        tensor: number of ranks that share the matrices of one layer.
        weight_replicas: ranks that hold the same weight after every step.
        flattens: the optimizer gets flat fragments instead of parameters.
        communicates_between_blocks: so that the network cannot be one torch.compile graph.
        communicates: ranks exchange data in every step; also true where one rank happens to run.
        final_in_backward: no reduction changes a gradient once backward has produced it.
        one_model: after every step the ranks hold one model, whole or in shards.
        hides_gradients: that of a rank's first micro-batch cannot be read when backward made it.
        dtensors: parameters are torch's DTensors.
    """

    name: str
    tensor: int = 1
    weight_replicas: int = 1
    flattens: bool = False
    communicates_between_blocks: bool = False
    communicates: bool = True
    final_in_backward: bool = False
    one_model: bool = True
    hides_gradients: bool = False
    dtensors: bool = False


UpdateSize = Literal["gradient", "element", "layer", "unknown"]


@dataclass(frozen=True, kw_only=True)
class OptimizerTraits:
    """What other parts need to know of an optimizer.

    Attributes:
        name: what to call it in a message.
        flat_fragments: it can update pieces that begin and end in the middle of a matrix.
        on_host: its update runs on a CPU, and fast enough for offloading.
        one_by_one: it updates each parameter without looking at the others.
        compiled: torch compiles its update, so that a plan counts no temporary tensors for it.
        update_size: what the size of an update follows: the size of the gradient, as in SGD; of
            each element by itself, which is about the learning rate, as in Adam; or of the layer.
        averages: it keeps an average of the weights, which validations score.
    """

    name: str
    flat_fragments: bool = True
    on_host: bool = False
    one_by_one: bool = True
    compiled: bool = False
    update_size: UpdateSize = "unknown"
    averages: bool = False


@dataclass(frozen=True, kw_only=True)
class Context:
    """The run that parts are asked about. Nothing in it needs a device.

    Attributes:
        running: a run is about to start here, so that devices and prepared data must be present.
        prepared: the tokens that data.source reads exist on disk.
        batch: the global batch.
        ranks: processes in all, each with a device of its own.
        devices: devices on each node.
        here: indices of the devices that a run would use and that this machine has.
        accelerator: the kind of device that the run will use.
        precision: trainer.precision by its full name.
        gradient_clip: trainer.gradient_clip_val; 0 is none.
        unmasked: every training target counts in the loss.
        lengths: durations by key, the budget first.
        compile: model.compile.
        float8: model.float8.
        update: model.update.
        documents: model.documents.
        token_ids: number of token ids that the network knows.
        strategy: traits of the strategy.
        optimizer: traits of the optimizer.
        derive: the numbers of the run.
        build: the network on the meta device.
        build_optimizer: the torch optimizer of named parameters.
    """

    running: bool
    prepared: bool
    batch: Batch
    ranks: int
    devices: int
    here: tuple[int, ...]
    accelerator: Kind
    precision: str
    gradient_clip: float
    unmasked: bool
    lengths: Mapping[str, Duration]
    compile: str
    float8: str
    update: str
    documents: str
    token_ids: int
    strategy: StrategyTraits
    optimizer: OptimizerTraits
    derive: Callable[[], Derived]
    build: Callable[[], Model]
    build_optimizer: Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer]

    @cached_property
    def derived(self) -> Derived:
        """The numbers of the run.

        Raises:
            ConfigError: the batch does not divide, or a duration is empty.
        """
        return self.derive()

    @cached_property
    def network(self) -> Model:
        """The network on the meta device; not to be changed."""
        return self.build()

    @cached_property
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The network's parameters by name, as CPU views of one zero: right shapes, no memory.

        An optimizer may ask for the device of its parameters, and meta would be a wrong answer.
        """
        import torch
        from torch import nn

        zero = torch.zeros(1)
        return [
            (name, nn.Parameter(zero.expand(parameter.shape), parameter.requires_grad))
            for name, parameter in self.network.named_parameters()
        ]

    @cached_property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of these parameters, which has no state yet.

        Raises:
            ConfigError: it refuses them.
        """
        return self.build_optimizer(self.parameters)
