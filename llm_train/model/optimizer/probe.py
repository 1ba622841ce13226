"""What an optimizer can do, found out by letting it update a few small tensors.

What is unusual: no class is known by name. Each question is put to an optimizer by doing with it
what training would do, and its updates are compared with those that it makes from the same
gradients where nothing is special::

    fragments    parameters laid end to end, cut anywhere and put into the groups of an optimizer
                 that was constructed with whole ones: DeepSpeed's ZeRO
    alone        each parameter updated with no other in view: model.update=backward
    resumed      half of the steps, then a new one with what a checkpoint carries over
    sharded      the same with DTensors, on a mesh of this process alone: FSDP

In float64 no rounding looks like another update. Twelve steps show what is done in every tenth.
"""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial

import torch
import torch.distributed as dist
from torch import Tensor, nn, optim

from llm_train.context import Context
from llm_train.model.optimizer.groups import Named
from llm_train.model.optimizer.in_backward import in_view
from llm_train.runtime.sharded import is_dtensor, local_part

Build = Callable[[Iterable[Named]], optim.Optimizer]
Place = Callable[[Tensor], Tensor]

_SHAPES = {"embedding.weight": (5, 6), "layers.0.up.weight": (6, 4), "layers.0.norm.weight": (7,)}
_STEPS = 12
# Of the length of all updates: above rounding, multi-tensor kernels included, and below the least
# difference that any of 120 classes has shown, 4e-6.
_TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-4}
_OTHER = "its updates would be others"


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class _FewWeights:
    """An optimizer of a few parameters, always the same ones.

    Args:
        build: makes it.
        dtype: of the parameters.
        place: what becomes of each parameter and gradient.
    """

    def __init__(self, build: Build, dtype: torch.dtype, place: Place = _as_it_is) -> None:
        generator = torch.Generator().manual_seed(0)
        self.start, slopes, *noise = (
            [torch.randn(shape, generator=generator, dtype=dtype) for shape in _SHAPES.values()]
            for _ in range(_STEPS + 2)
        )
        # Gradients mostly agree, as they do where there is something to learn.
        self.gradients = [
            [place(s + 0.3 * n) for s, n in zip(slopes, each, strict=True)] for each in noise
        ]
        self.parameters = [nn.Parameter(place(value.clone())) for value in self.start]
        self.optimizer = build(zip(_SHAPES, self.parameters, strict=True))
        # torch wraps ``step`` in a function that imports its compiler.
        self._step = partial(inspect.unwrap(type(self.optimizer).step), self.optimizer)

    @property
    def members(self) -> list[list[int]]:
        """Of each group, which parameters are in it."""
        known = {id(parameter): index for index, parameter in enumerate(self.parameters)}
        return [[known[id(p)] for p in group["params"]] for group in self.optimizer.param_groups]

    def update(self, step: int) -> None:
        """Updates what has a gradient; random numbers follow from the step."""
        torch.manual_seed(step)
        self._step()

    def run(self, steps: Iterable[int]) -> None:
        """Gives every parameter its gradient and updates all, step by step."""
        for step in steps:
            for parameter, gradient in zip(self.parameters, self.gradients[step], strict=True):
                parameter.grad = gradient.clone()
            self.update(step)


class Probe:
    """Asks an optimizer; an answer is "" for yes, or the reason why not.

    Args:
        build: makes it of named parameters.
    """

    def __init__(self, build: Build) -> None:
        self._build = build
        self._dtype = torch.float64

    def problems(self, context: Context) -> Iterator[str]:
        """What this run needs and the optimizer cannot do."""
        optimizer = context.torch_optimizer
        name = f"model.optimizer: {type(optimizer).__name__}"
        way_out = "use AdamW, or another class"
        if self.trains:
            yield f"{name} cannot update weights from gradients alone ({self.trains}); {way_out}"
        elif any(group.get("differentiable") for group in optimizer.param_groups):
            yield f"{name}: differentiable=true needs weights that are no parameters; remove it"
        elif self.resumed:
            yield f"{name} cannot continue from a checkpoint ({self.resumed}); {way_out}"
        elif all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval")):
            yield (
                f"{name} has other weights for evaluation than for training (eval() and train()), "
                "and nothing here switches them; use ScheduleFreeAdamW of our own, or AdamW"
            )
        elif context.strategy.dtensors and self.sharded:
            yield (
                f"{name} cannot update the shards of {context.strategy.name} ({self.sharded}); set "
                f"trainer.strategy to ddp, or {way_out}"
            )

    @property
    def name(self) -> str:
        """Of the class; "" where it cannot be tried."""
        return "" if self.trains else type(self._plain.optimizer).__name__

    @cached_property
    def trains(self) -> str:
        """Whether it needs nothing but gradients."""
        reason = ""
        for self._dtype in _TOLERANCES:  # some know float32 only
            if not (reason := _reason(self._plainly)):
                break
        return reason

    @cached_property
    def fragments(self) -> str:
        """Whether it can update pieces that begin and end in the middle of a parameter."""
        return self.trains or _reason(self._in_fragments)

    @cached_property
    def alone(self) -> str:
        """Whether it can update a parameter without looking at the others."""
        return self.trains or _reason(self._one_by_one)

    @cached_property
    def resumed(self) -> str:
        """Whether all of its state is where a checkpoint finds it."""
        return self.trains or _reason(partial(self._halfway, _as_it_is))

    @cached_property
    def sharded(self) -> str:
        """Whether it can update DTensors; "" where that cannot be tried."""
        return self.trains or _reason(self._in_shards)

    @cached_property
    def _plain(self) -> _FewWeights:
        trial = self._trial()
        trial.run(range(_STEPS))
        return trial

    def _plainly(self) -> str:
        _ = self._plain
        return ""

    def _trial(self, place: Place = _as_it_is) -> _FewWeights:
        return _FewWeights(self._build, self._dtype, place)

    def _in_fragments(self) -> str:
        for rank in (0, 1):
            trial, plain = self._trial(), self._plain
            groups, members = trial.optimizer.param_groups, trial.members
            for group, indices in zip(groups, members, strict=True):
                group["params"] = [nn.Parameter(_fragment(trial.start, indices, rank))]
            for step, gradients in enumerate(trial.gradients):
                for group, indices in zip(groups, members, strict=True):
                    group["params"][0].grad = _fragment(gradients, indices, rank)
                trial.update(step)
            for group, indices in zip(groups, members, strict=True):
                (flat,) = group["params"]
                state = trial.optimizer.state[flat]
                if odd := [key for key, value in state.items() if not _fits(value, flat)]:
                    return f"its {odd[0]} has not the shape of what it updates"
                wanted, start = (
                    _fragment(values, indices, rank) for values in (plain.parameters, plain.start)
                )
                if not self._same(flat, wanted, start):
                    return _OTHER
        return ""

    def _one_by_one(self) -> str:
        trial = self._trial()
        for step, gradients in enumerate(trial.gradients):
            for group, indices in zip(trial.optimizer.param_groups, trial.members, strict=True):
                for index in reversed(indices):
                    parameter = trial.parameters[index]
                    with in_view(trial.optimizer, group, parameter):
                        parameter.grad = gradients[index]
                        trial.update(step)
                    parameter.grad = None
        return self._compared(trial)

    def _in_shards(self) -> str:
        with _mesh_of_one() as place:
            return "" if place is None else self._halfway(place)

    def _halfway(self, place: Place) -> str:
        before, after = self._trial(place), self._trial(place)
        before.run(range(_STEPS // 2))
        if others := [key for key in before.optimizer.state if not isinstance(key, Tensor)]:
            return f"its {others[0]} belongs to no parameter"
        for old, new in zip(before.parameters, after.parameters, strict=True):
            new.copy_(old)
            state = before.optimizer.state.get(old, {})
            if lost := [key for key, value in state.items() if not _can_be_saved(value)]:
                return f"its {lost[0]} is neither a tensor nor a number"
            after.optimizer.state[new] = {key: _carried(new, value) for key, value in state.items()}
        groups = (trial.optimizer.param_groups for trial in (before, after))
        for kept, group in zip(*groups, strict=True):
            group.update({k: copy.copy(v) for k, v in kept.items() if not k.startswith("param")})
        after.run(range(_STEPS // 2, _STEPS))
        return self._compared(after)

    def _compared(self, trial: _FewWeights) -> str:
        plain = self._plain
        pairs = zip(trial.parameters, plain.parameters, plain.start, strict=True)
        return "" if all(self._same(*each) for each in pairs) else _OTHER

    def _same(self, found: Tensor, wanted: Tensor, start: Tensor) -> bool:
        distance, length = (local_part(found) - wanted).norm(), (wanted - start).norm()
        return bool(distance <= _TOLERANCES[self._dtype] * length)


def _reason(trial: Callable[[], str]) -> str:
    """What a trial says, or what a library raised in it; leaves random state and warnings alone."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return trial()
        except Exception as error:  # whatever the class raises, training would end with it
            text = " ".join(str(error).split()).partition(". ")[0]
            return f"{type(error).__name__}: {text}"[:120].rstrip(": ")


def _fragment(values: Sequence[Tensor], indices: Iterable[int], rank: int) -> Tensor:
    """One half of all that a group has, laid end to end."""
    flat = torch.cat([values[index].detach().flatten() for index in indices])
    return flat.chunk(2)[rank].clone()


def _fits(value: object, parameter: Tensor) -> bool:
    """Whether it is no larger tensor, or has the parameter's shape."""
    return not isinstance(value, Tensor) or value.numel() == 1 or value.shape == parameter.shape


def _can_be_saved(value: object) -> bool:
    if isinstance(value, Tensor) and is_dtensor(value):
        return not any(placement.is_partial() for placement in value.placements)
    return isinstance(value, (Tensor, bool, int, float, str, type(None)))


def _carried(parameter: Tensor, value: object) -> object:
    """State as ``checkpoint.tensors`` brings it back."""
    if not isinstance(value, Tensor):
        return value
    return (value if value.shape == parameter.shape else local_part(value)).clone()


@contextmanager
def _mesh_of_one() -> Iterator[Place | None]:
    """Shards a tensor over this process alone; None where there are ranks already."""
    if not dist.is_available() or dist.is_initialized():
        yield None
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        yield lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)], src_data_rank=None)
    finally:
        dist.destroy_process_group()
