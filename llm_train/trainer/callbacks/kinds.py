"""What a kernel or an operator does, told by its name.

Names are all there is: a trace does not say which part of the network a kernel belongs to. Compiled
kernels are named after the operators that were fused into them, matrix products that were
decomposed included, so how a compiled kernel was generated counts before what its name mentions.
"""

from __future__ import annotations

import re

MATMUL = "matmul"
ATTENTION = "attention"
HEAD = "head and loss"
ELEMENTWISE = "element-wise and norms"
OPTIMIZER = "optimizer"
COMMUNICATION = "communication"
COPIES = "copies"
DATA = "data wait"
OTHER = "python/other"
KINDS = (MATMUL, ATTENTION, HEAD, ELEMENTWISE, OPTIMIZER, COMMUNICATION, COPIES, DATA, OTHER)

# The first match counts.
_RULES: tuple[tuple[str, str], ...] = (
    (r"nccl|rccl|c10d::|gloo:|symm_mem|all_?reduce|all_?gather|reduce_?scatter", COMMUNICATION),
    # TorchInductor: pointwise kernels that only cast or move, then all pointwise and reductions.
    (r"^triton_poi_fused(?:__to_copy|_clone|_copy_|_cat|_view|_t|_transpose)+_\d+$", COPIES),
    (r"^triton_(?:poi|red|per|for)_", ELEMENTWISE),
    (r"_foreach_copy|multi_tensor_apply.*copy", COPIES),
    (r"adam|multi_tensor_apply|_foreach_|lpnorm", OPTIMIZER),
    # Before products: cuDNN and FlashAttention 3 are built from CUTLASS and say so.
    (r"flash|fmha|sdpa|attention|flex_attn", ATTENTION),
    (r"gemm|gemv|cutlass|cublas|nvjet|xmma|wgmma|splitk|triton_tem|matmul", MATMUL),
    (r"(?:::|_)linear", MATMUL),
    (r"(?:::|^|_)(?:b|add|badd|scaled_)?mm(?:_|$|\.)", MATMUL),
    (r"memcpy|memset|copy|catarray|split_with_sizes|chunk_cat|pin_memory", COPIES),
    (r"^aten::(?:to|clone|contiguous|cat|stack)$", COPIES),
)
_COMPILED_RULES = tuple((re.compile(pattern, re.IGNORECASE), kind) for pattern, kind in _RULES)

# Operators that only describe memory: their time is the host's.
_BOOKKEEPING = re.compile(
    r"^aten::(?:view|_?reshape\w*|_unsafe_view|transpose|t|permute|as_strided\w*|slice|select|"
    r"narrow|expand\w*|unsqueeze|squeeze|unbind|split|chunk|flatten|detach\w*|alias|lift_fresh|"
    r"empty\w*|new_empty\w*|resize\w*|set_|item|_local_scalar_dense|is_nonzero|result_type|"
    r"resolve_\w+|unsafe_\w+)$"
)
# On a CPU the fused kernels of a compiled graph are no operators of their own.
_COMPILED_GRAPH = re.compile(r"CompiledFxGraph")


def kernel_kind(name: str) -> str:
    """The kind of a device kernel.

    >>> kernel_kind("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_TNT"), kernel_kind("Memcpy HtoD")
    ('matmul', 'copies')
    >>> kernel_kind("triton_red_fused_addmm_native_layer_norm_3")
    'element-wise and norms'
    """
    return _by_rules(name) or ELEMENTWISE


def operator_kind(name: str) -> str:
    """The kind of what a CPU does itself inside an operator or an annotated range.

    >>> operator_kind("aten::addmm"), operator_kind("aten::mul"), operator_kind("aten::view")
    ('matmul', 'element-wise and norms', 'python/other')
    >>> operator_kind("autograd::engine::evaluate_function: AddmmBackward0")
    'python/other'
    """
    if _COMPILED_GRAPH.search(name):
        return ELEMENTWISE
    if "::" not in name or name.startswith("autograd::") or _BOOKKEEPING.match(name):
        return COMMUNICATION if name.startswith(("gloo:", "nccl:")) else OTHER
    return _by_rules(name) or (ELEMENTWISE if name.startswith("aten::") else OTHER)


def _by_rules(name: str) -> str | None:
    return next((kind for pattern, kind in _COMPILED_RULES if pattern.search(name)), None)


def short(name: str, width: int = 64) -> str:
    """A C++ name without return type, arguments and the details of its template arguments.

    >>> short("void at::native::unrolled_kernel<4, at::native::GeluFunctor<float> >(int)")
    'at::native::unrolled_kernel<4, GeluFunctor<float> >'
    """
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    head, template, arguments = name.partition("<")
    if template:
        name = head + template + re.sub(r"\w+::", "", arguments)
    name = re.sub(r" ?\(.*", "", name)
    return name if len(name) <= width else name[: width - 3] + "..."
