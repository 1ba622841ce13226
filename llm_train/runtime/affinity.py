"""Keeps the host's threads of a rank on the processors next to its GPU.

On a machine with several sockets, a launch or a copy from the other socket crosses the link between
them. A process that was started on fewer processors (taskset, srun --cpu-bind, torchrun
--numa-binding) stays within them, and data workers inherit what it has.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path

import torch

_PCI = Path("/sys/bus/pci/devices")
_ADDRESS = attrgetter("pci_domain_id", "pci_bus_id", "pci_device_id")


@contextmanager
def near_device(index: int) -> Iterator[None]:
    """Keeps this process on the processors of a CUDA device, as far as it may use them."""
    cpus = cpus_near(index)
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpus_near(index: int, pci: Path = _PCI) -> set[int]:
    """The processors next to a CUDA device that this process may use; empty where none is known.

    Args:
        index: of the device.
        pci: where the kernel describes devices.
    """
    domain, bus, device = _ADDRESS(torch.cuda.get_device_properties(index))
    file = pci / f"{domain:04x}:{bus:02x}:{device:02x}.0" / "local_cpulist"
    if not hasattr(os, "sched_getaffinity") or not file.is_file():
        return set()
    return parsed(file.read_text()) & os.sched_getaffinity(0)


def parsed(text: str) -> set[int]:
    """Processors as the kernel lists them.

    >>> sorted(parsed("0-2,8"))
    [0, 1, 2, 8]
    >>> parsed("")
    set()
    """
    ends = [part.partition("-") for part in text.strip().split(",") if part]
    return {cpu for first, _, last in ends for cpu in range(int(first), int(last or first) + 1)}
