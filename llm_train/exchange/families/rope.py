"""Rotary positions as ``config.json`` has them, read and written by one table.

The keys ``rope_theta`` and ``rope_scaling`` are written, since transformers 4 and 5 read both; what
version 5 writes itself (``rope_parameters``) is read, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from llm_train.errors import ConfigError
from llm_train.model.network.rotary_scaling.base import NoScaling, RotaryScaling
from llm_train.model.network.rotary_scaling.linear_scaling import LinearScaling
from llm_train.model.network.rotary_scaling.llama3 import Llama3
from llm_train.model.network.rotary_scaling.ntk_aware import NTKAware
from llm_train.model.network.rotary_scaling.yarn import YaRN

_ORIGINAL = "original_max_position_embeddings"
# Their name of a scaling, and theirs of each of its fields, in the order of ours.
_SCALINGS: Mapping[type[RotaryScaling], Sequence[str]] = {
    NoScaling: ("default",),
    LinearScaling: ("linear", "factor"),
    Llama3: ("llama3", "factor", _ORIGINAL, "low_freq_factor", "high_freq_factor"),
    YaRN: ("yarn", "factor", _ORIGINAL, "beta_fast", "beta_slow"),
}


def written(base: float, scaling: RotaryScaling, head_dim: int) -> dict[str, Any]:
    """Base and scaling in one mapping; NTK-aware scaling is no more than another base."""
    if isinstance(scaling, NTKAware):
        exponent = head_dim / (head_dim - 2) if head_dim > 2 else 0.0
        base, scaling = base * scaling.factor**exponent, NoScaling()
    if type(scaling) not in _SCALINGS:
        raise ConfigError(f"rotary_scaling={type(scaling).__name__}")
    name, *theirs = _SCALINGS[type(scaling)]
    values = dict(zip(theirs, vars(scaling).values(), strict=True))
    return {"rope_theta": base, "rope_type": name, **values}


def found(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration of any version says, in the form of ``written``."""
    new = config.get("rope_parameters") or {}
    rope = {"rope_theta": config.get("rope_theta", 10_000.0), **(config.get("rope_scaling") or {})}
    rope |= new.get("full_attention", new)  # one for each kind of layer in Gemma 3
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type", "default")
    if rope.get("partial_rotary_factor") == 1.0:
        del rope["partial_rotary_factor"]
    usual = {"beta_fast": 32.0, "beta_slow": 1.0} if rope["rope_type"] == "yarn" else {}
    return usual | {key: value for key, value in rope.items() if value is not None}


def read(rope: Mapping[str, Any]) -> tuple[float, RotaryScaling]:
    """The inverse of ``written``.

    Raises:
        ConfigError: a scaling that is not known here.
    """
    for kind, (name, *theirs) in _SCALINGS.items():
        if rope["rope_type"] == name:
            names = (field.name for field in fields(kind))  # type: ignore[arg-type]  # all are
            both = zip(names, theirs, strict=True)
            given = {ours: rope[key] for ours, key in both if key in rope}
            return float(rope["rope_theta"]), kind(**given)
    raise ConfigError(f"rope_type={rope['rope_type']}")
