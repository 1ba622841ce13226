"""The LightningModule: it connects the parts and contains no mathematics of its own.

What is unusual here: a micro-batch's loss is divided by its number of target slots, and a step's
gradient is rescaled once if some of them do not count; the learning rate is set from the step
number instead of by a stateful scheduler; gradients are clipped here, not by Lightning's precision
plugin; and nothing is logged with ``self.log`` while training, because each call costs host time
and a synchronisation. Metrics gather on the device in ``run_state.sums`` until a log point.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from llm_train.checkpoint.loop_position import enter_stage
from llm_train.context import Context, Part
from llm_train.derived import Derived
from llm_train.model.construction import CompileUnit, Construction, Float8
from llm_train.model.learning_rate import LearningRates
from llm_train.model.lightning_shortcuts import Trimmed
from llm_train.model.loss.base import Loss
from llm_train.model.loss.causal_lm import CausalLM
from llm_train.model.network import sdpa
from llm_train.model.network.base import Network
from llm_train.model.network.confined import NO_TARGET, DocumentView
from llm_train.model.network.flops import Counts
from llm_train.model.network.meta import without_memory
from llm_train.model.network.sdpa import Kernel
from llm_train.model.network.shadow import ShadowWeights
from llm_train.model.optimizer import in_backward
from llm_train.model.optimizer.base import Optimizer
from llm_train.model.optimizer.clipping import clip_by_norm
from llm_train.model.optimizer.in_backward import InBackward, UpdateTime
from llm_train.model.recompute.base import Recompute
from llm_train.model.recompute.none import NoRecompute
from llm_train.model.schedule.base import Schedule
from llm_train.model.scoring import Scoring
from llm_train.runtime.devices import KINDS
from llm_train.runtime.random_state import seed_generators
from llm_train.runtime.stopwatch import Stopwatch
from llm_train.trainer.loss_scaling import LossScaling


class Task(Part, Trimmed, Scoring):
    """Causal language modelling: next-token prediction on windows of tokens.

    Args:
        network: the architecture.
        optimizer: how parameters move.
        schedule: the learning rate over the run, as a factor on its peak.
        loss: what is minimised.
        recompute: what blocks keep between forward and backward.
        compile: blocks compiles each block with torch.compile; network compiles forward and loss as
            one graph (one device or ddp; no overlap of reductions with backward); graphs replays
            that graph through CUDA graphs (one GPU, one micro-batch a step); none compiles nothing.
        float8: how the blocks' linear layers scale operands of FP8 products; none: no FP8.
        attention: the one kernel that may compute attention on a GPU; auto tries cuDNN's first on
            Hopper and later, else FlashAttention, and takes the next one where the first cannot
            compute it; math (on any device) is plain operators, slow and twice differentiable.
        update: step waits for all gradients; backward updates each parameter as soon as its own
            gradient is there, and frees that gradient (no clipping, no accumulation; one device or
            fsdp).
        documents: joined reads a window as one text; in confined, attention and positions begin
            anew with each document, and the first token of one is no target.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Optimizer,
        schedule: Schedule,
        loss: Loss = CausalLM(),  # noqa: B008 - frozen
        recompute: Recompute = NoRecompute(),  # noqa: B008 - frozen
        compile: CompileUnit = "none",
        float8: Float8 = "none",
        attention: Kernel = "auto",
        update: UpdateTime = "step",
        documents: DocumentView = "joined",
    ) -> None:
        super().__init__()
        self.network_config = network
        self.loss = loss
        self._loss = loss
        self.optimizer_config = optimizer
        self.schedule = schedule
        self.construction = Construction(recompute=recompute, compile=compile, float8=float8)
        self.attention = attention
        self.update = update
        self.documents = documents
        self._in_backward: InBackward | None = None  # until there is an optimizer
        self._rates: LearningRates | None = None  # as well
        self._stop_wanted = False
        self._unmasked = True

    # --- configuration, wiring --------------------------------------------------------------------

    def parts(self) -> Iterator[Part]:
        """What is connected here."""
        yield from (self.network_config, self.loss, self.optimizer_config, self.schedule)
        yield from (self.construction.recompute, self.construction)

    def problems(self, context: Context) -> Iterator[str]:
        """Problems of ``attention`` and ``update``, which are plain words.

        Raises:
            ConfigError: the FLOPs of the network cannot be counted.
        """
        yield from sdpa.problems(self.attention, self.network_config, context)
        yield from in_backward.problems(context)
        if context.batch.sequence <= self.network_config.max_positions:
            self.counts.flops_per_token(context.batch.sequence)

    def bind(
        self,
        derived: Derived,
        *,
        unmasked: bool,
        token_bytes: Tensor | None,
        end_of_text: int = NO_TARGET,
    ) -> None:
        """Receives what follows from the settings and the data.

        Args:
            derived: the numbers of the run.
            unmasked: every training target counts, so that the divisor is known in advance.
            token_bytes: (vocab_size,) bytes of text each token stands for; None if unknown.
            end_of_text: the token after each document, where documents are kept apart.
        """
        self._derived = derived
        self._end_of_text = end_of_text
        self._unmasked = unmasked
        self._token_bytes = token_bytes

    @cached_property
    def counts(self) -> Counts:
        """Parameters and FLOPs of the network, counted on the meta device."""
        with without_memory():
            return Counts(self.network_config.build())

    def configure_model(self) -> None:
        """Builds the network and, where the strategy wants them, shadow weights for products."""
        if hasattr(self, "network"):
            return
        strategy = self.strategy
        network = self.construction.network(self.network_config, strategy, self.derived.seed)
        if strategy.shadow_dtype is not None:
            self._shadows = ShadowWeights(network, strategy.shadow_dtype)
        self._loss = self.construction.scorer(self.loss)
        self._score = self.construction.whole(self._plain_score)
        self.network = network

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Builds the optimizer and remembers each group's configured learning rate."""
        optimizer = self.optimizer_config.build(self.network.named_parameters())
        self._rates = LearningRates(self.schedule, self.derived, optimizer.param_groups)
        self._in_backward = InBackward(optimizer) if self.update == "backward" else None
        if self._shadows is not None:
            self._shadows.follow(optimizer)
        return optimizer

    def setup(self, stage: str) -> None:
        """Puts the accumulators and the clock on the device."""
        self.run_state.ledger.switch("start_up/network")  # which is built next
        device = self.trainer.strategy.root_device
        self.run_state.stopwatch = Stopwatch(device, self.run_state.ledger)
        wide = torch.float64 if KINDS[device.type].float64 else torch.float32
        self.run_state.sums = torch.zeros(2, dtype=wide, device=device)
        self._held_out_sums = torch.zeros(0, 3, dtype=wide, device=device)
        self._valid = torch.zeros((), dtype=torch.int64, device=device)
        if self._token_bytes is not None:
            self._token_bytes = self._token_bytes.to(device)

    def kernels(self, device: torch.device) -> AbstractContextManager[None]:
        """Context of a run, in which the configured kernel computes attention.

        It covers the whole run, since recomputation in backward must choose the same kernel.
        """
        return sdpa.attention_kernel(self.attention, device)

    def on_fit_start(self) -> None:
        """Seeds each rank on its own; a resume on as many ranks restores the saved state."""
        seed_generators(self.derived.seed, self.trainer.global_rank, self.trainer.global_step)
        self.run_state.ledger.switch("start_up/data")  # whose loaders start next

    def on_train_start(self) -> None:
        """Gives each group the rate of the first update, which callbacks may read before it."""
        assert self._rates is not None
        self._rates.set(self.trainer.optimizers[0].param_groups, self.trainer.global_step)

    # --- training ---------------------------------------------------------------------------------

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Objective of a micro-batch (B, T + 1) over its B T target slots; -1 marks no token."""
        derived, positions = self.derived, 0
        if derived.sequence_ramp.sequence:
            positions = derived.positions(self.trainer.global_step)
        inputs, targets, documents = self.split(batch.long(), positions)
        if not self._unmasked:
            targets = targets.masked_fill(targets < 0, self.loss.ignore_index)
            inputs = inputs.clamp(min=0)
        # Not self(...): hooks of the module's call tell DeepSpeed that a micro-batch begins; told
        # twice, it forgets in which order to prefetch.
        sums = self.forward(inputs, targets, documents)
        # float64 += float32, in place: no cast and no third tensor.
        self.run_state.sums[0].add_(sums.nats)
        self.run_state.sums[1].add_(sums.tokens)
        if not self._unmasked:
            self._valid += sums.tokens
        return sums.objective / inputs.numel()

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], object] | None = None,
    ) -> None:
        """Sets the learning rate, then runs the closure (the last micro-batch) and the update."""
        assert self._rates is not None
        self._rates.set(optimizer.param_groups, self.trainer.global_step)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def optimizer_zero_grad(
        self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer
    ) -> None:
        """Does nothing: our strategies free gradients after the update, not after a forward."""

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Records the global norm of the gradients and clips by it, on every strategy alike."""
        strategy = self.strategy
        if strategy.clips_gradients:
            return
        if self._in_backward is not None:  # each parameter has been updated and its gradient freed
            norm = self._in_backward.take_norm()
        else:
            scale = None
            if not self._unmasked:  # the ratio of target slots to valid ones stays on the device
                valid, self._valid = self._valid.float(), torch.zeros_like(self._valid)
                slots = self.derived.stage(self.trainer.global_step).tokens_per_step
                scale = strategy.loss_normaliser(valid, slots)
            groups, norm_of = optimizer.param_groups, strategy.gradient_norm
            norm = clip_by_norm(groups, gradient_clip_val, scale=scale, norm_of=norm_of)
            if isinstance(scaling := self.trainer.precision_plugin, LossScaling):
                norm = scaling.seen(norm)
        self.run_state.gradient_norm = norm
        self.run_state.judge()

    def on_train_batch_end(self, outputs: object, batch: Tensor, batch_idx: int) -> None:
        """Postpones any wish to stop to the end of the optimizer step; there the batch may change.

        Lightning stops between micro-batches; the gradients and sums of the others would be lost.
        """
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches:
            self._stop_wanted |= self.trainer.should_stop
            self.trainer.should_stop = False
            return
        if self._stop_wanted:
            self.trainer.should_stop = True
        enter_stage(self.trainer, self.derived, self.trainer.global_step)
