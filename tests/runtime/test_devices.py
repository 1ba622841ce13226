"""Uses names as drivers report them and numbers as datasheets print them."""

import pytest

from llm_train.errors import ConfigError
from llm_train.runtime.devices import DEVICES, device_called, device_named


def peak_of(name, dtype):
    device = device_named(name)
    return None if device is None else device.tflops[dtype] * 1e12 or None


@pytest.mark.parametrize(
    ("name", "bf16_tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("AMD Instinct MI300X", 1307.4),
        ("AMD Instinct MI250X", 191.5),
        # These are other chips, whose names contain or resemble a known one.
        ("NVIDIA H20", None),
        ("NVIDIA L40", None),
        ("NVIDIA A40", None),
        ("NVIDIA A100X", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Tesla V100-SXM2-16GB", None),
        ("cpu", None),
        ("", None),
    ],
)
def test_bf16(name, bf16_tflops):
    peak = peak_of(name, "bf16")
    assert peak == (None if bf16_tflops is None else pytest.approx(bf16_tflops * 1e12))


@pytest.mark.parametrize(
    ("name", "fp16_tflops"),
    [("Tesla V100-SXM2-16GB", 125), ("Tesla V100-PCIE-32GB", 112), ("Tesla V100S-PCIE-32GB", 130)],
)
def test_volta_has_fp16_only(name, fp16_tflops):
    assert peak_of(name, "fp16") == pytest.approx(fp16_tflops * 1e12)
    assert peak_of(name, "tf32") is None


@pytest.mark.parametrize("name", ["NVIDIA H200", "NVIDIA GB200", "NVIDIA L4", "NVIDIA A10G"])
def test_narrower_types_are_not_slower(name):
    rates = [peak_of(name, dtype) for dtype in ("fp32", "tf32", "bf16", "fp8")]
    known = [rate for rate in rates if rate is not None]
    assert known == sorted(known)
    assert peak_of(name, "bf16") == peak_of(name, "fp16")


def test_an_unknown_device_is_refused():
    with pytest.raises(ConfigError, match=r"--gpu h20 is not known; did you mean h200\? known: "):
        device_called("h20")
    for name in DEVICES:
        assert device_called(name).peak_flops("bf16") > 1e13
