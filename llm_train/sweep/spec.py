"""What is varied and how: the file of a sweep, and the trials that it proposes, one after another.

Proposals depend on the file and on the results so far, and on nothing else. So a sweep that starts
again proposes the same trials, finds those that are done by their values, and needs no database.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llm_train.errors import ConfigError, LLMTrainError
from llm_train.runtime import yaml12
from llm_train.runtime.extras import library
from llm_train.runtime.structure import structure

Domain = list[Any] | Mapping[str, Any]
"""What a key may be: one of a list, or a number in a range."""

Values = dict[str, Any]
"""What one trial sets, by dotted key."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The file of a sweep.

    Attributes:
        keys: dotted key -> a list of values, or a range ``{low: 1e-4, high: 1e-1, log: true}``.
        config: YAML files of the configuration, before those of the command line.
        method: grid, random, or a class of ``optuna.samplers``, for instance TPESampler.
        trials: how many, unless it is a grid.
        seed: of random and of the sampler.
        metric: name of the metric that is best when it is smallest.
        fit: ``{rate: KEY, against: KEY, at: VALUE}``: what the best rate is as a power of another
            number, a batch or a width, and at a value of it; {} fits nothing.
    """

    keys: dict[str, Any]
    config: list[str]
    method: str
    trials: int
    seed: int
    metric: str
    fit: dict[str, Any]

    def __post_init__(self) -> None:
        if "trainer.default_root_dir" in self.keys:
            raise ValueError("keys.trainer.default_root_dir is the sweep's own; give --out=PATH")
        ranges = [key for key, domain in self.keys.items() if not isinstance(domain, list)]
        if not self.keys or any(not domain for domain in self.keys.values()):
            raise ValueError("keys name nothing to vary; write KEY: [VALUE, VALUE]")
        if self.method == "grid" and (ranges or self.trials):
            raise ValueError("method=grid takes lists and no trials; write random, or leave it out")
        if self.method != "grid" and self.trials < 1:
            raise ValueError(f"method={self.method} needs trials, a number of at least 1")
        for key in ranges:
            domain = self.keys[key]
            if not isinstance(domain, Mapping) or not {*domain} >= {"low", "high"}:
                raise ValueError(f"keys.{key} is neither a list nor a range with low and high")
            if not (0 if domain.get("log") else -math.inf) < domain["low"] < domain["high"]:
                raise ValueError(f"keys.{key}: low must be below high, and above 0 where log is")
        if self.fit and {*self.fit} != {"rate", "against", "at"}:
            raise ValueError("fit needs rate, against and at")
        for role in ("rate", "against") if self.fit else ():
            if (key := self.fit[role]) not in self.keys:
                raise ValueError(f"fit.{role}={key} is not among keys; give it values there")
            values = self.keys[key] if key not in ranges else [self.keys[key]["low"]]
            if not all(_is_positive(value) for value in (*values, self.fit["at"])):
                raise ValueError(f"keys.{key} and fit.at must be numbers above 0 for a power law")

    @classmethod
    def read(cls, path: Path) -> Spec:
        """Reads a file.

        Raises:
            ConfigError: it is none of a sweep.
        """
        if not path.is_file():
            raise ConfigError(f"{path} does not exist; the file of a sweep comes first")
        defaults = {"config": [], "method": "grid", "trials": 0, "seed": 0, "metric": "val/loss"}
        try:
            plain = yaml12.load(path.read_text("utf-8"))
            if not isinstance(plain, dict):
                raise ValueError("it holds no keys; write keys: {KEY: [VALUE, VALUE]}")
            known = {field.name for field in fields(cls)}
            if odd := {*plain} - known:
                raise ValueError(f"{min(odd)} is none of {', '.join(sorted(known))}")
            return structure(cls, {**defaults, "fit": {}, **plain})
        except (OSError, ValueError, TypeError, yaml12.YAMLError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"{path} is no sweep: {reason}; it comes first: llm-train sweep SPEC [-c FILE]"
            ) from None


def proposals(spec: Spec) -> Generator[Values, float, None]:
    """Yields the values of each trial and is sent its result, NaN where it failed."""
    if spec.method == "grid":
        for chosen in itertools.product(*spec.keys.values()):
            yield dict(zip(spec.keys, chosen, strict=True))
    elif spec.method == "random":
        for number in range(spec.trials):
            generator = random.Random(f"{spec.seed}/{number}")
            yield {key: _drawn(generator, domain) for key, domain in spec.keys.items()}
    else:
        yield from _optuna(spec)


def require_startable(spec: Spec, check: Callable[[Values], object]) -> None:
    """Refuses a value with which no trial can start, whatever the other keys are.

    Args:
        spec: of the sweep; of a range, both ends are tried.
        check: raises if a trial with these values cannot start.

    Raises:
        LLMTrainError: what the first such value was refused for.
    """
    sound: set[tuple[str, str]] = set()
    refused: dict[tuple[str, str], LLMTrainError] = {}
    ends = (d if isinstance(d, list) else [d["low"], d["high"]] for d in spec.keys.values())
    for chosen in itertools.product(*ends):
        values = dict(zip(spec.keys, chosen, strict=True))
        pairs = {(key, json.dumps(value)) for key, value in values.items()}
        if pairs <= sound:
            continue
        try:
            check(values)
        except LLMTrainError as error:
            refused = dict.fromkeys(pairs, error) | refused
        else:
            sound |= pairs
    if left := [pair for pair in refused if pair not in sound]:
        raise refused[left[0]]


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _drawn(generator: random.Random, domain: Domain) -> object:
    if isinstance(domain, list):
        return generator.choice(domain)
    if domain.get("log"):
        low, high = math.log(domain["low"]), math.log(domain["high"])
        return float(f"{math.exp(generator.uniform(low, high)):.4g}")
    return float(f"{generator.uniform(domain['low'], domain['high']):.4g}")


def _optuna(spec: Spec) -> Generator[Values, float, None]:
    what = f"method={spec.method}, which is neither grid nor random,"
    optuna = library("optuna", "sweep", what)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = vars(optuna.samplers)
    try:
        sampler = kinds[spec.method](seed=spec.seed)
    except (KeyError, TypeError):
        raise ConfigError(
            f"method={spec.method} is neither grid, random nor a sampler of Optuna that takes a "
            "seed; TPESampler is usual"
        ) from None
    study = optuna.create_study(sampler=sampler)
    for _ in range(spec.trials):
        trial, values = study.ask(), {}
        for key, domain in spec.keys.items():
            if isinstance(domain, list):  # by number: a value may be a class and its arguments
                values[key] = domain[trial.suggest_categorical(key, range(len(domain)))]
            else:
                log = bool(domain.get("log"))
                values[key] = trial.suggest_float(key, domain["low"], domain["high"], log=log)
        result = yield values
        failed = None if math.isfinite(result) else optuna.trial.TrialState.FAIL
        study.tell(trial, None if failed else result, state=failed)
