"""The attention kernel that is asked for holds for a run, is known to caches, and is reported."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from llm_train.errors import ConfigError
from llm_train.model.network import Transformer
from llm_train.model.network.sdpa import attention_kernel, chosen

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("kernel", "only"),
    [
        ("cudnn", SDPBackend.CUDNN_ATTENTION),
        ("flash", SDPBackend.FLASH_ATTENTION),
        ("efficient", SDPBackend.EFFICIENT_ATTENTION),
    ],
)
def test_the_kernel_asked_for_is_the_only_one_until_the_end(kernel, only):
    before = _cur_sdpa_kernel_backends(with_priority=True)
    with attention_kernel(kernel, GPU):
        assert _cur_sdpa_kernel_backends() == [only]
    assert _cur_sdpa_kernel_backends(with_priority=True) == before


def test_a_kernel_that_cannot_is_an_error_that_names_key_and_remedy():
    query = torch.zeros(1, 1, 4, 8)  # on a CPU, which has none of a GPU's kernels
    message = r"model\.attention=cudnn .*; write auto"
    with pytest.raises(ConfigError, match=message), attention_kernel("cudnn", GPU):
        scaled_dot_product_attention(query, query, query)


def test_nothing_changes_on_a_cpu():
    before = _cur_sdpa_kernel_backends(with_priority=True)
    with attention_kernel("cudnn", CPU):
        assert _cur_sdpa_kernel_backends(with_priority=True) == before


def test_each_kernel_has_a_key_of_its_own_in_caches_of_compiled_graphs():
    before, keys = torch.compiler.config.cache_key_tag, set()
    for kernel in ("cudnn", "flash", "efficient"):
        with attention_kernel(kernel, GPU):
            keys.add(torch.compiler.config.cache_key_tag)
    assert len(keys - {before}) == 3
    assert torch.compiler.config.cache_key_tag == before


@pytest.mark.parametrize(("dropout", "kernel"), [(0.0, "flash"), (0.1, "math")])
def test_torch_says_which_kernel_a_network_will_get(dropout, kernel):
    """A CPU's flash kernel has no dropout."""
    config = Transformer(
        vocab_size=61, layers=2, width=16, heads=2, max_sequence=16, dropout=dropout
    )
    assert chosen("auto", config, 16, "32-true", CPU) == [kernel]


@pytest.mark.slow  # a C++ compiler runs
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch.utils.mkldnn
def test_a_compiled_graph_is_not_taken_from_a_run_with_another_kernel():
    """On a CPU the plain kernel and the fused one are both there."""
    query = torch.randn(1, 1, 8, 8)
    ran = []
    with fresh_cache():
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
            torch.compiler.reset()  # as in a new process
            counters.clear()
            with sdpa_kernel(backend), attention_kernel("auto", CPU):
                compiled = torch.compile(_attend, dynamic=False)
                compiled(query)
                with profile(activities=[ProfilerActivity.CPU]) as record:
                    compiled(query)
            names = " ".join(event.key for event in record.key_averages())
            ran.append(("flash_attention" in names, counters["inductor"]["fxgraph_cache_hit"]))
    torch.compiler.reset()
    assert ran == [(True, 0), (False, 0), (True, 1)]


def _attend(query):
    return scaled_dot_product_attention(query, query, query, is_causal=True)
