"""Rules between the parts. Each is a generator of lines, and all of them are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from llm_train.check import (
    canonical,
    devices,
    float8,
    local_sgd,
    optimizers,
    sharding,
    trainer,
    zero,
)
from llm_train.check.table import derive, on_meta
from llm_train.data import Prepared, Tokenize, TokenShards, TrainBPE
from llm_train.data.manifest import FILE_NAME
from llm_train.data.recipe import recipe_differences
from llm_train.errors import LLMTrainError
from llm_train.settings import Settings

Rule = Callable[[Settings], Iterator[str]]


def problems(settings: Settings, *, running: bool = True) -> list[str]:
    """All problems, one line each; empty means that the run can start.

    Args:
        settings: what to look at.
        running: a run is about to start here, so that devices and prepared data must be present,
            and nothing is built while a problem is known.
    """
    found: list[str] = []
    try:
        settings.strategy  # noqa: B018 - asked whether it can be made
    except LLMTrainError as error:
        found.append(str(error))
        settings = replace(settings, trainer={**settings.trainer, "strategy": "auto"})
    found.extend(_ask(settings, _RULES))
    found.extend(_ask(settings, [devices.present, float8.present] if running else []))
    found.extend(_data(settings, running=running))
    if not (running and found):
        found.extend(_ask(settings, _RULES_THAT_BUILD))
    return list(dict.fromkeys(found))


def _ask(settings: Settings, rules: Iterable[Rule]) -> list[str]:
    found: list[str] = []
    for rule in rules:
        try:
            found.extend(rule(settings))
        except LLMTrainError as error:
            found.append(_dotted(str(error)))
    return found


def notes(settings: Settings) -> list[str]:
    """What is not wrong but must be done before the run can start."""
    if not _unprepared(settings):
        return []
    return [
        "data not prepared yet: run llm-train prepare with the same options; until then nothing "
        "is known about the number of tokens"
    ]


def _dotted(text: str) -> str:
    """Parts name themselves as in 'schedule.warmup'; the key begins one level higher."""
    parts = ("schedule", "optimizer", "recompute", "network", "loss")
    own = tuple(f"{part}{end}" for part in parts for end in (".", ":"))
    return f"model.{text}" if text.startswith(own) else text


def _batch(settings: Settings) -> Iterator[str]:
    derived = derive(settings)
    if derived.validate_every > derived.total_steps:
        yield (
            f"validate_every={settings.validate_every} is longer than the run of "
            f"{derived.total_steps} steps and has no effect; shorten it or use '0 steps' to "
            "validate at the end"
        )


def _checkpoint(settings: Settings) -> Iterator[str]:
    every = settings.checkpoint.every.steps(settings.batch.tokens)
    keep = settings.checkpoint.keep_every.steps(settings.batch.tokens)
    if every > derive(settings).total_steps:
        yield (
            f"checkpoint.every={settings.checkpoint.every} is longer than the run and has no "
            "effect; shorten it, or use '0 steps' to save at the end only"
        )
    if keep and (not every or keep % every):
        yield (
            f"checkpoint.keep_every={settings.checkpoint.keep_every} is not a multiple of "
            f"checkpoint.every={settings.checkpoint.every}, so some of those checkpoints are never "
            "written; make it one"
        )


def _network(settings: Settings) -> Iterator[str]:
    positions = settings.task.network_config.max_positions
    if settings.batch.sequence > positions:
        yield (
            f"batch.sequence={settings.batch.sequence} exceeds the {positions} positions of "
            "model.network; shorten it, or raise model.network.init_args.max_sequence"
        )


def _schedule(settings: Settings) -> Iterator[str]:
    derived = derive(settings)
    settings.task.schedule.build(
        total_steps=derived.total_steps, tokens_per_step=derived.tokens_per_step
    )
    yield from ()


def _recompute(settings: Settings) -> Iterator[str]:
    settings.task.construction.recompute.apply(on_meta(settings).blocks())
    yield from ()


def _unprepared(settings: Settings) -> bool:
    """Whether the data are merely not made yet, as opposed to damaged."""
    source = settings.data.source
    return isinstance(source, TokenShards) and not (Path(source.path) / FILE_NAME).exists()


def _data(settings: Settings, *, running: bool) -> Iterator[str]:
    if _unprepared(settings) and not running:
        yield from _recipe(settings)
        return
    source = settings.data.source
    missing = source.check()
    yield from missing
    if missing:
        return
    known = settings.task.network_config.token_ids
    if source.vocab_size() > known:
        yield _vocabulary("data.source", source.vocab_size(), known)
    facts = source.description()
    for key, needed in (("train_tokens", settings.batch.sequence + 1), ("held_out_tokens", 2)):
        count = facts.get(key)
        if isinstance(count, int) and count < needed:
            yield (
                f"data.source has {count} {key.replace('_', ' ')} and at least {needed} are "
                f"needed with batch.sequence={settings.batch.sequence}; use more text"
            )
    if isinstance(source, TokenShards) and not isinstance(settings.data.recipe, Prepared):
        for difference in recipe_differences(source.path, settings.data.recipe):
            yield (
                f"data.recipe differs from what {source.path} was prepared with: {difference}; "
                "choose another data.source path, or prepare again with --force"
            )


def _recipe(settings: Settings) -> Iterator[str]:
    recipe = settings.data.recipe
    known = settings.task.network_config.token_ids
    if isinstance(recipe, Tokenize) and isinstance(recipe.tokenizer, TrainBPE):
        wanted = recipe.tokenizer.vocab_size
        if wanted > known:
            yield _vocabulary("data.recipe.init_args.tokenizer", wanted, known)


def _vocabulary(key: str, wanted: int, known: int) -> str:
    return (
        f"{key} has {wanted} token ids but model.network knows {known}; "
        f"set model.network.init_args.vocab_size to {wanted}"
    )


_RULES: tuple[Rule, ...] = (
    _batch,
    _checkpoint,
    _network,
    _schedule,
    trainer.replaced,
    trainer.values,
    devices.devices,
    trainer.strategy,
    local_sgd.local_sgd,
    sharding.mesh,
    sharding.offload,
    zero.zero,
    optimizers.rounding,
    optimizers.in_backward,
    trainer.precision,
    trainer.callbacks,
    trainer.compilation,
    float8.float8,
    canonical.canonical,
)
_RULES_THAT_BUILD: tuple[Rule, ...] = (  # without memory
    _recompute,
    optimizers.build,
    zero.elementwise,
    float8.layers,
    sharding.matrices,
    canonical.parts,
)
