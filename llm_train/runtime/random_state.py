"""The random generators of one rank, as values that load without running code."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """The generators of this process: the host's and that of ``device``."""
    # The global generator is the one that libraries draw from.
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Puts the generators back where ``random_state`` found them, on the same kind of device."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    # The global generator is the one that libraries draw from.
    np.random.set_state((name, keys.numpy(), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type])


def seed_generators(seed: int, rank: int, step: int) -> None:
    """Starts all generators of this process, on its own at each rank and step."""
    # Primes, so that no two pairs of rank and step that occur in practice share a seed.
    seed += 1_000_003 * rank + 7_919 * step
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that libraries draw from
    torch.manual_seed(seed)
