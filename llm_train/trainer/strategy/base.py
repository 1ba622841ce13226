"""What our strategies add to Lightning's: where weights are created, how state is saved and loaded.

A strategy is the only thing that knows how parameters are laid out over ranks, so it is asked to
shard the network, to give access to a full parameter, and to save and load state. The task and the
checkpoint callback call these methods and know nothing else about distribution.

A strategy is an object from the moment a configuration is parsed, whether it was written as a word
or as a class with arguments. It is made without a device and without packages that only a run
needs, so that ``check`` and ``plan`` can ask it about a thousand ranks on a laptop.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import Strategy as LightningStrategy
from torch import Tensor, nn, optim

from llm_train.context import Part, StrategyTraits
from llm_train.discovery import concrete
from llm_train.errors import ConfigError
from llm_train.model.network.base import LanguageModel
from llm_train.model.optimizer.clipping import global_norm
from llm_train.run_state import TaskBase, task_of
from llm_train.trainer.strategy.cost import Costed
from llm_train.trainer.strategy.mesh import MeshShape, World
from llm_train.trainer.strategy.replicas import Copies

if TYPE_CHECKING:
    from llm_train.checkpoint.rank_state import RankState


class Strategy(Costed, Part, LightningStrategy):
    """Base of our strategies, before Lightning's class: ``class X(Strategy, DDPStrategy)``."""

    words: ClassVar[tuple[str, ...]] = ()
    """What may be written instead of the class; each word stands for it with certain arguments."""

    clips_gradients = False
    """Whether the strategy's own engine clips and measures the gradient norm."""

    state_format = "dcp"
    """Format that ``state`` is written in; checkpoints of one format are interchangeable."""

    also_reads: tuple[str, ...] = ()
    """Further formats that ``load_state`` reads."""

    _timeout: timedelta | None = None  # Lightning's, where ranks wait for one another

    @property
    def timeout(self) -> timedelta | None:
        """How long a collective may wait for a rank; None where there is none."""
        return self._timeout

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Words are not inherited: they mean the class that declares them."""
        super().__init_subclass__(**arguments)
        cls.words = vars(cls).get("words", ())

    @classmethod
    def from_word(cls, word: str, world: World) -> Strategy:
        """The strategy that one of ``words`` means on the ranks of ``world``.

        Raises:
            ConfigError: the word means nothing on these ranks.
        """
        return cls()

    def validating(self, world: World) -> Strategy:
        """The strategy that scores a checkpoint of this one when nothing is trained."""
        return self

    def mesh_shape(self, ranks: int) -> MeshShape:
        """How ``ranks`` ranks share data and state; by default each of them holds everything.

        Raises:
            ConfigError: the ranks do not divide.
        """
        return MeshShape(replicas=ranks)

    @abstractmethod
    def traits(self, ranks: int) -> StrategyTraits:
        """What other parts need to know of this strategy on ``ranks`` ranks."""

    # --- construction -----------------------------------------------------------------------------

    @property
    def task(self) -> TaskBase:
        """The module that the Trainer connected."""
        assert self.lightning_module is not None, "the Trainer connects the module"
        return task_of(self.lightning_module)

    @property
    def shadow_dtype(self) -> torch.dtype | None:
        """Dtype of the shadow weights that matrix products read; None: none are needed."""
        low = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        return low.get(self.precision_plugin.precision)

    @property
    def parameter_device(self) -> torch.device:
        """Where parameters live between their uses: the host, where they are offloaded."""
        return self.root_device

    def shard(self, network: LanguageModel) -> None:
        """Distributes the parameters of ``network``, which have no memory yet.

        There is nothing to do where they are replicated.
        """

    def gathered(self, parameter: nn.Parameter) -> AbstractContextManager[Any]:
        """Context in which ``parameter`` may be overwritten in full."""
        return nullcontext()

    # --- a step -----------------------------------------------------------------------------------

    def reduce(
        self, tensor: Any, group: Any = None, reduce_op: dist.ReduceOp | str | None = "mean"
    ) -> Any:
        """Over ranks, in place, as Lightning's, but without the barrier that Lightning puts first.

        The host waits for the device in NCCL's barrier, whereas the reduction is only enqueued.
        """
        if not isinstance(tensor, Tensor) or not (dist.is_available() and dist.is_initialized()):
            return tensor
        mean = reduce_op in ("mean", "avg")  # gloo has none
        if isinstance(reduce_op, str):
            reduce_op = getattr(dist.ReduceOp, "SUM" if mean else reduce_op.upper())
        dist.all_reduce(tensor, op=reduce_op, group=group)
        return tensor.copy_(tensor / dist.get_world_size(group)) if mean else tensor

    def loss_normaliser(self, valid: Tensor, slots: int) -> Tensor:
        """Ratio of target slots to valid targets over all samples of a gradient's mean.

        A micro-batch's loss is divided by its slots, since the number of valid targets of a step is
        known only at its end; this factor turns the sum into the mean over valid targets.

        Args:
            valid: targets of this rank in this step that count.
            slots: targets of the step over all ranks, whether they count or not.
        """
        total = torch.as_tensor(self.reduce(valid, reduce_op="sum"))
        return slots / total.clamp(min=1)

    def own_targets(self, targets: Tensor) -> Tensor:
        """The part of the targets (B, T) of a micro-batch that this rank scores."""
        return targets

    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Global norm of the gradients, however they are sharded."""
        return global_norm(gradients)

    def reshard(self) -> None:
        """Frees whatever parameters a forward has left gathered; the shards hold their values."""

    def optimizer_step(self, optimizer: optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        """Updates, then frees the gradients, so that they take no memory in the next forward."""
        result = super().optimizer_step(optimizer, *args, **kwargs)
        optimizer.zero_grad(set_to_none=True)
        return result

    def copies(self) -> Copies | None:
        """What must be the same on several ranks; None where nothing is, or it is made anew."""
        return None

    def require_equal_replicas(self) -> None:
        """Compares them, with one reduction and one wait for the device.

        Raises:
            LLMTrainError: they differ; on all ranks.
        """
        if (copies := self.copies()) is not None:
            summed = self.reduce(copies.packed(self.root_device), reduce_op="sum")
            copies.require_equal(summed.tolist(), self.task.trainer.global_step)

    # --- checkpoints ------------------------------------------------------------------------------

    def state(self) -> RankState:
        """Parameters and optimizer state, as far as this rank writes them; nothing is copied."""
        from llm_train.checkpoint import tensors  # imports torch's DTensors

        self.reshard()
        return tensors.state(self.task.network, self.optimizers[0])

    def load_state(self, directory: Path, *, with_optimizer: bool) -> None:
        """Reads what was written of ``state`` into the live parameters and optimizer.

        Raises:
            CheckpointError: names, shapes or format do not fit.
        """
        from llm_train.checkpoint import tensors

        self.reshard()
        optimizer = self.optimizers[0] if with_optimizer else None
        tensors.load(directory, self.task.network, optimizer)


def require_strategy(strategy: object) -> Strategy:
    """``strategy``, if it can place weights and write state.

    Raises:
        ConfigError: it cannot.
    """
    if isinstance(strategy, Strategy):
        return strategy
    written = f"trainer.strategy={type(strategy).__name__}"
    raise ConfigError(f"{written} cannot place weights or save state; use one of {_names()}")


def known_words() -> list[str]:
    """Every word that ``trainer.strategy`` takes."""
    return ["auto", *(word for kind in _known() for word in kind.words)]


def from_word(word: str, world: World) -> Strategy:
    """The strategy that ``word`` means; auto is the plainest that can use all ranks.

    Raises:
        ConfigError: no strategy answers to the word, or it means nothing on these ranks.
    """
    wanted = ("ddp" if world.ranks > 1 else "single") if word == "auto" else word
    for kind in _known():
        if wanted in kind.words:
            return kind.from_word(wanted, world)
    raise ConfigError(
        f"trainer.strategy={word} is not one of {', '.join(known_words())}; for options write "
        f"class_path and init_args of one of {_names()}"
    )


def _known() -> list[type[Strategy]]:
    # mypy takes every type[...] for something to construct.
    return concrete(Strategy)  # type: ignore[type-abstract]


def _names() -> str:
    return ", ".join(kind.__name__ for kind in _known())
