"""The configuration that all variants share, and what had to be changed for it."""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_train.errors import ConfigError
from llm_train.parity.variants import Variant
from llm_train.runtime import yaml12
from llm_train.runtime.structure import flat, nested
from llm_train.settings import Settings
from llm_train.units import Duration

LEAST_STEPS = 4


def shared(settings: Settings, steps: int) -> dict[str, Any]:
    """Dotted key -> value of what is changed for all runs, where it differs.

    Lengths of model, batch and data, the phases of a schedule for instance, are shortened as the
    run is.
    """
    plain, tokens = settings.plain, settings.batch.tokens
    share = min(1.0, steps / settings.budget.steps(tokens))
    lengths = _durations({key: plain[key] for key in ("model", "batch", "data")})
    wanted = {
        **{key: f"{math.ceil(share * v.count)} {v.unit}" for key, v in lengths if share < 1},
        "budget": f"{steps * tokens} tokens" if settings.batch.ramp.tokens else f"{steps} steps",
        "validate_every": "0 steps",
        "checkpoint.every": "0 steps",
        "checkpoint.keep_every": "0 steps",
        "trainer.log_every_n_steps": 1,
        "trainer.num_nodes": 1,
        "trainer.logger": None,
        "trainer.profiler": None,
        "trainer.enable_progress_bar": False,
    }
    return {key: value for key, value in wanted.items() if _get(plain, key) != value}


def spelt(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values as YAML has them."""
    return {key: yaml12.dump(value).split("\n")[0] for key, value in changes.items()}


def refusals(plain: Mapping[str, Any], steps: int) -> Iterator[str]:
    """What makes a comparison impossible, one line each."""
    if steps < LEAST_STEPS:
        yield f"--steps={steps} must be at least {LEAST_STEPS}: the last two count collectives"
    for key, value in flat(plain.get("model"), "model").items():
        if "dropout" in key.rpartition(".")[2] and isinstance(value, int | float) and value:
            yield (
                f"{key}={value} draws another mask on every rank, so that strategies cannot be "
                f"compared; give --{key}=0"
            )


def write(
    file: Path, plain: Mapping[str, Any], changes: Mapping[str, Any], variant: Variant
) -> None:
    """Writes the configuration of ``variant``, whose run directory is alongside the file."""
    own = {
        "trainer.strategy": variant.strategy,
        "trainer.devices": variant.ranks,
        "trainer.default_root_dir": str(file.with_suffix("")),
    }
    config = nested({**changes, **own, **variant.overrides}, plain)
    file.write_text(yaml12.dump(config), encoding="utf-8")


def _get(plain: Mapping[str, Any], key: str) -> Any:
    value: Any = plain
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _durations(plain: object) -> Iterator[tuple[str, Duration]]:
    for key, value in flat(plain).items():
        with suppress(ConfigError):  # most texts are none
            if isinstance(value, str):
                yield key, Duration.parse(value)
