"""The whole configuration, whose keys import torch and Lightning, and its ``Settings``."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning.pytorch as pl

import llm_train.trainer.callbacks
import llm_train.trainer.logger  # noqa: F401
from llm_train.check import trainer_rules
from llm_train.check.problems import certain_problems
from llm_train.cli.json_schema import json_schema
from llm_train.cli.parser import parse, spell_out
from llm_train.cli.schema import JSON, Setting
from llm_train.data.module import TokenData
from llm_train.errors import ConfigError
from llm_train.exchange.warm_start import WarmStart
from llm_train.model.task import Task
from llm_train.runtime import yaml12
from llm_train.runtime.device_options import DeviceOptions
from llm_train.runtime.watch.verdict import WatchOptions
from llm_train.settings import CheckpointPolicy, Settings
from llm_train.trainer.strategy import known_words
from llm_train.units import Batch, Duration
from llm_train.unknown import Undecided

_AT_THE_END = "distance between validations; 0 steps: at the end only"
ROOTS: Mapping[str, Setting] = {
    "seed": Setting(int, default=1337, help="weights, order, dropout"),
    "budget": Setting(Duration, required=True, help="length of the run"),
    "validate_every": Setting(Duration, default=Duration(0, "steps"), help=_AT_THE_END),
    "batch": Setting(Batch, required=True, help="the global batch"),
    "checkpoint": Setting(CheckpointPolicy, default=CheckpointPolicy()),
    "device": Setting(DeviceOptions, default=DeviceOptions()),
    "watch": Setting(WatchOptions, default=WatchOptions()),
    "init_from": Setting(WarmStart, default=WarmStart()),
    "trainer": Setting(pl.Trainer),
    "model": Setting(Task, required=True),
    "data": Setting(TokenData, required=True),
}
CHOICES: Mapping[str, Sequence[str]] = {
    "trainer.precision": trainer_rules.PRECISIONS,
    "trainer.accelerator": trainer_rules.ACCELERATORS,
    "trainer.strategy": known_words(),
}


def described() -> JSON:
    """The JSON schema of a configuration."""
    return json_schema(ROOTS, {f"trainer.{key}" for key in trainer_rules.REPLACED}, CHOICES)


def load_settings(arguments: Sequence[str], allow_import: Sequence[str] = ()) -> Settings:
    """Parses and instantiates a configuration.

    Args:
        arguments: as on the command line: ``-c FILE`` and ``--key=value``.
        allow_import: modules that a ``class_path`` may import besides our own, torch and lightning.

    Raises:
        ConfigError: anything wrong with a key or value; one line for each problem.
    """
    files, options = spell_out(arguments)
    if not files and not options:
        raise ConfigError(
            "no configuration; give one with -c FILE.yaml, or -c preset:quickstart for a first run"
        )
    built, text, walk, builder = parse(files, options, ROOTS, CHOICES, allow_import)
    problems = [*walk.problems, *builder.failures]
    notes = [each.note(walk.given) for each in walk.exchanges]
    if "Unable to serialize instance" in text:
        notes.append("config.yaml will not run as it is: a default cannot be written; set it")
    try:
        parts = builder.given("", {key: built[key] for key in ROOTS})
        settings = Settings(
            task=parts.pop("model"),
            trainer_args=builder.given("trainer", parts.pop("trainer")),
            **parts,
            text=text,
            plain=yaml12.load(text),
            name=Path(files[0]).stem if files else "run",
            notes=tuple(filter(None, notes)),
        )
        if not problems:
            return settings
        problems += certain_problems(settings, running=False, whole=False)
    except (Undecided, Exception):  # of what is unknown, or said in the next round
        if not problems:
            raise
    raise ConfigError("\n".join(problems)) from next(iter(builder.failures.values()), None)
