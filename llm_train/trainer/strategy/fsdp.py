"""Fully sharded data parallelism through torch's ``fully_shard``, on GPUs and on CPUs.

Built on Lightning's ModelParallelStrategy, because its FSDPStrategy cannot clip by norm, reduces in
bf16 under mixed precision and refuses CPUs. Two things are different from stock: the mixed
precision policy keeps fp32 master weights and reduces in fp32, and gradients are reduced on the
last micro-batch of a step only. Without resharding after forward, parameters are also gathered, and
cast, once a step: they stay gathered from the first micro-batch to the last.

One class for full, hybrid and tensor-parallel sharding: they are sizes of one mesh
(``sharding.py``).
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, Self

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from llm_train.context import Context, StrategyTraits
from llm_train.errors import ConfigError
from llm_train.model.network.base import LanguageModel
from llm_train.trainer.strategy import deterministic
from llm_train.trainer.strategy.base import Strategy
from llm_train.trainer.strategy.cost import Compared
from llm_train.trainer.strategy.fsdp_cost import MeshCost
from llm_train.trainer.strategy.mesh import MeshShape, World
from llm_train.trainer.strategy.replicas import Copies

_KEY = "trainer.strategy.init_args"


class FSDP(MeshCost, Strategy, ModelParallelStrategy):
    """Parameters, gradients and optimizer state sharded over ranks (ZeRO-3 in torch's own way).

    Args:
        reshard_after_forward: free gathered parameters between forward and backward. Off, they are
            kept and gathered once an optimizer step: more memory, less communication (ZeRO-2).
        replicas: copies of the sharded state (hybrid sharding): parameters are gathered within a
            copy, gradients also reduced between copies. Usually the number of nodes.
        tensor: ranks that compute one sample together, each with a part of every matrix and a part
            of the positions (tensor and sequence parallelism). Neighbouring ranks; at most the
            devices of a node, since they talk in every layer.
        offload: keep shards, gradients and optimizer state in host memory and update them there.
        reduction: fast, or deterministic: gradients are summed in the order of one process, so that
            any number of ranks gives the same bits. They are reduced after every micro-batch, and
            gathered for their norm, so it is slow: for verification.
        timeout_minutes: how long a collective may wait for a rank.
    """

    words = ("fsdp", "hsdp", "tp")

    def __init__(
        self,
        reshard_after_forward: bool = True,
        replicas: int = 1,
        tensor: int = 1,
        offload: bool = False,
        reduction: deterministic.Reduction = "fast",
        timeout_minutes: float = 30.0,
    ) -> None:
        super().__init__(timeout=timedelta(minutes=timeout_minutes))
        self.reshard_after_forward = reshard_after_forward
        self.replicas = replicas
        self.tensor = tensor
        self.offload = offload
        self.reduction = reduction
        self._shards: deterministic.Shards | None = None

    @classmethod
    def from_word(cls, word: str, world: World) -> Self:
        """``fsdp`` shards over all ranks, ``hsdp`` within each node, ``tp`` cuts over a node."""
        if word == "hsdp":
            if world.nodes == 1:
                raise ConfigError("trainer.strategy=hsdp on one node is fsdp; write fsdp")
            return cls(replicas=world.nodes)
        if word == "tp" and world.devices == 1:
            raise ConfigError("trainer.strategy=tp on one device has nothing to cut; write single")
        return cls(tensor=world.devices if word == "tp" else 1)

    def mesh_shape(self, ranks: int) -> MeshShape:
        """The ranks that neither hold copies nor share samples share the shards."""
        return MeshShape.of(ranks, replicas=self.replicas, tensor=self.tensor)

    def traits(self, ranks: int) -> StrategyTraits:
        """A block's gradients are reduced at once; vectors stay whole on each tensor rank."""
        return StrategyTraits(
            name=type(self).__name__,
            tensor=self.tensor,
            weight_replicas=self.replicas * self.tensor,
            communicates_between_blocks=True,
            final_in_backward=True,
            hides_gradients=True,
            dtensors=True,
        )

    def problems(self, context: Context) -> Iterator[str]:
        """Sizes of the mesh against ranks and nodes, and what its options rule out."""
        shape = self.mesh_shape(context.ranks)
        if shape.replicas > 1 and shape.shards == shape.tensor == 1:
            yield f"{_KEY}.replicas={shape.replicas} leaves nothing to shard; use ddp, or fewer"
        if context.devices % shape.tensor:
            # Its ranks talk in every layer, which is too slow between nodes.
            devices = f"the {context.devices} devices of a node"
            yield f"{_KEY}.tensor={shape.tensor} does not divide {devices}; use a divisor"
        if shape.tensor > 1 and context.float8 != "none":
            with_tensor = f"does not work with tensor={shape.tensor}"
            yield f"model.float8={context.float8} {with_tensor}; write none, or tensor=1"
        if self.offload:
            yield from self._offload_problems(context)
        if self.reduction != "fast":
            yield from self._deterministic_problems(context)

    def _offload_problems(self, context: Context) -> Iterator[str]:
        key = f"{_KEY}.offload=true"
        if context.accelerator.type == "cpu":
            yield f"{key} has no effect on a CPU, where all memory is the host's; remove it"
        if not context.optimizer.on_host:
            slow = f"model.optimizer={context.optimizer.name} cannot update on the host"
            yield f"{slow}, as {key} asks; use AdamW, or offload=false"
        if context.update == "backward":
            # Their copies to the host are awaited when backward is over.
            early = (
                "model.update=backward would use gradients that are still on their way to the host"
            )
            yield f"{early}, as {key} asks; write model.update=step, or offload=false"

    def _deterministic_problems(self, context: Context) -> Iterator[str]:
        plain = {"replicas": 1, "tensor": 1, "offload": False}  # else there are sums elsewhere too
        for name, value in plain.items():
            if (written := getattr(self, name)) != value:
                refused = f"{_KEY}.{name}={written} does not work with {deterministic.KEY}"
                yield f"{refused}; leave {name} out, or set reduction: fast"
        yield from deterministic.problems(context, shards=True)

    @property
    def shadow_dtype(self) -> torch.dtype | None:
        """None: fully_shard casts while it gathers."""
        return None

    @property
    def parameter_device(self) -> torch.device:
        """Where shards are: the device, or host memory."""
        return torch.device("cpu") if self.offload else self.root_device

    def setup_environment(self) -> None:
        """Makes our mesh instead of Lightning's, which has no dimension for replicas."""
        if self.offload and self.root_device.type == "cuda":
            # Norms of gradients in host memory are reduced there.
            self._process_group_backend = "cpu:gloo,cuda:nccl"
        super(ModelParallelStrategy, self).setup_environment()
        self._setup_distributed()
        from llm_train.trainer.strategy.sharding import make_mesh

        self._device_mesh = make_mesh(self.root_device.type, self.mesh_shape(self.world_size))

    def model_to_device(self) -> None:
        """Nothing: everything is where it belongs since its construction."""

    def shard(self, network: LanguageModel) -> None:
        """Cuts the network over the mesh."""
        self.shard_over(network, self.device_mesh, self.precision_plugin.precision)
        if self.reduction == "deterministic":
            self._shards = deterministic.Shards(network)

    def own_targets(self, targets: Tensor) -> Tensor:
        """Under tensor parallelism each rank scores a part of the positions."""
        if self.tensor == 1:
            return targets
        from llm_train.trainer.strategy.sharding import own_positions

        return own_positions(targets, self.device_mesh["tensor"])

    def loss_normaliser(self, valid: Tensor, slots: int) -> Tensor:
        """Where the gradients are: under offload on the host, which has waited for them."""
        if valid.device != self.parameter_device:
            counted = torch.empty_like(valid, device=self.parameter_device, pin_memory=True)
            counted.copy_(valid, non_blocking=True)
            # As for the gradients: a plain copy would wait for whatever else the device has to do.
            torch.accelerator.current_stream(valid.device).record_event().synchronize()
            valid = counted
        return super().loss_normaliser(valid, slots)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Holds back the reduction of gradients until the last micro-batch of the step."""
        last = (batch_idx + 1) % self.task.trainer.accumulate_grad_batches == 0
        self.begin_micro_batch(self.task.network, last=last)
        if self._shards is not None:
            self._shards.begin(last=last)

    def backward(self, closure_loss: Any, *args: Any, **kwargs: Any) -> Any:
        """In deterministic order gradients are summed, not averaged."""
        if self._shards is not None:
            closure_loss = closure_loss / self.world_size
        return super().backward(closure_loss, *args, **kwargs)

    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """In deterministic order from whole gradients: norms of shards add up in another order."""
        if self._shards is not None:
            return deterministic.gradient_norm(gradients)
        return super().gradient_norm(gradients)

    def reshard(self) -> None:
        """A forward without a backward, as in validation, leaves the root group gathered.

        Its parameters are then full tensors whose memory torch frees behind our back.
        """
        from torch.distributed.fsdp import FSDPModule

        for module in self.task.network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def copies(self) -> Copies | None:
        """The shards, between copies."""
        if self.replicas == 1:
            return None
        self.reshard()
        slots = self.world_size // self.replicas
        return Copies(self.task.network.state_dict(), self.global_rank % slots, slots)

    # --- cost: bytes and collectives are in ``fsdp_cost`` -----------------------------------------

    @classmethod
    def candidates(cls, world: World) -> Iterator[Self]:
        """Sharded over all ranks or within nodes, gathered twice or once, cut within a node."""
        if world.ranks == 1:
            return
        for replicas in {1, world.nodes if world.devices > 1 else 1}:
            yield cls(replicas=replicas)
            yield cls(replicas=replicas, reshard_after_forward=False)
        for power in range(1, world.devices.bit_length()):
            yield cls(tensor=2**power)

    @classmethod
    def compared(cls, ranks: int) -> Iterator[Compared]:
        """Each direction of the mesh, and two together."""
        own = cls.__name__.lower()
        prefix = "" if cls is FSDP else f"{own}-"
        yield Compared(name=own)
        yield Compared(name=f"{own}-no-reshard", arguments={"reshard_after_forward": False})
        yield Compared(name=f"{prefix}hsdp", arguments={"replicas": 2}, least_ranks=4)
        yield Compared(name=f"{prefix}tp", arguments={"tensor": ranks}, least_ranks=2)
        yield Compared(name=f"{own}-tp", arguments={"tensor": 2}, least_ranks=4)

    def shard_over(self, network: LanguageModel, mesh: DeviceMesh, precision: str) -> None:
        """Makes each block one communication group of ``mesh``."""
        from llm_train.trainer.strategy.sharding import shard_network

        shard_network(
            network,
            mesh,
            precision=precision,
            reshard_after_forward=self.reshard_after_forward,
            offload=self.offload,
        )

    def begin_micro_batch(self, network: LanguageModel, *, last: bool) -> None:
        """Gradients are reduced after the last micro-batch of a step; deterministic, after each."""
        sharded: Any = network  # fully_shard made it an FSDPModule as well
        sharded.set_requires_gradient_sync(last or self._shards is not None)
        if not self.reshard_after_forward:
            sharded.set_reshard_after_backward(last)
