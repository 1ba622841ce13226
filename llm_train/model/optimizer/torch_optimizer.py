"""Any optimizer of ``torch.optim``, or of another library, by its own class and arguments.

What is unusual: what such a class can do is not written down anywhere, so it is tried out
(``probe``). The field is a *callable* that makes an optimizer from parameters. For such a field
the command line takes ``class_path`` and ``init_args`` without the first argument, and checks both
against the class's signature while parsing::

    optimizer:
      class_path: TorchOptimizer
      init_args:
        optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1, momentum: 0.9}}
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn, optim

from llm_train.context import Context, OptimizerTraits
from llm_train.errors import ConfigError
from llm_train.model.optimizer.base import Optimizer
from llm_train.model.optimizer.groups import decay_groups, trainable
from llm_train.model.optimizer.probe import Probe
from llm_train.runtime.sharded import is_dtensor


@dataclass(frozen=True, kw_only=True)
class TorchOptimizer(Optimizer):
    """A class of ``torch.optim`` with the given arguments and our decay groups.

    Its own ``weight_decay``, where it has one, applies to parameters with two or more dimensions
    and is 0 for the others; an optimizer without such a setting gets a single group.

    Attributes:
        optimizer: makes the optimizer from parameters; in YAML its ``class_path`` and ``init_args``
            (``lr`` is the peak learning rate).
    """

    optimizer: Callable[[Iterable[Any]], optim.Optimizer]

    @cached_property
    def _probe(self) -> Probe:
        return Probe(self.build)

    @property
    def traits(self) -> OptimizerTraits:
        """What a trial on a CPU has shown."""
        probe = self._probe
        return OptimizerTraits(
            name=probe.name or type(self).__name__,
            flat_fragments=not probe.fragments,
            on_host=True,
            one_by_one=not probe.alone,
        )

    def problems(self, context: Context) -> Iterator[str]:
        """What the class cannot do and the run needs."""
        yield from self._probe.problems(context)
        if not self._probe.trains:
            yield from super().problems(context)

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> optim.Optimizer:
        """Constructs the optimizer.

        Raises:
            ConfigError: the class refuses these parameters or arguments.
        """
        named = trainable(named_parameters)
        # Defaults are known only to an instance; one costs nothing, as state comes with the first
        # step.
        single = self._make(named)
        if "weight_decay" not in single.defaults:
            return single
        return self._make(decay_groups(named, float(single.defaults["weight_decay"])))

    def _make(self, parameters: Iterable[object]) -> optim.Optimizer:
        try:
            made = self.optimizer(parameters)
        except Exception as error:  # any that the class raises
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"optimizer.optimizer refused the parameters or its arguments: {reason}; "
                "see the class's documentation (for Muon on matrices use MuonAdamW)"
            ) from error
        closure = inspect.signature(type(made).step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ConfigError(
                f"optimizer.optimizer={type(made).__name__} computes the loss several times a "
                "step, which training here does not; choose another one, for instance AdamW"
            )
        for group in made.param_groups:
            # Others than torch's take multi-tensor kernels for whatever is on a GPU or a CPU, and
            # DTensor knows few of them.
            if group.get("foreach", False) is None and any(map(is_dtensor, group["params"])):
                group["foreach"] = False
        return made
