"""DeepSpeed ZeRO stages 1, 2 and 3, on GPUs and, through DeepSpeed's CPU accelerator, on CPUs.

Lightning's DeepSpeedStrategy refuses CPUs by two guards and by one argument; three overrides remove
them and fall through to Lightning on CUDA. DeepSpeed owns accumulation and clipping;
checkpoints are in the format of all other strategies (``zero_state``).

Offloading uses the configured torch optimizer, not DeepSpeed's CPU Adam: torch's fused AdamW has a
kernel for CPUs as well, needs no compiler on the machine, and keeps the same state.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import nn

from llm_train.context import Context, StrategyTraits
from llm_train.model.network.base import LanguageModel
from llm_train.model.network.meta import allocate
from llm_train.trainer.strategy import zero_config
from llm_train.trainer.strategy.base import Strategy, from_word
from llm_train.trainer.strategy.mesh import MeshShape, World
from llm_train.trainer.strategy.zero_config import BUCKET, import_deepspeed
from llm_train.trainer.strategy.zero_cost import StageCost

Device = Literal["none", "cpu"]

if TYPE_CHECKING:
    from llm_train.checkpoint.rank_state import RankState


class ZeRO(StageCost, Strategy, DeepSpeedStrategy):
    """Optimizer state (1), gradients (2) or parameters (3) sharded by DeepSpeed.

    Args:
        stage: 1, 2 or 3 (Rajbhandari et al., arXiv:1910.02054).
        offload_optimizer: where masters and optimizer state live and are updated: none leaves them
            on the device, cpu is host memory (arXiv:2101.06840). Give each rank its share of the
            cores: OMP_NUM_THREADS.
        offload_parameters: where the shards of parameters wait until they are needed (stage 3).
        reduce_bucket_size: numbers that are reduced together.
        allgather_bucket_size: numbers that are gathered together (stages 1 and 2).
        overlap_comm: reduce gradients while backward goes on, in a second buffer.
        contiguous_gradients: copy gradients to one buffer as they come, against fragmentation.
        sub_group_size: numbers that are updated together (stage 3); 0 is all at once.
        hpz_partition_size: ranks that share a second copy of the parameters, from which backward
            gathers (stage 3; arXiv:2306.10209): the devices of a node. 1 is no second copy.
        config: what else DeepSpeed is told, under its own names: sections zero_optimization
            and comms_logger; communication_data_type, prescale_gradients, wall_clock_breakdown and
            memory_breakdown.
        timeout_minutes: how long a collective may wait for a rank.
    """

    words = ("zero1", "zero2", "zero3")
    clips_gradients = True

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 2,
        offload_optimizer: Device = "none",
        offload_parameters: Device = "none",
        reduce_bucket_size: int = BUCKET,
        allgather_bucket_size: int = BUCKET,
        overlap_comm: bool = True,
        contiguous_gradients: bool = True,
        sub_group_size: int = 0,
        hpz_partition_size: int = 1,
        config: dict[str, Any] = {},  # noqa: B006 - never changed
        timeout_minutes: float = 30.0,
    ) -> None:
        # Not DeepSpeedStrategy's, which imports deepspeed: that waits for ``setup_environment``.
        super(DeepSpeedStrategy, self).__init__(timeout=timedelta(minutes=timeout_minutes))
        self.stage = stage
        self.offload_optimizer = offload_optimizer
        self.offload_parameters = offload_parameters
        self.reduce_bucket_size = reduce_bucket_size
        self.allgather_bucket_size = allgather_bucket_size
        self.overlap_comm = overlap_comm
        self.contiguous_gradients = contiguous_gradients
        self.sub_group_size = sub_group_size
        self.hpz_partition_size = hpz_partition_size
        self.more = config
        zero_config.check_sizes(self)

    @classmethod
    def from_word(cls, word: str, world: World) -> ZeRO:
        """The last letter is the stage."""
        stage: Any = int(word[-1])
        return cls(stage=stage)

    def validating(self, world: World) -> Strategy:
        """Another: DeepSpeed's engine needs an optimizer, and FSDP takes no more memory."""
        return from_word("fsdp" if world.ranks > 1 else "single", world)

    def mesh_shape(self, ranks: int) -> MeshShape:
        """All ranks share one copy of what the stage shards."""
        return MeshShape(shards=ranks)

    def traits(self, ranks: int) -> StrategyTraits:
        """The engine reduces and updates flat fragments of the parameters."""
        name = type(self).__name__
        return StrategyTraits(
            name=name, flattens=True, communicates_between_blocks=True, hides_gradients=True
        )

    def problems(self, context: Context) -> Iterator[str]:
        """What DeepSpeed's engine does on its own, and where it cannot offload."""
        yield from zero_config.problems(self.more, self.stage, context)
        if context.precision == "bf16-true":
            # DeepSpeed keeps fp32 masters, which is what bf16-mixed promises.
            yield "trainer.precision=bf16-true keeps fp32 weights under ZeRO; write bf16-mixed"
        if context.float8 != "none":
            # DeepSpeed casts weights itself.
            yield f"model.float8={context.float8} does not work under ZeRO; write none, or use fsdp"
        if not context.unmasked:
            # DeepSpeed reduces before they are counted.
            yield "data.source or model.loss ignores targets, which ZeRO cannot; use ddp or fsdp"
        yield from zero_config.optimizer_problems(self.stage, context)
        yield from zero_config.offload_problems(vars(self), context)
        yield from zero_config.partition_problems(vars(self), context.ranks)

    # --- three overrides for the CPU --------------------------------------------------------------

    @property
    def shadow_dtype(self) -> torch.dtype | None:
        """None: the engine keeps its parameters in the low precision."""
        return None

    def setup_environment(self) -> None:
        """Skips the guard that admits CUDA only."""
        self._complete()
        if self._on_cuda:
            super().setup_environment()
        else:
            super(DeepSpeedStrategy, self).setup_environment()

    def _complete(self) -> None:
        """Completes the constructor; what the Trainer has connected meanwhile stays."""
        import_deepspeed(self.root_device.type)
        connected = dict(vars(self))
        super().__init__(
            zero_optimization=True,
            stage=self.stage,
            offload_optimizer=self.offload_optimizer != "none",
            offload_optimizer_device=self.offload_optimizer,
            offload_parameters=self.offload_parameters != "none",
            offload_params_device=self.offload_parameters,
            remote_device=None if self.offload_parameters == "none" else self.offload_parameters,
            pin_memory=True,
            reduce_bucket_size=self.reduce_bucket_size,
            allgather_bucket_size=self.allgather_bucket_size,
            overlap_comm=self.overlap_comm,
            contiguous_gradients=self.contiguous_gradients,
            sub_group_size=self.sub_group_size or 10**12,
            logging_level=logging.WARNING,
            logging_batch_size_per_gpu=1,
        )
        vars(self).update(connected)
        assert isinstance(self.config, dict)
        if self.hpz_partition_size > 1:
            own = {"zero_hpz_partition_size": self.hpz_partition_size}
            self.config["zero_optimization"] |= own
        mixed = self.precision_plugin.precision == "bf16-mixed"
        self.config = zero_config.completed(self.config, self.more, mixed=mixed)

    def setup_distributed(self) -> None:
        """Makes the process group as DDP does, bound to its device; DeepSpeed takes it over.

        A group of DeepSpeed's own is not bound where there is one rank, and its barriers guess.
        """
        super(DeepSpeedStrategy, self).setup_distributed()
        self._init_deepspeed_distributed()

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Any, lr_scheduler: Any = None
    ) -> tuple[Any, Any]:
        if self._on_cuda:
            return super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)
        import deepspeed

        engine, wrapped, _, _ = deepspeed.initialize(
            config=self.config,
            model=model,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            dist_init_required=False,
        )
        return engine, wrapped

    # --- placement --------------------------------------------------------------------------------

    @contextmanager
    def model_sharded_context(self) -> Generator[None, None, None]:
        """Nothing: Lightning would hold it over initialisation, where it rounds to bfloat16."""
        yield

    def shard(self, network: LanguageModel) -> None:
        """Stage 3: a block exists whole, then each rank keeps its part; at last what is no block's.

        Not ``zero.Init`` around construction: it makes every tensor bfloat16, tables of positions
        included, and leaves buffers on the host.
        """
        if self.stage < 3:
            return
        import deepspeed

        self._init_config_if_needed()
        mixed = self.precision_plugin.precision == "bf16-mixed"
        shared: dict[str, Any] = {}  # by the parts: the group of hpZ
        for block in network.blocks():
            # Gathered as one, outside what is recomputed: torch refuses a recomputation in which
            # hooks inside a block gather at other places than they did in forward.
            deepspeed.utils.set_z3_leaf_module(block, True)
        for part in (*network.blocks(), network):
            allocate(part, self.root_device, torch.bfloat16 if mixed else torch.float32)
            made = deepspeed.zero.Init(
                module=part,
                remote_device=self.remote_device,
                config_dict_or_path=self.config,
                **shared,
            )
            shared["zero_param_parallel_group"] = made.zero_param_process_group

    def gathered(self, parameter: nn.Parameter) -> AbstractContextManager[Any]:
        """Stage 3: the full parameter on every rank, written back from rank 0."""
        if self.stage < 3:
            return nullcontext()
        import deepspeed

        context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
            [parameter], modifier_rank=0
        )
        return context

    def setup(self, trainer: Any) -> None:
        """Silences the reminder that our clipping hook is not used: we read DeepSpeed's norm."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*DeepSpeed handles gradient clipping.*")
            super().setup(trainer)

    def backward(self, closure_loss: Any, *args: Any, **kwargs: Any) -> Any:
        """Takes back Lightning's division by the accumulation: DeepSpeed divides by it as well.

        Adam hides the difference, clipping does not: every gradient would be too small by that
        factor.
        """
        accumulation = self.task.trainer.accumulate_grad_batches
        return super().backward(closure_loss * accumulation, *args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        """Leaves the gradients to the engine, then publishes the norm it clipped by."""
        engine, run = self.deepspeed_engine, self.task.run_state
        before = engine.global_steps
        result = super(Strategy, self).optimizer_step(*args, **kwargs)
        norm = engine.get_global_grad_norm()
        if norm is not None and engine.global_steps > before:  # a step's last micro-batch
            run.gradient_norm = torch.as_tensor(norm)
            run.judge()
        return result

    def state(self) -> RankState:
        """This rank's fragments of masters and moments."""
        from llm_train.trainer.strategy import zero_state

        holder = zero_state.holder(self.optimizers[0], self.stage)
        return zero_state.state(self.task.network, holder)

    def load_state(self, directory: Path, *, with_optimizer: bool) -> None:
        """Reads this rank's fragments, whatever strategy on however many ranks wrote them."""
        from llm_train.trainer.strategy import zero_state

        holder = zero_state.holder(self.optimizers[0], self.stage)
        zero_state.load(directory, self.task.network, holder, with_optimizer=with_optimizer)

    @property
    def _on_cuda(self) -> bool:
        return self.root_device.type == "cuda"
