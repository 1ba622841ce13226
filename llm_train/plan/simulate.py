"""The real step of one rank under fake tensors: measured, not derived, without memory or devices.

Network, recomputation, sharding, loss and optimizer are the ones that train, run by torch with
tensors that have shapes, dtypes and storages of the right size but no contents, in a process group
of the full number of ranks that exists only in name. The fake device is a CPU: torch cannot
differentiate fake CUDA tensors where there is no CUDA. What depends on the kernel, as the scratch
memory of attention, is therefore not seen; shapes and dtypes are.

Not simulated: DeepSpeed's engine (only the strategy's formula knows it), DistributedDataParallel's
buckets (they are the gradients, so the bytes are those of one device), and compilation (blocks run
operator by operator, which keeps more than compiled ones do: ``compiled``).

A deep network and any micro-batch from shallow ones and small: exact, since all is affine.

Blocks are identical, so bytes and operations of a network of L blocks are ``a + b L``, and of a
micro-batch of B samples ``a + b L + c B + d L B``. Two depths and two micro-batches are therefore
enough, three and four blocks being the smallest that have a first, an inner and a last one. The
depths differ by the period of the recompute policy, so that both end alike. Peaks are affine phase
by phase, and the largest is taken afterwards. A network without a setting ``layers`` is simulated
as it is.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from lightning.pytorch.plugins.precision import HalfPrecision, Precision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from llm_train.model.loss.base import Loss, LossSum
from llm_train.model.network.base import LanguageModel, Network, Readout
from llm_train.model.network.init import materialise
from llm_train.model.network.shadow import ShadowWeights, shadowed
from llm_train.model.optimizer.base import MadeUpNumbers, Optimizer
from llm_train.model.recompute.base import Recompute
from llm_train.plan.operators import Measured, OperatorCounter, saved_bytes, watching
from llm_train.runtime.sharded import pieces, tensor_bytes
from llm_train.trainer.strategy import MeshShape, SingleDevice, Strategy
from llm_train.trainer.strategy.sharding import make_mesh


@dataclass(frozen=True, kw_only=True)
class Case:
    """One step of one rank.

    Attributes:
        network: the architecture.
        loss: what is minimised.
        optimizer: how parameters move.
        recompute: what blocks keep.
        precision: 32-true, bf16-mixed or bf16-true; 16-mixed has as many bytes as bf16-mixed.
        sequence: positions of a sample.
        micro_batch: samples of one forward.
        micro_batches: of the step; more than two are as two, since from the second on all is alike.
        strategy: cuts the network, and is told of micro-batches; must be rehearsable.
        mesh: how the ranks share data and state.
        clip: whether gradients are clipped.
    """

    network: Network
    loss: Loss
    optimizer: Optimizer
    recompute: Recompute
    precision: str
    sequence: int
    micro_batch: int
    micro_batches: int = 1
    strategy: Strategy = field(default_factory=SingleDevice)
    mesh: MeshShape = MeshShape()  # noqa: RUF009 - frozen
    clip: bool = True

    @property
    def copies(self) -> bool:
        """Whether weights have copies in bf16 alongside them, as on one device and under DDP."""
        return self.precision.endswith("mixed") and not self.strategy.cuts_network


def simulate(case: Case) -> Measured:
    """Runs one optimizer step and returns what it took."""
    ranks = case.mesh.data_ranks * case.mesh.tensor
    group = fake_ranks(ranks) if case.strategy.cuts_network else nullcontext()
    # A compiled update, as torchao's is, could not run on fake tensors.
    with group, default_dtype(case.precision), torch.compiler.set_stance("force_eager"):
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        network = _build(case, mode)
        with mode:
            return _measure(network, case)


def _measure(network: LanguageModel, case: Case) -> Measured:
    if case.copies:
        ShadowWeights(network, torch.bfloat16)
    found: Measured = {"saved": 0.0}
    if not case.strategy.cuts_network:
        with autocast(case.precision):
            tokens, readout = _inputs(case)
            found["saved"] = saved_bytes(network, tokens[:, :-1], readout)
    optimizer = case.optimizer.build(network.named_parameters())
    state = _state(optimizer)
    with watching() as watch:
        watch.follow(network.blocks())
        found["parameters"] = watch.adopt(network.parameters())
        found["buffers"] = watch.adopt(network.buffers())
        found["copies"] = watch.adopt(module.shadow for module in shadowed(network))
        found["optimizer"] = watch.adopt(state)
        found["gradients"] = _step(network, optimizer, case, watch)
    return found | watch.found


@contextmanager
def fake_ranks(count: int) -> Iterator[None]:
    """A process group of ``count`` ranks, of which this process is rank 0 and the others nobody."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    assert not torch.distributed.is_initialized(), "a plan is made before the ranks exist"
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _build(case: Case, mode: FakeTensorMode) -> LanguageModel:
    """As ``Construction.network`` has it, without compilation and without contents."""
    if not case.strategy.cuts_network:
        # torch cannot move fake parameters off the meta device; on a CPU they cost as little.
        with mode:
            network = case.network.build()
            case.recompute.apply(network.blocks())
        return network
    with torch.device("meta"):
        network = case.network.build()
    case.recompute.apply(network.blocks())
    mesh = make_mesh("cpu", case.mesh)  # has contents, so nothing can be fake yet
    case.strategy.shard_over(network, mesh, case.precision)
    with mode:
        materialise(network, "cpu")
    return network


def _step(
    network: LanguageModel, optimizer: torch.optim.Optimizer, case: Case, watch: OperatorCounter
) -> int:
    """One optimizer step; returns the bytes of the gradients before the update."""
    count = min(case.micro_batches, 2)
    for index in range(count):
        case.strategy.begin_micro_batch(network, last=index == count - 1)
        watch.enter("embedding")
        loss = objective(network, case)
        watch.enter("head backward")
        loss.backward()  # type: ignore[no-untyped-call]
        del loss
        watch.enter("after backward")
    watch.enter("update")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    if case.clip:
        nn.utils.clip_grads_with_norm_(parameters, 1.0, norm, foreach=True)
    size = sum(tensor_bytes(g) for g in gradients)
    if not case.optimizer.traits.compiled:  # a compiled update holds nothing of its own
        _update(optimizer)
    return size


def _inputs(case: Case) -> tuple[Tensor, Readout[LossSum]]:
    tokens = torch.zeros(case.micro_batch, case.sequence + 1, dtype=torch.int64)
    targets = tokens[:, 1:].chunk(case.mesh.tensor, dim=1)[0]  # rank 0 scores the first positions
    return tokens, partial(case.loss, targets=targets)


def objective(network: LanguageModel, case: Case) -> Tensor:
    """What a micro-batch contributes to the loss of its step."""
    tokens, readout = _inputs(case)
    with autocast(case.precision):
        sums = network(tokens[:, :-1], readout)
    loss: Tensor = sums.objective / tokens[:, 1:].numel()
    return loss


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The state after a first update, on gradients of zero: from then on it exists."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    _update(optimizer)
    optimizer.zero_grad(set_to_none=True)
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [part for value in values if isinstance(value, Tensor) for part in pieces(value)]


def _update(optimizer: torch.optim.Optimizer) -> None:
    with MadeUpNumbers():  # nothing else reads any, and a mode costs every operator inside it
        optimizer.step()


def autocast(precision: str) -> torch.autocast:
    """The precision plugin of the Trainer in forward."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision.endswith("mixed"))


def default_dtype(precision: str) -> AbstractContextManager[Any]:
    """What Lightning does around construction and forward where everything is bf16."""
    plugin = HalfPrecision("bf16-true") if precision == "bf16-true" else Precision()
    return plugin.module_init_context()


_SHALLOW = 3


def at_depth(case: Case) -> Measured:
    """What ``simulate`` would measure, from two shallow networks where that is cheaper."""
    config: Any = case.network
    layers = getattr(config, "layers", 0)
    period = case.recompute.period
    low = max(_SHALLOW, period)
    low += (layers - low) % period  # so that it ends like the deep one, a whole period apart
    high = low + period
    if layers <= high:
        return simulate(case)
    small, large = (simulate(replace(case, network=replace(config, layers=n))) for n in (low, high))
    return _line(small, large, (layers - low) / period)


class Scaled:
    """A case at every micro-batch, simulated at two.

    Args:
        case: its own micro-batch does not matter.
    """

    def __init__(self, case: Case) -> None:
        self._simulated = cache(lambda size: at_depth(replace(case, micro_batch=size)))
        # A loss in chunks is affine from its first full chunk on.
        chunk = getattr(case.loss, "chunk_tokens", 1)
        self._first = math.ceil(chunk / case.sequence)

    def at(self, micro_batch: int) -> Measured:
        """What a step with ``micro_batch`` samples would take."""
        if micro_batch < self._first:
            return self._simulated(micro_batch)
        small, large = self._simulated(self._first), self._simulated(2 * self._first)
        return _line(small, large, (micro_batch - self._first) / self._first)


def peak(found: Measured) -> tuple[str, float]:
    """The phase with the largest peak, and its bytes."""
    phases = {key: size for key, size in found.items() if key.startswith("peak ")}
    phase = max(phases, key=lambda key: phases[key])
    return phase.removeprefix("peak "), phases[phase]


def _line(at_zero: Measured, at_one: Measured, x: float) -> Measured:
    keys = at_zero.keys() & at_one.keys()
    return {key: at_zero[key] + x * (at_one[key] - at_zero[key]) for key in keys}
