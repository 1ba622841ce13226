"""Replicas that train alone for a while, then agree: little communication for slow networks.

A replica takes ``every`` optimizer steps on its own share of the global batches. Its gradients and
its optimizer state meet no other's: nothing is wrapped, nothing is reduced. After the last of those
steps comes one all-reduce of fp32 differences, and an outer update of what was agreed on before::

    d <- mean over replicas of (start - weights)     start: the weights they all began with
    m <- momentum m + d
    agreed <- agreed - rate (d + momentum m)         Nesterov; without momentum: - rate d

and every replica goes on from ``agreed``. With rate 1 and momentum 0 that is the mean of the
weights (McMahan et al., arXiv:1602.05629; Stich, arXiv:1805.09767); with 0.7 and 0.9 it is DiLoCo
(Douillard et al., arXiv:2311.08105).

The agreed weights stay in fp32 whatever the dtype of the network: under bf16-true what rounding
takes from a start is not lost. They cost 4 bytes a parameter, the momentum 4 more; the differences
take the place of the gradients, which are freed before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from llm_train.context import Context, StrategyTraits
from llm_train.errors import ConfigError, check_at_least
from llm_train.model.network.init import canonical_name
from llm_train.trainer.strategy.base import Strategy
from llm_train.trainer.strategy.cost import Compared, StateBytes, Transfer, Workload
from llm_train.trainer.strategy.mesh import MeshShape, World
from llm_train.trainer.strategy.replicas import Copies
from llm_train.units import nearest

if TYPE_CHECKING:
    from llm_train.checkpoint.rank_state import RankState


class LocalSGD(Strategy, DDPStrategy):
    """Independent replicas whose weights are averaged every so many optimizer steps.

    The inner batch, of which a replica's gradient is the mean, is batch.tokens / ranks; learning
    rate and clipping act on that. With ignored targets it is the mean over the replica's own that
    count. The logged loss is that of the global batch, the logged norm the mean of the replicas'.

    Args:
        every: optimizer steps between two averagings; those at its multiples end with one.
        outer_learning_rate: how far to go from the last agreed weights to the replicas' mean; 1 is
            all the way.
        outer_momentum: Nesterov momentum of that move; 0 is none.
        timeout_minutes: how long a collective may wait for a rank.
    """

    state_format = "replicas"
    also_reads = ("dcp",)

    def __init__(
        self,
        every: int,
        outer_learning_rate: float = 1.0,
        outer_momentum: float = 0.0,
        timeout_minutes: float = 30.0,
    ) -> None:
        super().__init__(timeout=timedelta(minutes=timeout_minutes))
        self.every = every
        self.outer_learning_rate = outer_learning_rate
        self.outer_momentum = outer_momentum
        check_at_least(self, 1, "every", hint=" optimizer step")
        check_at_least(self, 0, "outer_momentum", below=1, hint="; 0 is none, DiLoCo takes 0.9")
        if outer_learning_rate <= 0:
            given = f"outer_learning_rate={outer_learning_rate}"
            raise ConfigError(f"{given} must be above 0; 1 is the mean, DiLoCo takes 0.7")
        self._outer: Outer | None = None
        self._aside: list[Tensor] = []

    def traits(self, ranks: int) -> StrategyTraits:
        """Replicas have weights of their own between two averagings."""
        return StrategyTraits(name=type(self).__name__, one_model=False, hides_gradients=True)

    def problems(self, context: Context) -> Iterator[str]:
        """Somebody to agree with, and lengths that end with an agreement."""
        if context.ranks == 1:
            yield (
                "trainer.strategy=LocalSGD has nobody to agree with on 1 rank; start several with "
                "torchrun or trainer.devices, or write trainer.strategy=auto"
            )
        for key, length in context.lengths.items():
            steps = length.steps(context.derived.tokens_per_step)
            if steps % self.every:
                shown = str(length) if length.unit == "steps" else f"{length} = {steps} steps"
                yield (  # the replicas would not agree on the weights then
                    f"{key}={shown} is not a multiple of trainer.strategy.init_args.every="
                    f"{self.every}; nearest: {nearest(steps, self.every)} steps"
                )

    def configure_ddp(self) -> None:
        """Wraps nothing: that is what would reduce gradients."""

    def setup(self, trainer: Any) -> None:
        """Remembers the weights that all replicas begin with, when a run is about to train."""
        super().setup(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            self._outer = Outer(self.task.network, momentum=self.outer_momentum > 0)

    @property
    def outer(self) -> Outer:
        """What the replicas agree by."""
        assert self._outer is not None, "setup() comes first"
        return self._outer

    def loss_normaliser(self, valid: Tensor, slots: int) -> Tensor:
        """This replica's own: asking the others would be communication at each step."""
        return slots / self.world_size / valid.clamp(min=1)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        """Updates this replica, then agrees with the others if it is time.

        The step counts from the start of the run, so that a resumed one agrees at the same steps.
        """
        result = super().optimizer_step(*args, **kwargs)
        if (self.task.trainer.global_step + 1) % self.every == 0:
            self.outer.agree(self.outer_learning_rate, self.outer_momentum)
        return result

    def copies(self) -> Copies | None:
        """The agreed weights, their momentum, and persistent buffers."""
        network = self.task.network
        own = {canonical_name(name) for name, _ in network.named_parameters()}
        buffers = {key: t for key, t in network.state_dict().items() if key not in own}
        return Copies(self.outer.tensors() | buffers) if self.world_size > 1 else None

    # --- scoring ----------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Scores what was last agreed on, if a callback ends a run between two averagings."""
        step = self.task.trainer.global_step
        if self._outer is not None and step % self.every:
            self._aside = [parameter.detach().clone() for parameter in self._outer.parameters]
            self._outer.impose()

    def on_validation_end(self) -> None:
        """Gives the replica its own weights back."""
        if self._outer is not None and self._aside:
            self._outer.impose(self._aside)
            self._aside = []

    # --- checkpoints ------------------------------------------------------------------------------

    def state(self) -> RankState:
        """The agreed weights as of every strategy, and what replicas differ in.

        A signal may come at any step, so each replica's weights and optimizer state are kept too,
        under ``replica-RANK``, and the momentum under ``outer``.
        """
        from llm_train.checkpoint import tensors

        network = self.task.network
        agreed = tensors.model_tensors(network) | self.outer.tensors()
        return tensors.state(network, self.optimizers[0], own=self._own, shared=agreed)

    def load_state(self, directory: Path, *, with_optimizer: bool) -> None:
        """Reads its own replica, or lets all begin with what another strategy wrote."""
        from llm_train.checkpoint import dcp, tensors

        network = self.task.network
        optimizer = self.optimizers[0] if with_optimizer else None
        if any(key.startswith(self._own) for key in dcp.keys(directory)):
            agreed = self.outer.tensors()
            tensors.load(directory, network, optimizer, own=self._own, shared=agreed)
        else:
            tensors.load(directory, network, optimizer)
            self.outer.begin()

    # --- cost -------------------------------------------------------------------------------------

    @classmethod
    def candidates(cls, world: World) -> Iterator[Self]:
        """Nothing: who looks for a faster way to the same losses does not want other ones."""
        yield from ()

    @classmethod
    def compared(cls, ranks: int) -> Iterator[Compared]:
        """Agreement after every step, which is still not what one process computes."""
        yield Compared(name=cls.__name__.lower(), arguments={"every": 1}, same=False)

    def described(self, mesh: MeshShape) -> str:
        """The class, and how often replicas agree."""
        return f"{type(self).__name__}, every {self.every} steps"

    def state_bytes(self, work: Workload, mesh: MeshShape) -> StateBytes:
        """Everything, and the agreed weights in fp32, with as much again for a momentum."""
        agreed = (8 if self.outer_momentum else 4) * sum(work.elements())
        return replace(super().state_bytes(work, mesh), agreed=agreed)

    def transfers(self, work: Workload, mesh: MeshShape) -> list[Transfer]:
        """One all-reduce of fp32 differences in ``every`` steps."""
        size = 4 * sum(work.elements()) / self.every
        return [Transfer.on(mesh, "all-reduce", "replicate", size, 1 / self.every)]

    @property
    def _own(self) -> str:
        return f"replica-{self.global_rank:05d}."


class Outer:
    """The weights that replicas last agreed on, in one flat buffer, and how they agree again.

    Args:
        network: its trainable parameters are agreed on; the others stay what they are.
        momentum: whether there will be any.
    """

    def __init__(self, network: nn.Module, *, momentum: bool) -> None:
        named = {canonical_name(n): p for n, p in network.named_parameters() if p.requires_grad}
        self.names = list(named)
        self.parameters: list[Tensor] = list(named.values())
        size = sum(parameter.numel() for parameter in self.parameters)
        device = self.parameters[0].device
        self.agreed = torch.empty(size, dtype=torch.float32, device=device)
        self.momentum = torch.zeros_like(self.agreed) if momentum else None
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        """Takes the present weights, the same on all replicas, for agreed on."""
        torch._foreach_copy_(self._pieces(self.agreed), self.parameters)

    @torch.no_grad()
    def impose(self, weights: list[Tensor] | None = None) -> None:
        """Puts ``weights``, or else the agreed ones, into the network, rounded to its dtype."""
        torch._foreach_copy_(self.parameters, weights or self._pieces(self.agreed))

    @torch.no_grad()
    def agree(self, learning_rate: float, momentum: float) -> None:
        """One outer update; one collective."""
        difference = torch.empty_like(self.agreed)
        buffers = map(self._pieces, (difference, self.agreed))
        for piece, agreed, parameter in zip(*buffers, self.parameters, strict=True):
            # The replica began with the agreed weight as its dtype rounds it.
            piece.copy_(agreed.to(parameter.dtype)).sub_(parameter)
        dist.all_reduce(difference)
        difference /= dist.get_world_size()
        if self.momentum is not None:
            self.momentum.mul_(momentum).add_(difference)
            difference.add_(self.momentum, alpha=momentum)
        self.agreed.sub_(difference, alpha=learning_rate)
        self.impose()

    def tensors(self) -> dict[str, Tensor]:
        """Views for checkpoints: the agreed weights under the names that every strategy uses."""
        named = zip(self.names, self._pieces(self.agreed), strict=True)
        found = {f"model.{name}": piece for name, piece in named}
        if self.momentum is not None:
            named = zip(self.names, self._pieces(self.momentum), strict=True)
            found |= {f"outer.{name}": piece for name, piece in named}
        return found

    def _pieces(self, buffer: Tensor) -> list[Tensor]:
        """Views of a flat ``buffer`` in the shapes of the parameters."""
        flat = torch.split(buffer, [parameter.numel() for parameter in self.parameters])
        return [piece.view_as(p) for piece, p in zip(flat, self.parameters, strict=True)]
