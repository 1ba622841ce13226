"""Finds copies of a tensor that have drifted apart: a flipped bit, a rank that computes wrongly.

What is unusual is how ranks compare without a collective of their own. Each sums the bits of its
copies modulo a prime, in which one flipped bit always shows. The sum h and its square ride on the
reduction of a log point; n ranks agree exactly if n (h_1^2 + ... + h_n^2) = (h_1 + ... + h_n)^2.
Who differs is asked for only when somebody does.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from llm_train.errors import LLMTrainError
from llm_train.runtime.sharded import local_part, of_all_ranks

_PRIME = 1_048_573  # the largest below 2^20: 8,192 squares add up exactly in float64


@dataclass(frozen=True, eq=False)
class Copies:
    """What this rank holds that others should hold as well.

    Args:
        tensors: by name.
        slot: which of the different parts this rank holds; ranks of a slot hold the same.
        slots: how many parts there are; as many ranks have each.
    """

    tensors: Mapping[str, Tensor]
    slot: int = 0
    slots: int = 1

    def packed(self, device: torch.device) -> Tensor:
        """(2 slots,) h and its square of this rank's slot, to be summed over all ranks."""
        found = torch.zeros(self.slots, 2, dtype=torch.float64, device=device)
        number = (self._sums() % _PRIME).sum() % _PRIME
        found[self.slot, 0] = number
        found[self.slot, 1] = number**2
        return found.flatten()

    def require_equal(self, summed: Sequence[float], step: int) -> None:
        """Ends the run on all ranks if copies differ on any; collective only then.

        Args:
            summed: ``packed`` over all ranks.
            step: for the message.

        Raises:
            LLMTrainError: it names the rank and the tensors.
        """
        copies = dist.get_world_size() // self.slots
        pairs = zip(map(int, summed[::2]), map(int, summed[1::2]), strict=True)
        if all(copies * squares == total**2 for total, squares in pairs):
            return
        odd = _odd(list(self.tensors), of_all_ranks((self.slot, self._sums().tolist())))
        raise LLMTrainError(
            f"replicas differ at step {step}: {odd}, and nothing is saved of it; test the "
            "memory of that rank's device, and resume from the last checkpoint "
            "(checkpoint.compare_replicas=false accepts such copies)"
        )

    def _sums(self) -> Tensor:
        """(n,) of each tensor, the sum of its bits as integers; one pass (7 GiB/s on one core)."""
        return torch.stack([_bits(local_part(t.detach())).sum() for t in self.tensors.values()])


def _bits(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().view(-1)
    wide = not (flat.storage_offset() * flat.itemsize % 8 or flat.nbytes % 8)
    return flat.view(torch.int64 if wide else torch.uint8)


def _odd(names: Sequence[str], everyone: Sequence[tuple[int, list[int]]]) -> str:
    """The first rank that is not like most of its slot, or like the first where two differ."""
    slots: dict[int, dict[int, list[int]]] = defaultdict(dict)
    for rank, (slot, sums) in enumerate(everyone):
        slots[slot][rank] = sums
    for ranks in slots.values():
        columns = zip(*ranks.values(), strict=True)
        usual = [Counter(column).most_common(1)[0][0] for column in columns]
        for rank, sums in ranks.items():
            if wrong := [name for name, a, b in zip(names, sums, usual, strict=True) if a != b]:
                more = f" and {len(wrong) - 1} more tensors" if wrong[1:] else ""
                other = next(r for r, s in ranks.items() if s != sums)
                return f"{wrong[0]}{more} of rank {rank} is not that of rank {other}"
    return "they were equal again when asked for their bits"
