"""The order of attention kernels is set for the time of a run and then put back."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from llm_train.model.network.sdpa import attention_order


@pytest.mark.parametrize(
    ("kernel", "first"),
    [
        ("cudnn", SDPBackend.CUDNN_ATTENTION),
        ("flash", SDPBackend.FLASH_ATTENTION),
        ("efficient", SDPBackend.EFFICIENT_ATTENTION),
    ],
)
def test_order_is_set_and_put_back(kernel, first):
    before = _cur_sdpa_kernel_backends(with_priority=True)
    with attention_order(kernel, torch.device("cuda")):
        inside = _cur_sdpa_kernel_backends(with_priority=True)
        assert inside[0] == first
        assert set(inside) >= {SDPBackend.MATH, SDPBackend.FLASH_ATTENTION}
    assert _cur_sdpa_kernel_backends(with_priority=True) == before


def test_nothing_changes_on_a_cpu():
    before = _cur_sdpa_kernel_backends(with_priority=True)
    with attention_order("cudnn", torch.device("cpu")):
        assert _cur_sdpa_kernel_backends(with_priority=True) == before
