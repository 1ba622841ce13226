"""GPUs by a short name: what a plan needs to know of each.

Rates of arithmetic come from ``llm_train.runtime.peaks``, the one place for them. Bandwidths count
one direction, where datasheets of links print the sum of both. Memory is what ``torch.cuda``
reports as the device's total, as it stands in error messages in public: the driver keeps some of
what the datasheet prints. The network is a choice of whoever builds the
cluster: the vendor's reference system is assumed, and its source named.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from llm_train.errors import ConfigError
from llm_train.runtime.peaks import dense_peak_flops

_GIB = 2**30
_GBIT = 1e9 / 8


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One GPU and its links.

    Attributes:
        name: as the driver calls it; ``peaks`` knows its rates.
        memory: bytes that torch sees.
        bytes_per_second: of its memory.
        link: bytes per second to the other GPUs of its node, one direction.
        network: bytes per second to other nodes, its share of the node's adapters, one direction.
        watts: thermal design power.
    """

    name: str
    memory: float
    bytes_per_second: float
    link: float
    network: float
    watts: float

    def peak_flops(self, precision: str) -> float:
        """Dense peak of matrix products under a precision of the Trainer."""
        dtype = "bf16" if precision.startswith("bf16") else "fp32"
        peak = dense_peak_flops(self.name, dtype)
        assert peak is not None, f"{self.name} has no {dtype} peak"
        return peak


ACCELERATORS: dict[str, Accelerator] = {
    # NVIDIA H200 datasheet (2024), SXM: 141 GB HBM3e at 4.8 TB/s, NVLink 900 GB/s, 700 W; network
    # of NVIDIA's HGX reference: one 400 Gb/s ConnectX-7 a GPU.
    "h200": Accelerator(
        name="NVIDIA H200",
        memory=139.8 * _GIB,
        bytes_per_second=4.8e12,
        link=450e9,
        network=400 * _GBIT,
        watts=700,
    ),
    # NVIDIA H100 datasheet (2022), SXM: 80 GB HBM3 at 3.35 TB/s, NVLink 900 GB/s, 700 W; DGX H100
    # datasheet: eight 400 Gb/s ConnectX-7 for eight GPUs.
    "h100": Accelerator(
        name="NVIDIA H100 80GB HBM3",
        memory=79.1 * _GIB,
        bytes_per_second=3.35e12,
        link=450e9,
        network=400 * _GBIT,
        watts=700,
    ),
    # NVIDIA H100 datasheet, PCIe: 80 GB HBM2e at 2 TB/s, PCIe 5 128 GB/s both ways, 350 W;
    # network: 200 Gb/s a GPU, assumed.
    "h100-pcie": Accelerator(
        name="NVIDIA H100 PCIe",
        memory=79.1 * _GIB,
        bytes_per_second=2.0e12,
        link=64e9,
        network=200 * _GBIT,
        watts=350,
    ),
    # NVIDIA A100 datasheet (2021), SXM: 80 GB HBM2e at 2.039 TB/s, NVLink 600 GB/s, 400 W; DGX
    # A100 datasheet: eight 200 Gb/s ConnectX-6 for eight GPUs.
    "a100": Accelerator(
        name="NVIDIA A100-SXM4-80GB",
        memory=79.15 * _GIB,
        bytes_per_second=2.039e12,
        link=300e9,
        network=200 * _GBIT,
        watts=400,
    ),
    # NVIDIA A100 datasheet (2020), SXM: 40 GB HBM2 at 1.555 TB/s; the rest as above.
    "a100-40": Accelerator(
        name="NVIDIA A100-SXM4-40GB",
        memory=39.4 * _GIB,
        bytes_per_second=1.555e12,
        link=300e9,
        network=200 * _GBIT,
        watts=400,
    ),
    # NVIDIA DGX B200 datasheet (2024): 1,440 GB HBM3e at 64 TB/s over eight GPUs, NVLink 1.8
    # TB/s, eight 400 Gb/s ConnectX-7; HGX B200: up to 1,000 W a GPU.
    "b200": Accelerator(
        name="NVIDIA B200",
        memory=178.3 * _GIB,
        bytes_per_second=8.0e12,
        link=900e9,
        network=400 * _GBIT,
        watts=1000,
    ),
    # NVIDIA L40S datasheet (2023): 48 GB GDDR6 at 864 GB/s, PCIe 4 64 GB/s both ways, 350 W;
    # network: 200 Gb/s a GPU, assumed.
    "l40s": Accelerator(
        name="NVIDIA L40S",
        memory=44.4 * _GIB,
        bytes_per_second=0.864e12,
        link=32e9,
        network=200 * _GBIT,
        watts=350,
    ),
    # NVIDIA L4 datasheet (2023): 24 GB GDDR6 at 300 GB/s, PCIe 4 64 GB/s both ways, 72 W;
    # network: 50 Gb/s a GPU, assumed.
    "l4": Accelerator(
        name="NVIDIA L4",
        memory=22.0 * _GIB,
        bytes_per_second=0.3e12,
        link=32e9,
        network=50 * _GBIT,
        watts=72,
    ),
    # NVIDIA A10 datasheet (2021) and AWS's page of G5 for the G: 24 GB GDDR6 at 600 GB/s, PCIe 4,
    # 300 W; network: g5.48xlarge has 100 Gb/s for eight.
    "a10g": Accelerator(
        name="NVIDIA A10G",
        memory=22.0 * _GIB,
        bytes_per_second=0.6e12,
        link=32e9,
        network=12.5 * _GBIT,
        watts=300,
    ),
    # NVIDIA Ada architecture whitepaper (2022), appendix A: 24 GB GDDR6X at 1,008 GB/s, 450 W;
    # PCIe 4 through the host, no peer access: half of 32 GB/s, assumed. Network: 10 Gb/s a GPU,
    # assumed.
    "rtx4090": Accelerator(
        name="NVIDIA GeForce RTX 4090",
        memory=23.6 * _GIB,
        bytes_per_second=1.008e12,
        link=16e9,
        network=10 * _GBIT,
        watts=450,
    ),
    # NVIDIA GA102 architecture whitepaper (2020), appendix A: 24 GB GDDR6X at 936 GB/s, 350 W;
    # links as above.
    "rtx3090": Accelerator(
        name="NVIDIA GeForce RTX 3090",
        memory=23.6 * _GIB,
        bytes_per_second=0.936e12,
        link=16e9,
        network=10 * _GBIT,
        watts=350,
    ),
    # AMD Instinct MI300X datasheet (2023): 192 GB HBM3 at 5.3 TB/s, Infinity Fabric 7 x 128 GB/s
    # both ways, 750 W; network: 400 Gb/s a GPU, assumed.
    "mi300x": Accelerator(
        name="AMD Instinct MI300X",
        memory=191.0 * _GIB,
        bytes_per_second=5.3e12,
        link=448e9,
        network=400 * _GBIT,
        watts=750,
    ),
}


def accelerator(name: str) -> Accelerator:
    """A GPU by its short name.

    Raises:
        ConfigError: not known.

    >>> accelerator("h200").name
    'NVIDIA H200'
    """
    found = ACCELERATORS.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), ACCELERATORS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"--gpu {name} is not known; {hint}known: {', '.join(ACCELERATORS)}")
    return found
