"""Which kernel torch's scaled_dot_product_attention runs, and which one it would choose.

A kernel that is asked for by name is the only one that torch may use during the run, so that it
refuses a call which that kernel cannot compute instead of quietly taking another. ``auto`` is an
order of preference: on Hopper and Blackwell cuDNN's fused attention is the fastest of those that
come with torch, but torch does not always try it first. Both are global states of torch; they are
set around a run and put back. On a CPU there is one fused kernel.

``math`` is attention written out in plain operators, on every device. It holds all scores, and is
the only one through which torch can differentiate twice, or forwards: Hessian-vector products and
``torch.func.jvp`` need it.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from llm_train.context import Context
from llm_train.errors import ConfigError
from llm_train.model.network.base import LanguageModel, Network
from llm_train.model.network.confined import DocumentView, Masks, confine
from llm_train.model.network.meta import without_memory

Kernel = Literal["auto", "cudnn", "flash", "efficient", "math"]

_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_NAMES = {backend: name for name, backend in _KERNELS.items()}
_CUDNN_FROM = (9, 0)  # compute capability
# What torch says where no kernel is left, also inside a compiler's error.
_REFUSALS = ("No available kernel", "No viable backend for scaled_dot_product_attention")
_LONGEST_PROBE = 2048  # positions; no kernel's rules look at more


def problems(kernel: Kernel, config: Network, context: Context) -> Iterator[str]:
    """A kernel that is not installed, that nothing would use, or that cannot compute this."""
    if context.documents == "confined":
        yield from _mask_problems(kernel, config)
    if kernel not in ("auto", "math") and (kind := context.accelerator.type) != "cuda":
        yield (
            f"model.attention={kernel} has no effect on {kind}, which has one fused kernel; "
            "remove it, or write math"
        )
        return
    if kernel in ("cudnn", "flash") and "16" not in context.precision:
        yield (
            f"model.attention={kernel} computes in 16 bits alone, and "
            f"trainer.precision={context.precision}; set trainer.precision=bf16-mixed, or write "
            "efficient or auto"
        )


def _mask_problems(kernel: Kernel, config: Network) -> Iterator[str]:
    """What cannot keep documents apart."""
    if config.document_masks == "none":
        yield (
            f"model.documents=confined needs a network that takes documents, and "
            f"{type(config).__name__} does not; write its document_masks, or joined"
        )
    if kernel == "flash":
        yield (
            f"model.attention={kernel} takes no mask, without which model.documents=confined "
            "cannot be; write auto, which takes FlexAttention in 16 bits on a GPU, or efficient"
        )


def in_blocks(kernel: Kernel, masks: Masks, precision: str, device: torch.device) -> bool:
    """Whether FlexAttention keeps documents apart; if not, a mask of all pairs does.

    It passes over blocks that hold no pair, and has kernels on GPUs, for 16 bits above all.
    """
    fast = device.type == "cuda" and "16" in precision
    return fast and kernel == "auto" and masks == "blocks"


@contextmanager
def attention_kernel(kernel: Kernel, device: torch.device) -> Iterator[None]:
    """Computes attention by ``kernel`` inside the block, or raises an error where it cannot.

    Args:
        kernel: ``auto`` tries cudnn first from compute capability 9.0 on, flash before, and then
            the others.
        device: of the run.

    Raises:
        ConfigError: ``kernel`` cannot compute what it was asked for.
    """
    with ExitStack() as stack:
        if device.type == "cuda" and kernel == "auto":
            capability = torch.cuda.get_device_capability(device)
            first = "cudnn" if capability >= _CUDNN_FROM else "flash"
            order = sorted(_KERNELS, key=lambda name: name != first)  # the others in their order
            _let_torch_set_its_order(device)
            stack.enter_context(sdpa_kernel([_KERNELS[name] for name in order], set_priority=True))
        elif device.type == "cuda" or kernel == "math":
            stack.enter_context(sdpa_kernel(_KERNELS[kernel]))
        stack.enter_context(_known_to_compile_caches())
        try:
            yield
        except RuntimeError as error:
            if not any(words in str(error) for words in _REFUSALS):
                raise
            raise ConfigError(_cannot(kernel, "torch's warnings say why")) from error


def _cannot(kernel: Kernel, reason: str) -> str:
    return (
        f"model.attention={kernel} cannot compute this network's attention here ({reason}); "
        "write auto"
    )


def _let_torch_set_its_order(device: torch.device) -> None:
    """Makes the first choice of this process, in which torch 2.11 to 2.13 overwrite the order."""
    with torch.cuda.device(device):
        query = torch.empty(1, 1, 1, 8, device=device, dtype=torch.bfloat16)
        torch._fused_sdp_choice(query, query, query)


@contextmanager
def _known_to_compile_caches() -> Iterator[None]:
    """Gives graphs compiled inside the block entries of their own in torch's caches on disk.

    A kernel is chosen while a graph is compiled and is part of the result, but torch looks a result
    up by what goes in, and does not count the kernels that are allowed, and their order, among it.
    """
    kernels = _cur_sdpa_kernel_backends(with_priority=True)
    tag = " ".join([torch.compiler.config.cache_key_tag, *(kernel.name for kernel in kernels)])
    # mypy does not see what torch adds to its modules of settings.
    with torch.compiler.config.patch(cache_key_tag=tag):  # type: ignore[attr-defined]
        yield


def chosen(
    kernel: Kernel,
    config: Network,
    sequence: int,
    precision: str,
    device: torch.device,
    documents: DocumentView = "joined",
) -> list[str]:
    """Names of the kernels that train a network on ``device``; empty where that is not known.

    Torch itself is asked, about the calls that the network makes.

    Args:
        kernel: what was asked for.
        config: of the network.
        sequence: positions of a sample.
        precision: trainer.precision by its full name.
        device: of the run.
        documents: whether they are kept apart.

    Raises:
        ConfigError: ``kernel`` cannot compute one of the calls.
    """
    confined = documents == "confined"
    if confined and in_blocks(kernel, config.document_masks, precision, device):
        return ["flex"]
    low = {"bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16, "16-mixed": torch.float16}
    dtype = low.get(precision, torch.float32)
    with without_memory():
        network = config.build()

    def real(leaf: Any) -> Any:  # a leaf of arguments is anything
        if not isinstance(leaf, Tensor):
            return leaf
        own = dtype if leaf.is_floating_point() else leaf.dtype
        tensor = torch.empty_strided(leaf.shape, leaf.stride(), dtype=own, device=device)
        return tensor.requires_grad_(leaf.requires_grad)

    found = set()
    for args, kwargs in _calls(network, min(sequence, _LONGEST_PROBE), confined):
        with warnings.catch_warnings(record=True) as caught, attention_kernel(kernel, device):
            warnings.simplefilter("always")
            try:
                number = torch._fused_sdp_choice(*tree_map(real, args), **tree_map(real, kwargs))
            except RuntimeError as error:
                raise ConfigError(_cannot(kernel, _reason(caught))) from error
        found.add(_NAMES.get(SDPBackend(number), SDPBackend(number).name))
    return sorted(found)


def _reason(caught: Sequence[warnings.WarningMessage]) -> str:
    """What torch says of the one kernel that it was allowed to use."""
    texts = [str(warning.message).partition(" (Triggered")[0] for warning in caught]
    others = ("not used because", "runtime disabled")
    own = [text.rstrip(".") for text in texts if not any(words in text for words in others)]
    return own[0] if own else "torch does not say why"


def _calls(
    network: LanguageModel, sequence: int, confined: bool
) -> list[tuple[Sequence[Any], Mapping[str, Any]]]:
    """Arguments of the different calls of scaled_dot_product_attention in a training step."""
    recorder = _Recorder()
    try:
        with torch.device("meta"), recorder:
            tokens = torch.zeros(1, sequence, dtype=torch.long)
            given = {"documents": confine(tokens, 0, blocks=False)} if confined else {}
            network(tokens, lambda hidden, projection: projection.logits(hidden), **given)
    except Exception:  # any that a forward without values can raise
        return []
    return list(recorder.found.values())


class _Recorder(TorchFunctionMode):
    """Keeps the arguments of calls that differ in shapes, strides or options."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, tuple[Sequence[Any], Mapping[str, Any]]] = {}

    def __torch_function__(  # Any: torch's own signature
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention:
            shapes = tree_map(_shape, (args, given))
            self.found[str(shapes)] = args, given
        return func(*args, **given)


def _shape(leaf: Any) -> Any:
    return (leaf.shape, leaf.stride()) if isinstance(leaf, Tensor) else leaf
