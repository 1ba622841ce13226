"""What an architecture of ``transformers`` is: one table, read in both directions.

Export asks which architecture computes exactly what a network computes, import which network
computes what a folder holds; settings, ``config.json`` and names of tensors come from the same
lines, so that neither direction can say something the other does not know. Import ends with reading
the table forward: a value of ``config.json`` that the network found would not write is refused.

Tensors change layout only, never a value, except norms that are stored as their distance from 1:
queries, keys and values are one matrix here, ordered by group (``attention.py``), gate and up
projection alternate in slabs (``mlp.py``), and GPT-2 stores its matrices transposed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from llm_train.discovery import concrete
from llm_train.errors import ConfigError
from llm_train.exchange.families import rope
from llm_train.model.network.base import Network
from llm_train.model.network.transformer import Transformer

_SHARED = ("relu2", "silu", "relu", "leaky_relu", "sigmoid", "tanh")  # of one name in both
PLAIN = {**{name: name for name in _SHARED}, "gelu": "gelu_pytorch_tanh", "gelu_erf": "gelu"}
GATED = {
    "swiglu": "silu",
    "geglu": "gelu_pytorch_tanh",
    "geglu_erf": "gelu",
    "reglu": "relu",
    "leaky_reglu": "leaky_relu",
    "reglu2": "relu2",
    "glu": "sigmoid",
    "tanh_glu": "tanh",
}
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key_value_heads",
    "intermediate_size": "hidden",
    "max_position_embeddings": "max_sequence",
    "tie_word_embeddings": "tied",
}
PRE_NORM = {
    "norm": "rmsnorm",
    "norm_placement": "pre",
    "positions": "rotary",
    "qk_norm": False,
    "soft_cap": 0.0,
    "embedding_scale": 1.0,
}
_LAYER = "model.layers.{}"
LLAMA = {
    "embedding": ("model.embed_tokens",),
    "layers.{}.attention_norm": (f"{_LAYER}.input_layernorm",),
    "layers.{}.attention.qkv": tuple(f"{_LAYER}.self_attn.{x}_proj" for x in "qkv"),
    "layers.{}.attention.out": (f"{_LAYER}.self_attn.o_proj",),
    "layers.{}.attention.q_norm": (f"{_LAYER}.self_attn.q_norm",),
    "layers.{}.attention.k_norm": (f"{_LAYER}.self_attn.k_norm",),
    "layers.{}.mlp_norm": (f"{_LAYER}.post_attention_layernorm",),
    "layers.{}.mlp.gate_up": (f"{_LAYER}.mlp.gate_proj", f"{_LAYER}.mlp.up_proj"),
    "layers.{}.mlp.up": (f"{_LAYER}.mlp.up_proj",),
    "layers.{}.mlp.down": (f"{_LAYER}.mlp.down_proj",),
    "norm": ("model.norm",),
    "head": ("lm_head",),
}
# Arguments of ``Transformer`` where a property of another name has the value that is in use.
_ARGUMENTS = {"key_value_heads": "kv_heads", "hidden": "mlp_width"}
_SAME = {"gelu_new": "gelu_pytorch_tanh", "swish": "silu"}  # other names of a function


class Family:
    """An architecture. Subclasses hold the table; none has state.

    Attributes:
        model_type: its name in ``config.json``.
        causal_lm: its class with a head.
        fixed: settings that every network of it has.
        keys: settings that vary: key of ``config.json`` -> ours.
        activations: ours -> theirs.
        activation_key: where theirs stands.
        tensors: path of a module here -> those of its parts there, ``{}`` being a layer's number.
        rotary: whether it has rotary positions.
        unit_norms: its norms are stored as their distance from 1.
        transposed: modules with a matrix that is stored transposed.
        code: module of ``llm_train.exchange`` that travels with it; "": transformers has it.
    """

    model_type: ClassVar[str]
    causal_lm: ClassVar[str]
    fixed: ClassVar[Mapping[str, Any]]
    keys: ClassVar[Mapping[str, str]]
    activations: ClassVar[Mapping[str, str]] = PLAIN
    activation_key: ClassVar[str] = "hidden_act"
    tensors: ClassVar[Mapping[str, Sequence[str]]] = LLAMA
    rotary: ClassVar[bool] = True
    unit_norms: ClassVar[bool] = False
    transposed: ClassVar[Sequence[str]] = ()
    code: ClassVar[str] = ""

    def constants(self, network: Transformer) -> dict[str, Any]:
        """What else ``config.json`` must say of ``network``; heads share its width."""
        return {"head_dim": network.head_dim}

    def settings(self, width: int, heads: int) -> Mapping[str, Any]:
        """``fixed``, and what follows from these two."""
        return self.fixed

    # --- settings ---------------------------------------------------------------------------------

    def obstacles(self, network: Transformer) -> list[str]:
        """The settings of a network that this architecture does not have; none: it fits."""
        found = [
            f"{_ARGUMENTS.get(key, key)}={getattr(network, key)}"
            for key, value in self.settings(network.width, network.heads).items()
            if not _equal(getattr(network, key), value)
        ]
        if network.activation not in self.activations:
            found.append(f"activation={network.activation}")
        return found

    def config(self, network: Transformer) -> dict[str, Any]:
        """What ``config.json`` says of a network; rotary positions under ``rope``."""
        values = {theirs: getattr(network, ours) for theirs, ours in self.keys.items()}
        values[self.activation_key] = self.activations[network.activation]
        if self.rotary:
            base, scaling = network.rotary_base, network.rotary_scaling
            values["rope"] = rope.written(base, scaling, network.head_dim)
        return {**values, **self.constants(network)}

    def network(self, config: Mapping[str, Any]) -> Transformer:
        """The network of a ``config.json`` whose defaults are filled in.

        Raises:
            ConfigError: a value that no network of ours has.
        """
        # What turns of a head is said among the rotary positions by version 5.
        theirs = {"partial_rotary_factor": 1.0, **config, "rope": rope.found(config)}
        name = theirs[self.activation_key]
        theirs[self.activation_key] = _SAME.get(name, name)
        ours = {v: k for k, v in self.activations.items()}.get(theirs[self.activation_key])
        if ours is None:
            raise ConfigError(f"{self.model_type}: {self.activation_key}={name} is not known here")
        known = {key: name for key, name in self.keys.items() if theirs.get(key) is not None}
        arguments = {"activation": ours, **{name: theirs[key] for key, name in known.items()}}
        arguments |= self.settings(arguments["width"], arguments["heads"])
        if self.rotary:
            base, scaling = rope.read(theirs["rope"])
            arguments |= {"rotary_base": base, "rotary_scaling": scaling}
        network = Transformer(**{_ARGUMENTS.get(key, key): v for key, v in arguments.items()})
        wrong = [
            f"{key}={theirs.get(key)} (only {value} is known here)"
            for key, value in self.config(network).items()
            if not _equal(theirs.get(key), value)
            and not (key in self.keys and theirs.get(key) is None)
        ]
        if wrong:
            raise ConfigError(f"{self.model_type}: " + ", ".join(wrong))
        return network

    # --- tensors ----------------------------------------------------------------------------------

    def theirs(self, network: Transformer, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """One of our parameters in their layout, by their names; without rows that pad."""
        module, names = self._names(name)
        if module in ("embedding", "head"):
            tensor = tensor[: network.vocab_size]
        parts = parts_of(network, module, self._shifted(module, name, tensor, -1.0))
        if len(names) < len(parts):
            parts = [torch.cat(parts)]
        if module in self.transposed and tensor.dim() == 2:
            parts = [part.T for part in parts]
        return {name: part.contiguous() for name, part in zip(names, parts, strict=True)}

    def ours(self, network: Transformer, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """The inverse of ``theirs``; ``read`` gives one of their tensors."""
        module, names = self._names(name)
        parts = [read(name) for name in names]
        if module in self.transposed and parts[0].dim() == 2:
            parts = [part.T for part in parts]
        return self._shifted(module, name, whole_of(network, module, parts), 1.0).contiguous()

    def _names(self, name: str) -> tuple[str, list[str]]:
        """Last name of the module that has a parameter here, and the names of its parts there."""
        path, _, kind = name.rpartition(".")
        words = path.split(".")
        index = words[1] if words[0] == "layers" else ""
        pattern = ".".join(["layers", "{}", *words[2:]]) if index else path
        return words[-1], [f"{there.format(index)}.{kind}" for there in self.tensors[pattern]]

    def _shifted(self, module: str, name: str, tensor: Tensor, by: float) -> Tensor:
        shifts = self.unit_norms and module.endswith("norm") and name.endswith("weight")
        return tensor.float() + by if shifts else tensor


def families() -> list[Family]:
    """All architectures of transformers, in the order of their names."""
    return [kind() for kind in concrete(Family) if not kind.code]


def fitting(network: Network, *, custom: bool = False) -> Family:
    """The architecture that computes exactly what ``network`` computes.

    Args:
        network: of the run.
        custom: take one whose code travels with the weights, where transformers has none.

    Raises:
        ConfigError: none does; what is in the way is said of each, the nearest first.
    """
    if not isinstance(network, Transformer):
        raise ConfigError(
            f"model.network={type(network).__name__} fits no architecture of transformers; only "
            "Transformer can be exported"
        )
    found = {family: family.obstacles(network) for family in families()}
    nearest = sorted(found, key=lambda family: len(found[family]))
    if not found[nearest[0]]:
        return nearest[0]
    if custom:
        return next(kind() for kind in concrete(Family) if kind.code)
    said = "; ".join(f"{f.model_type} has not {', '.join(found[f])}" for f in nearest)
    raise ConfigError(
        f"model.network fits no architecture of transformers exactly: {said}; --custom-code writes "
        "it with code of its own"
    )


def _equal(one: object, other: object) -> bool:
    """The same value; numbers up to the rounding of what somebody typed."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        return numbers and math.isclose(one, other, rel_tol=1e-7)  # type: ignore[arg-type]
    return one == other


def parts_of(network: Transformer, module: str, tensor: Tensor) -> list[Tensor]:
    """The matrices, or biases, that a fused parameter holds, each with its rows in order."""
    if module == "qkv":
        heads = _rows(tensor, network.key_value_heads, -1, network.head_dim)
        split = (heads[:, :-2], heads[:, -2:-1], heads[:, -1:])
        return [part.flatten(0, 2) for part in split]
    if module == "gate_up":
        return [part.flatten(0, 1) for part in _rows(tensor, -1, 2, network.slab).unbind(1)]
    return [tensor]


def whole_of(network: Transformer, module: str, parts: list[Tensor]) -> Tensor:
    """The inverse of ``parts_of``."""
    if module == "qkv":
        parts = list(parts[0].chunk(3)) if len(parts) == 1 else parts
        groups = [_rows(part, network.key_value_heads, -1, network.head_dim) for part in parts]
        return torch.cat(groups, dim=1).flatten(0, 2)
    if module == "gate_up":
        return torch.stack([_rows(part, -1, network.slab) for part in parts], 1).flatten(0, 2)
    return parts[0]


def _rows(tensor: Tensor, *sizes: int) -> Tensor:
    """The first dimension cut into several."""
    return tensor.reshape(*sizes, *tensor.shape[1:])
