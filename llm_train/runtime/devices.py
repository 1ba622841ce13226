"""Devices in two tables: what kinds there are, and the rates, memory and links of those on sale.

Vendors advertise rates with 2:4 sparsity, which no pretraining uses; every rate here is the dense
one, half the advertised one where only that is printed. Where a chip multiplies faster when it also
accumulates in fp16 (GeForce), the rate with fp32 accumulation is given, since that is what runs.
``fp32`` is the rate without TF32. A device is what the framework calls one: half an MI250X.

A name that is not matched in full has no peak: an MFU against a guessed peak is worse than none.

Bandwidths count one direction, where datasheets of links print the sum of both. Memory is what
``torch.cuda`` reports as the device's total, as it stands in error messages in public: the driver
keeps some of what the datasheet prints. The network is a choice of whoever builds the cluster: the
vendor's reference system is assumed, and its source named.
"""

import difflib
import re
from dataclasses import dataclass

import torch

from llm_train.errors import ConfigError

# What may stand around the model in a name: maker, family, form factor, memory. "Laptop", "Ti", "D"
# (other chips) and "MIG ..." (a slice of a chip) may not.
_BEFORE = r"(?:NVIDIA |AMD |GeForce |Instinct |Tesla )*"
_AFTER = r"(?:[ -](?:SXM[0-9]?|PCIe|OAM|[0-9]+GB|HBM[0-9]e?|VF))*"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of device, and what torch can do there.

    Attributes:
        type: torch's name of it; ROCm's devices are called cuda as well.
        float64: it has 64-bit floating-point numbers.
        pinned: copies from and to pinned host memory run alongside computation.
        tf32: float32 matrices may be multiplied in TF32.
        peak_memory: its allocator remembers the most that was in use.
        communicates: ranks on such devices can exchange tensors.
    """

    type: str
    float64: bool = True
    pinned: bool = False
    tf32: bool = False
    peak_memory: bool = False
    communicates: bool = True

    @property
    def count(self) -> int:
        """How many are here; a machine counts as one CPU."""
        return int(torch.get_device_module(self.type).device_count())


KINDS = {
    kind.type: kind
    for kind in (
        Kind(type="cpu"),
        Kind(type="cuda", pinned=True, tf32=True, peak_memory=True),
        # Apple's GPUs: memory is shared with the host, and torch has no collectives for them.
        Kind(type="mps", float64=False, communicates=False),
    )
}
"""The kinds that runs can use, by torch's names."""


def kind_called(accelerator: str) -> Kind:
    """The kind that ``trainer.accelerator`` names; auto and gpu mean what is here.

    Where nothing is here, auto is the CPU and gpu is CUDA.
    """
    if accelerator in ("auto", "gpu"):
        here = kind_here()
        accelerator = here or {"auto": "cpu", "gpu": "cuda"}[accelerator]
    return KINDS.get(accelerator, KINDS["cpu"])


def kind_here() -> str:
    """Torch's name of the accelerator of this machine; empty where there is none."""
    here = torch.accelerator.current_accelerator(check_available=True)
    return "" if here is None else here.type


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device and its links.

    Attributes:
        short: name on the command line; empty where a plan does not know enough of the device.
        name: as the driver calls it.
        pattern: matches the names of this device without its maker and its form factor.
        tflops: dense peak of matrix products by dtype; 0 where the device has no such unit.
        memory: bytes that torch sees.
        bytes_per_second: of its memory.
        link: bytes per second to the other devices of its node, one direction.
        network: bytes per second to other nodes, its share of the node's adapters, one direction.
        watts: thermal design power.
    """

    short: str
    name: str
    pattern: str
    tflops: dict[str, float]
    memory: float = 0.0
    bytes_per_second: float = 0.0
    link: float = 0.0
    network: float = 0.0
    watts: float = 0.0

    def peak_flops(self, dtype: str) -> float:
        """Dense peak of matrix products, FLOP/s; without TF32, float32 matrices stay float32."""
        rate = self.tflops[dtype]
        return 1e12 * (rate or self.tflops["fp32"] if dtype == "tf32" else rate)


def _rates(
    bf16: float, tf32: float, fp32: float, fp8: float = 0, fp16: float = 0
) -> dict[str, float]:
    """TFLOP/s by dtype; fp16 is as fast as bf16 where nothing else is said."""
    return {"bf16": bf16, "fp16": fp16 or bf16, "tf32": tf32, "fp32": fp32, "fp8": fp8}


def _row(
    short: str, name: str, tflops: dict[str, float], body: tuple[float, ...] = (), pattern: str = ""
) -> Device:
    """A device whose ``body`` is GiB, TB/s of memory, GB/s of links, Gbit/s of network, and W."""
    units = (2**30, 1e12, 1e9, 1e9 / 8, 1)
    keys = ("memory", "bytes_per_second", "link", "network", "watts")
    known = {key: unit * value for key, unit, value in zip(keys, units, body, strict=False)}
    pattern = pattern or re.sub(_BEFORE, "", name, count=1)
    return Device(short=short, name=name, pattern=pattern, tflops=tflops, **known)


# The chip of H100 SXM, H200 and GH200. NVIDIA H100 datasheet (2022), SXM column, over 2; the same
# in the NVIDIA H200 datasheet (2024) and the GH200 datasheet (2023).
_HOPPER = _rates(989.5, 494.5, 67, 1979)
# NVIDIA H100 datasheet (2024) and H200 datasheet (2024), NVL columns, with sparsity, over 2.
_HOPPER_NVL = _rates(835.5, 417.5, 60, 1670.5)
# "H100 80GB HBM3" is what the driver calls the SXM module.
_H100_SXM = r"H100(?: SXM5?| [0-9]+GB HBM3)"
# NVIDIA A100 datasheet (2021); SXM and PCIe alike.
_AMPERE = _rates(312, 156, 19.5)

# The first match counts.
_TABLE = (
    # NVIDIA GB200 NVL72 datasheet (2024), per superchip with sparsity, over 2 GPUs and over 2.
    _row("", "NVIDIA GB200", _rates(2500, 1250, 80, 5000)),
    # NVIDIA HGX B200 datasheet (2025), eight GPUs with sparsity, over 8 and over 2. NVIDIA DGX B200
    # datasheet (2024): 1,440 GB HBM3e at 64 TB/s over eight GPUs, NVLink 1.8 TB/s, eight 400 Gb/s
    # ConnectX-7; HGX B200: up to 1,000 W a GPU.
    _row("b200", "NVIDIA B200", _rates(2250, 1125, 75, 4500), (178.3, 8, 900, 400, 1000)),
    _row("", "NVIDIA H200 NVL", _HOPPER_NVL),
    _row("", "NVIDIA GH200", _HOPPER),
    # NVIDIA H200 datasheet (2024), SXM: 141 GB HBM3e at 4.8 TB/s, NVLink 900 GB/s, 700 W; network
    # of NVIDIA's HGX reference: one 400 Gb/s ConnectX-7 a GPU.
    _row("h200", "NVIDIA H200", _HOPPER, (139.8, 4.8, 450, 400, 700)),
    _row("", "NVIDIA H100 NVL", _HOPPER_NVL),
    # NVIDIA H100 datasheet (2022), PCIe column, with sparsity, over 2: 80 GB HBM2e at 2 TB/s,
    # PCIe 5 128 GB/s both ways, 350 W; network: 200 Gb/s a GPU, assumed.
    _row("h100-pcie", "NVIDIA H100 PCIe", _rates(756.5, 378, 51, 1513), (79.1, 2, 64, 200, 350)),
    # NVIDIA H100 datasheet (2022), SXM: 80 GB HBM3 at 3.35 TB/s, NVLink 900 GB/s, 700 W; DGX H100
    # datasheet: eight 400 Gb/s ConnectX-7 for eight GPUs.
    _row("h100", "NVIDIA H100 80GB HBM3", _HOPPER, (79.1, 3.35, 450, 400, 700), _H100_SXM),
    # NVIDIA A100 datasheet (2021), SXM: 80 GB HBM2e at 2.039 TB/s, NVLink 600 GB/s, 400 W; DGX
    # A100 datasheet: eight 200 Gb/s ConnectX-6 for eight GPUs.
    _row("a100", "NVIDIA A100-SXM4-80GB", _AMPERE, (79.15, 2.039, 300, 200, 400), "A100"),
    # NVIDIA A100 datasheet (2020), SXM: 40 GB HBM2 at 1.555 TB/s; the rest as above.
    _row("a100-40", "NVIDIA A100-SXM4-40GB", _AMPERE, (39.4, 1.555, 300, 200, 400), "A100"),
    # NVIDIA L40S datasheet (2023): 48 GB GDDR6 at 864 GB/s, PCIe 4 64 GB/s both ways, 350 W;
    # network: 200 Gb/s a GPU, assumed.
    _row("l40s", "NVIDIA L40S", _rates(362.05, 183, 91.6, 733), (44.4, 0.864, 32, 200, 350)),
    # NVIDIA L4 datasheet (2023), with sparsity, over 2: 24 GB GDDR6 at 300 GB/s, PCIe 4 64 GB/s
    # both ways, 72 W; network: 50 Gb/s a GPU, assumed.
    _row("l4", "NVIDIA L4", _rates(121, 60, 30.3, 242.5), (22, 0.3, 32, 50, 72)),
    # NVIDIA A10 datasheet (2021) and AWS's page of G5 instances for the G: 24 GB GDDR6 at 600 GB/s,
    # PCIe 4, 300 W; network: g5.48xlarge has 100 Gb/s for eight.
    _row("a10g", "NVIDIA A10G", _rates(70, 35, 31.5), (22, 0.6, 32, 12.5, 300)),
    # NVIDIA A10 datasheet (2021).
    _row("", "NVIDIA A10", _rates(125, 62.5, 31.2)),
    # NVIDIA V100 datasheet (2020): V100S, SXM2, PCIe columns; no bf16, no TF32.
    _row("", "Tesla V100S", _rates(0, 0, 16.4, fp16=130)),
    _row("", "Tesla V100-SXM2", _rates(0, 0, 15.7, fp16=125), pattern="V100.SXM[23]"),
    _row("", "Tesla V100-PCIE", _rates(0, 0, 14, fp16=112), pattern="V100.PCIE"),
    # NVIDIA Blackwell RTX architecture whitepaper (2025), appendix, fp32 accumulation.
    _row("", "NVIDIA GeForce RTX 5090", _rates(209.5, 104.8, 104.8, 419)),
    # NVIDIA Ada architecture whitepaper (2022), appendix A, fp32 accumulation: 24 GB GDDR6X at
    # 1,008 GB/s, 450 W; PCIe 4 through the host, no peer access: half of 32 GB/s, assumed. Network:
    # 10 Gb/s a GPU, assumed.
    _row(
        "rtx4090",
        "NVIDIA GeForce RTX 4090",
        _rates(165.2, 82.6, 82.6, 330.3),
        (23.6, 1.008, 16, 10, 450),
    ),
    # NVIDIA GA102 architecture whitepaper (2020), appendix A, fp32 accumulation: 24 GB GDDR6X at
    # 936 GB/s, 350 W; links as above.
    _row("rtx3090", "NVIDIA GeForce RTX 3090", _rates(71, 35.6, 35.6), (23.6, 0.936, 16, 10, 350)),
    # AMD Instinct MI300X datasheet (2023): 192 GB HBM3 at 5.3 TB/s, Infinity Fabric 7 x 128 GB/s
    # both ways, 750 W; network: 400 Gb/s a GPU, assumed.
    _row(
        "mi300x",
        "AMD Instinct MI300X",
        _rates(1307.4, 653.7, 163.4, 2614.9),
        (191, 5.3, 448, 400, 750),
    ),
    # AMD Instinct MI250X datasheet (2021), matrix rates, over 2: each of its two dies is a device.
    _row("", "AMD Instinct MI250X", _rates(191.5, 0, 47.85)),
)

DEVICES = {device.short: device for device in _TABLE if device.short}
"""The devices that can be planned for, by their short names."""


def device_named(device_name: str) -> Device | None:
    """A device as the driver names it, or None when it is not known.

    >>> device_named("NVIDIA H100 80GB HBM3").peak_flops("bf16")
    989500000000000.0
    >>> device_named("cpu")
    """
    name = device_name.strip()
    for device in _TABLE:
        if re.fullmatch(_BEFORE + device.pattern + _AFTER, name, re.IGNORECASE):
            return device
    return None


def device_called(short: str) -> Device:
    """A device by its short name.

    Raises:
        ConfigError: no device is called so.

    >>> device_called("h200").name
    'NVIDIA H200'
    """
    found = DEVICES.get(short.lower())
    if found is None:
        near = difflib.get_close_matches(short.lower(), DEVICES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"--gpu {short} is not known; {hint}known: {', '.join(DEVICES)}")
    return found
