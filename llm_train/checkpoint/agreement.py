"""How all ranks agree on what one of them does, or on whether a save failed, in one line."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch.distributed as dist

from llm_train.errors import CheckpointError
from llm_train.runtime.sharded import of_all_ranks

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """All ranks of a run, or its only process.

    Attributes:
        group: in which they talk; None: the default one. A thread needs one of its own, since the
            order of collectives in a group must be the same on all ranks.
    """

    group: dist.ProcessGroup | None = None

    def on_main(self, action: Callable[[], T]) -> T:
        """Runs ``action`` on rank 0 and gives its result, or its failure, to every rank.

        A failure that only rank 0 knew of would leave the others waiting for it until the timeout.
        """
        result: T | None = None
        failure, kind = "", CheckpointError
        if not dist.is_initialized() or dist.get_rank() == 0:
            try:
                result = action()
            except Exception as error:
                failure = str(error) or type(error).__name__
                kind = SaveFailed if isinstance(error, SaveFailed) else CheckpointError
        if dist.is_initialized():
            told = [(result, failure, kind)]
            dist.broadcast_object_list(told, group=self.group)
            ((result, failure, kind),) = told
        if failure:
            raise kind(failure)
        return cast(T, result)

    def any(self, wrong: bool) -> bool:
        """Whether something is wrong on any rank; nobody goes on before all have come so far."""
        return any(of_all_ranks(wrong, self.group))


class SaveFailed(CheckpointError):
    """Reports a save that the file system refused, and that may succeed when tried again."""


def reason_of(error: BaseException | None) -> str:
    """The error of the file system behind what a library raised; None: another process knows."""
    while error is not None and not isinstance(error, OSError):
        wrapped = getattr(error, "failures", {})
        inner = next((each[0] for each in wrapped.values()), None) if wrapped else None
        if inner is None and not (error.__cause__ or error.__context__):
            return f"a file could not be written whole ({' '.join(str(error).split())[:200]})"
        error = inner or error.__cause__ or error.__context__
    return "another rank could not write its part" if error is None else str(error)
