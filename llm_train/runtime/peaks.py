"""Dense peak arithmetic rates by device name: the denominator of MFU.

Vendors advertise rates with 2:4 sparsity, which no pretraining uses; every number here is the dense
one, half the advertised one where only that is printed. Where a chip multiplies faster when it also
accumulates in fp16 (GeForce), the rate with fp32 accumulation is given, since that is what runs.
``fp32`` is the rate without TF32. A device is what the framework calls one: half an MI250X.

A name that is not matched in full has no peak: an MFU against a guessed peak is worse than none.
"""

from __future__ import annotations

import re

DTYPES = ("bf16", "fp16", "tf32", "fp32", "fp8")

# Pattern over the device name -> TFLOP/s by dtype. The first match counts.
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    # NVIDIA GB200 NVL72 datasheet (2024), per superchip with sparsity, over 2 GPUs and over 2.
    (r"GB200", {"bf16": 2500, "fp16": 2500, "tf32": 1250, "fp32": 80, "fp8": 5000}),
    # NVIDIA HGX B200 datasheet (2025), eight GPUs with sparsity, over 8 and over 2.
    (r"B200", {"bf16": 2250, "fp16": 2250, "tf32": 1125, "fp32": 75, "fp8": 4500}),
    # NVIDIA H200 datasheet (2024), with sparsity, over 2; the NVL column.
    (r"H200 NVL", {"bf16": 835.5, "fp16": 835.5, "tf32": 417.5, "fp32": 60, "fp8": 1670.5}),
    # NVIDIA GH200 datasheet (2023) and NVIDIA H200 datasheet, SXM column: the chip of the H100 SXM.
    (r"G?H200", {"bf16": 989.5, "fp16": 989.5, "tf32": 494.5, "fp32": 67, "fp8": 1979}),
    # NVIDIA H100 datasheet (2024), NVL column, with sparsity, over 2.
    (r"H100 NVL", {"bf16": 835.5, "fp16": 835.5, "tf32": 417.5, "fp32": 60, "fp8": 1670.5}),
    # NVIDIA H100 datasheet (2022), PCIe column, with sparsity, over 2.
    (r"H100 PCIe", {"bf16": 756.5, "fp16": 756.5, "tf32": 378, "fp32": 51, "fp8": 1513}),
    # NVIDIA H100 datasheet, SXM column, with sparsity, over 2; "H100 80GB HBM3" in the driver.
    (
        r"H100(?: SXM5?| [0-9]+GB HBM3)",
        {"bf16": 989.5, "fp16": 989.5, "tf32": 494.5, "fp32": 67, "fp8": 1979},
    ),
    # NVIDIA A100 datasheet (2021); SXM and PCIe alike.
    (r"A100", {"bf16": 312, "fp16": 312, "tf32": 156, "fp32": 19.5}),
    # NVIDIA L40S datasheet (2023).
    (r"L40S", {"bf16": 362.05, "fp16": 362.05, "tf32": 183, "fp32": 91.6, "fp8": 733}),
    # NVIDIA L4 datasheet (2023), with sparsity, over 2.
    (r"L4", {"bf16": 121, "fp16": 121, "tf32": 60, "fp32": 30.3, "fp8": 242.5}),
    # NVIDIA A10G datasheet, as published by AWS for G5 instances (2021).
    (r"A10G", {"bf16": 70, "fp16": 70, "tf32": 35, "fp32": 31.5}),
    # NVIDIA A10 datasheet (2021).
    (r"A10", {"bf16": 125, "fp16": 125, "tf32": 62.5, "fp32": 31.2}),
    # NVIDIA V100 datasheet (2020): V100S, SXM2, PCIe columns; no bf16, no TF32.
    (r"V100S", {"fp16": 130, "fp32": 16.4}),
    (r"V100.SXM[23]", {"fp16": 125, "fp32": 15.7}),
    (r"V100.PCIE", {"fp16": 112, "fp32": 14}),
    # NVIDIA Blackwell RTX architecture whitepaper (2025), appendix, fp32 accumulation.
    (r"RTX 5090", {"bf16": 209.5, "fp16": 209.5, "tf32": 104.8, "fp32": 104.8, "fp8": 419}),
    # NVIDIA Ada architecture whitepaper (2022), appendix A, fp32 accumulation.
    (r"RTX 4090", {"bf16": 165.2, "fp16": 165.2, "tf32": 82.6, "fp32": 82.6, "fp8": 330.3}),
    # NVIDIA GA102 architecture whitepaper (2020), appendix A, fp32 accumulation.
    (r"RTX 3090", {"bf16": 71, "fp16": 71, "tf32": 35.6, "fp32": 35.6}),
    # AMD Instinct MI300X datasheet (2023).
    (
        r"MI300X",
        {"bf16": 1307.4, "fp16": 1307.4, "tf32": 653.7, "fp32": 163.4, "fp8": 2614.9},
    ),
    # AMD Instinct MI250X datasheet (2021), matrix rates, over 2: each of its two dies is a device.
    (r"MI250X", {"bf16": 191.5, "fp16": 191.5, "fp32": 47.85}),
)

# What may stand around the model in a name: maker, family, form factor, memory. "Laptop", "Ti", "D"
# (other chips) and "MIG ..." (a slice of a chip) may not.
_BEFORE = r"(?:NVIDIA |AMD |GeForce |Instinct |Tesla )*"
_AFTER = r"(?:[ -](?:SXM[0-9]?|PCIe|OAM|[0-9]+GB|HBM[0-9]e?|VF))*"


def dense_peak_flops(device_name: str, dtype: str) -> float | None:
    """Peak FLOP/s of one device, without sparsity.

    Args:
        device_name: as ``torch.cuda.get_device_name`` gives it.
        dtype: the type that matrices are multiplied in: one of ``DTYPES``.

    Returns:
        FLOP/s, or None when the device is not known or has no such unit.

    >>> dense_peak_flops("NVIDIA H100 80GB HBM3", "bf16")
    989500000000000.0
    >>> dense_peak_flops("cpu", "fp32") is None
    True
    """
    assert dtype in DTYPES, f"{dtype!r} is none of {DTYPES}"
    for pattern, rates in _PEAKS:
        if re.fullmatch(_BEFORE + pattern + _AFTER, device_name.strip(), re.IGNORECASE):
            return rates[dtype] * 1e12 if dtype in rates else None
    return None
