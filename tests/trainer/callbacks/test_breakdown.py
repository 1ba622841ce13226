"""The timelines are made by hand, so that the right breakdown is known."""

from __future__ import annotations

import pytest

from llm_train.trainer.callbacks.breakdown import (
    HEAD_RANGE,
    LOADER_RANGE,
    UPDATE_MARK,
    Event,
    break_down,
)
from llm_train.trainer.callbacks.intervals import Claim, Union, exclusive, innermost
from llm_train.trainer.callbacks.kinds import kernel_kind, operator_kind
from llm_train.trainer.callbacks.profile import tables

MAIN, AUTOGRAD = 1, 2


# --- intervals ------------------------------------------------------------------------------------


def test_a_union_counts_an_instant_once_and_knows_what_is_in_it() -> None:
    union = Union([(10, 20), (0, 5), (15, 30), (30, 31)])
    assert union.length == 5 + 21
    assert [t in union for t in (0, 5, 7, 10, 29, 31)] == [True, False, False, True, True, False]
    assert Union([]).length == 0


def test_pieces_of_nested_ranges_are_self_times() -> None:
    outer, first, inner, second = (
        Event("outer", "cpu_op", 0, 10),
        Event("first", "cpu_op", 1, 5),
        Event("inner", "cpu_op", 2, 3),
        Event("second", "cpu_op", 5, 10.001),  # it outlives its parent by a rounding error
    )
    apart = Event("apart", "cpu_op", 12, 13)
    pieces = innermost([second, apart, inner, first, outer])
    assert [(start, end, e.name) for start, end, e in pieces] == [
        (0, 1, "outer"),
        (1, 2, "first"),
        (2, 3, "inner"),
        (3, 5, "first"),
        (5, 10.001, "second"),
        (12, 13, "apart"),
    ]


def test_an_instant_goes_to_the_lowest_rank_and_then_to_the_earliest() -> None:
    claims = [
        Claim(-5, 100, 9, "rest"),
        Claim(0, 10, 0, "a"),
        Claim(5, 20, 0, "b"),
        Claim(8, 30, 1, "c"),
    ]
    assert exclusive(claims, 0, 50) == {"a": 10, "b": 10, "c": 10, "rest": 20}


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNN", "matmul"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_cublas", "matmul"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm>(Params)", "matmul"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float>(args)", "matmul"),
        ("triton_tem_fused_mm_1", "matmul"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_7_64x128", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64> >(x)", "attention"),
        ("void cutlass::device_kernel<flash::FlashAttnFwdSm90<...> >(x)", "attention"),
        ("triton_tem_fused_flex_attention_0", "attention"),
        ("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "communication"),
        (
            "void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4> >",
            "optimizer",
        ),
        ("void at::native::multi_tensor_apply_kernel<LpNormFunctor<float> >", "optimizer"),
        ("triton_poi_fused__to_copy_3", "copies"),
        ("triton_poi_fused_addmm_gelu_view_5", "element-wise and norms"),
        ("triton_red_fused__to_copy_native_layer_norm_backward_2", "element-wise and norms"),
        ("void at::native::elementwise_kernel<direct_copy_kernel_cuda(...)>", "copies"),
        ("void at::native::split_with_sizes_copy_out_contiguous_no_cast_kernel", "copies"),
        (
            "void at::native::vectorized_elementwise_kernel<4, GeluFunctor>",
            "element-wise and norms",
        ),
        ("void at::native::reduce_kernel<512, 1, ReduceOp<float> >", "element-wise and norms"),
    ],
)
def test_kinds_of_kernels(name: str, kind: str) -> None:
    assert kernel_kind(name) == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::linear", "matmul"),
        ("aten::bmm", "matmul"),
        ("mkldnn::_linear_pointwise", "matmul"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::native_layer_norm", "element-wise and norms"),
        ("## Call CompiledFxGraph fabc ##", "element-wise and norms"),
        ("aten::copy_", "copies"),
        ("c10d::allreduce_", "communication"),
        ("gloo:all_reduce", "communication"),
        ("aten::as_strided", "python/other"),
        ("MmBackward0", "python/other"),
    ],
)
def test_kinds_of_operators(name: str, kind: str) -> None:
    assert operator_kind(name) == kind


# --- hand-made timelines --------------------------------------------------------------------------


def steps(*ends: float) -> list[Event]:
    starts = [0.0, *ends[:-1]]
    return [
        Event(f"ProfilerStep#{n}", "user_annotation", start, end, MAIN)
        for n, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def launched(name: str, at: float, thread: int, start: float, end: float) -> list[Event]:
    number = int(1000 * at)
    return [
        Event("cudaLaunchKernel", "cuda_runtime", at, at + 1, thread, correlation=number),
        Event(name, "kernel", start, end, thread=7, correlation=number),
    ]


def on_a_gpu() -> list[Event]:
    """Returns two steps of 1000 microseconds each on one device."""
    return [
        *steps(1000, 2000),
        Event(LOADER_RANGE, "user_annotation", 0, 60, MAIN),
        Event("Memcpy HtoD (Pinned -> Device)", "gpu_memcpy", 70, 80, thread=7),
        *launched("sm90_gemm", 90, MAIN, 100, 300),
        *launched("flash_fwd_kernel", 95, MAIN, 300, 350),
        Event(HEAD_RANGE, "user_annotation", 100, 120, MAIN),
        Event("aten::view", "cpu_op", 99, 100, MAIN, sequence=5),  # a view takes no number
        Event("aten::mm", "cpu_op", 101, 110, MAIN, sequence=5),
        Event("aten::sum", "cpu_op", 111, 118, MAIN, sequence=6),  # the next one takes it
        Event("aten::div", "cpu_op", 121, 125, MAIN, sequence=6),
        *launched("nvjet_head", 103, MAIN, 350, 400),
        Event("DivBackward0", "cpu_op", 130, 140, AUTOGRAD, sequence=6, backward=True),
        *launched("elementwise_kernel", 131, AUTOGRAD, 400, 410),
        Event("MmBackward0", "cpu_op", 140, 160, AUTOGRAD, sequence=5, backward=True),
        *launched("nvjet_head_backward", 141, AUTOGRAD, 410, 500),
        *launched("nvjet_block_backward", 161, AUTOGRAD, 500, 600),
        *launched("ncclDevKernel_AllReduce", 165, AUTOGRAD, 550, 700),
        Event(UPDATE_MARK, "user_annotation", 200, 201, MAIN),
        *launched("elementwise_kernel", 210, MAIN, 700, 720),  # the update, whatever its name
        *launched("elementwise_kernel", 1100, MAIN, 1150, 1190),
        *launched("sm90_gemm", 1110, MAIN, 1160, 1260),  # alongside it, on another stream
        *launched("sm90_gemm", 2500, MAIN, 2500, 2600),  # after the last step
    ]


def test_a_gpu_timeline() -> None:
    found = break_down(on_a_gpu())
    assert (found.steps, found.step_milliseconds) == (2, 1.0)
    assert {row.name: round(1000 * row.milliseconds * 2) for row in found.kinds} == {
        "matmul": 200 + 100 + 70,  # without 30 of the last, which overlap
        "attention": 50,
        "head and loss": 50 + 90,
        "element-wise and norms": 10 + 40,
        "optimizer": 20,
        "communication": 100,  # the 50 alongside the backward are hidden
        "copies": 10,
        "data wait": 60,
        "python/other": 10 + 20 + 280 + 150 + 740,
    }
    assert sum(row.share for row in found.kinds) == pytest.approx(1.0)
    # Copies are not kernels, which run from 100 to 720 and 1150 to 1260 of 2000.
    assert found.idle == pytest.approx(1 - (620 + 110) / 2000)
    gemm = found.largest[0]
    assert (gemm.name, gemm.calls, gemm.milliseconds) == ("sm90_gemm", 1.0, pytest.approx(0.15))


def test_a_cpu_timeline() -> None:
    events = [
        *steps(1000),
        Event(LOADER_RANGE, "user_annotation", 0, 100, MAIN),
        Event("aten::to", "cpu_op", 20, 50, MAIN),  # inside the loader
        Event("aten::linear", "cpu_op", 100, 300, MAIN),
        Event("aten::t", "cpu_op", 110, 130, MAIN),
        Event("aten::addmm", "cpu_op", 130, 290, MAIN),
        Event(HEAD_RANGE, "user_annotation", 300, 400, MAIN),
        Event("aten::mm", "cpu_op", 310, 400, MAIN),
        Event(UPDATE_MARK, "user_annotation", 600, 601, MAIN),
        Event("aten::_foreach_norm", "cpu_op", 610, 640, MAIN),
        Event("gloo:all_reduce", "cpu_op", 620, 700, thread=9),  # nothing else covers 60 of it
    ]
    found = break_down(events, largest=2)
    assert found.idle is None
    assert {row.name: round(1000 * row.milliseconds) for row in found.kinds if row.share} == {
        "matmul": 10 + 160 + 10,
        "head and loss": 90,
        "optimizer": 30,
        "communication": 60,
        "data wait": 100,
        "python/other": 1000 - 180 - 90 - 30 - 60 - 100,
    }
    assert [(row.name, row.calls) for row in found.largest] == [("aten::addmm", 1), ("aten::mm", 1)]


def test_what_is_printed() -> None:
    first, second = tables(break_down(on_a_gpu()), first=11).items()
    assert first[0] == "profile of steps 11 to 12 (time of one step, share, kernels)"
    assert first[1]["head and loss"].split() == ["0.070", "ms", "7.0%", "1"]
    assert first[1]["one step"].split() == ["1.000", "ms", "100.0%"]
    assert first[1]["GPU without a kernel"].split() == ["63.5%"]
    assert second[0] == "largest kernels"
