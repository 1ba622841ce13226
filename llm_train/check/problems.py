"""Asks every part for its problems, and adds the rules about what is no part."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from llm_train.check import device_rules, trainer_rules
from llm_train.errors import ConfigError, LLMTrainError
from llm_train.model.task import Task
from llm_train.settings import Settings
from llm_train.units import Duration
from llm_train.unknown import Undecided


def problems(settings: Settings, *, running: bool = True) -> list[str]:
    """All problems, one line each; empty means that the run can start.

    Args:
        settings: what to look at.
        running: a run is about to start here, so that devices and prepared data must be present.
    """
    return certain_problems(settings, running=running, whole=True)


def certain_problems(settings: Settings, *, running: bool, whole: bool) -> list[str]:
    """As ``problems``, of settings some of which are unknown unless they are ``whole``."""
    settings, found = _sound(settings)
    context = settings.context(running=running)
    rules = [partial(rule, settings) for rule in _RULES]
    rules += [partial(device_rules.present, settings)] if running else []
    rules += [partial(part.problems, context) for part in settings.parts()]
    rules += [partial(settings.init_from.problems, context, settings.task.network_config)]
    for rule in rules:
        try:
            found.extend(rule())
        except LLMTrainError as error:
            # Of one that made another of it, nobody knows whether what is unknown caused it.
            if whole or error.__context__ is None:
                found.append(_dotted(str(error)))
        except (Undecided, Exception):
            if whole:
                raise
    return list(dict.fromkeys(found))


def require_sound(settings: Settings, *, running: bool = True) -> None:
    """Refuses a configuration with problems.

    Raises:
        ConfigError: there are some; one line for each.
    """
    if found := problems(settings, running=running):
        raise ConfigError("\n".join(found))


def _sound(settings: Settings) -> tuple[Settings, list[str]]:
    """What all other rules build upon, replaced where it makes no sense, so that they can go on."""
    found: list[str] = []
    for key in ("devices", "strategy"):
        try:
            _ = settings.world if key == "devices" else settings.mesh_shape
        except Undecided:
            continue
        except LLMTrainError as error:
            found.append(str(error))
            settings = replace(settings, trainer_args={**settings.trainer_args, key: "auto"})
    return settings, found


def notes(settings: Settings) -> list[str]:
    """What is not wrong but deserves a second thought, one line each."""
    context = settings.context()
    found = [note for part in settings.parts() for note in part.notes(context)]
    found += settings.init_from.notes(settings.plain.get("model", {}).get("network", {}))
    return list(dict.fromkeys([*settings.notes, *found]))


def missing(settings: Settings) -> list[str]:
    """What is not wrong but must be done before the run can start."""
    source, recipe, found = settings.data.source, settings.data.recipe, []
    if not settings.init_from.present:
        found.append(f"init_from.path={settings.init_from.path} is not here yet: copy it there")
    if not source.prepared and not recipe.comparable:  # it makes none
        where = source.folder or "the folders of the mixture"
        found.append(f"data not here yet: copy them to {where}, or set data.recipe to make them")
    elif not source.prepared:
        found.append("data not prepared yet: run llm-train prepare with the same options")
    return found


def _dotted(text: str) -> str:
    """Parts name themselves as in 'schedule.warmup'; the key begins one level higher."""
    parts = ("schedule", "optimizer", "recompute", "network", "loss")
    own = tuple(f"{part}{end}" for part in parts for end in (".", ":"))
    return f"model.{text}" if text.startswith(own) else text


def _init_from(settings: Settings) -> Iterator[str]:
    where, own = settings.init_from.path, settings.run_dir.resolve()
    path = Path(where).resolve()
    if where and (path == own or path.is_relative_to(own / "checkpoints")):
        yield (
            f"init_from.path={where} is in trainer.default_root_dir={settings.run_dir}, where a "
            "new run moves it away; set another trainer.default_root_dir"
        )


def _batch(settings: Settings) -> Iterator[str]:
    derived = settings.derive()
    if derived.validate_every > derived.total_steps:
        longer = f"validate_every={settings.validate_every} is longer than the run"
        yield f"{longer}; shorten it, or use '0 steps' to validate at the end"


def _ramp(settings: Settings) -> Iterator[str]:
    if not settings.batch.ramp.tokens:
        return
    key, traits = "batch.ramp", settings.strategy.traits(settings.world_size)
    if traits.flattens or not traits.one_model:
        # DeepSpeed's engine counts micro-batches itself; replicas agree at fixed steps.
        yield f"{key} does not work under {traits.name}; use ddp or fsdp, or remove {key}"
    for name, length in vars(settings.task.schedule).items():
        if isinstance(length, Duration) and length.unit == "steps" and length.count:
            # The schedule goes by tokens, and a step would be longer in each stage.
            yield f"model.schedule.{name}={length} is in steps; with {key} write it in tokens"
    batch, budget = settings.batch, settings.budget
    if settings.derive().stages[-1].tokens_per_step < batch.tokens:
        most = batch.longest_doubling(budget.count)
        never = f"{key}.doubles_every={batch.ramp.doubles_every} never reaches batch.tokens"
        remedy = f"write at most {most} tokens, or train longer" if most else "train longer"
        yield f"{never}={batch.tokens} within budget={budget}; {remedy}"


def _sequence_ramp(settings: Settings) -> Iterator[str]:
    ramp, tensor = settings.batch.sequence_ramp, settings.mesh_shape.tensor
    if not ramp.sequence:
        return
    key = "batch.sequence_ramp"
    if settings.task.construction.compile == "graphs":
        yield f"{key} changes shapes, and model.compile=graphs replays one; write blocks instead"
    if ramp.sequence % tensor:
        yield (
            f"{key}.sequence={ramp.sequence} is not a multiple of tensor={tensor}; begin with "
            f"{tensor} times a power of two"
        )
    derived, every = settings.derive(), ramp.doubles_every
    if derived.positions(derived.total_steps - 1) < derived.sequence:
        yield (
            f"{key}.doubles_every={every} never reaches batch.sequence={derived.sequence} within "
            f"budget={settings.budget}; shorten it, or train longer"
        )


def _checkpoint(settings: Settings) -> Iterator[str]:
    policy, tokens = settings.checkpoint, settings.batch.tokens
    every, keep = policy.every.steps(tokens), policy.keep_every.steps(tokens)
    if every > settings.derive().total_steps:
        longer = f"checkpoint.every={policy.every} is longer than the run"
        yield f"{longer}; shorten it, or use '0 steps' to save at the end"
    if keep > settings.derive().total_steps:
        yield f"checkpoint.keep_every={policy.keep_every} is longer than the run; shorten it"
    elif keep and not every:
        alone = f"checkpoint.keep_every={policy.keep_every} has no effect without checkpoint.every"
        yield f"{alone}; write --checkpoint.keep_every='0 steps'"
    elif keep and keep % every:
        odd = f"checkpoint.keep_every={policy.keep_every} is not a multiple"
        yield f"{odd} of checkpoint.every={policy.every}; make it one"


def _best(settings: Settings) -> Iterator[str]:
    best, known = settings.checkpoint.best, trainer_rules.measured(settings)
    validated = best.startswith("val/")
    if type(settings.task) is not Task:  # which may measure more
        pass
    elif best and best not in known and (validated or "/" not in best):
        yield f"checkpoint.best={best} is not measured; write {' or '.join(known)}"
    elif validated and not settings.validate_every.count:
        never = f"checkpoint.best={best} has no effect with validate_every=0 steps, at the end only"
        yield f"{never}; write --validate_every='{settings.checkpoint.every}'"


_RULES = (
    _init_from,
    _batch,
    _ramp,
    _sequence_ramp,
    _checkpoint,
    _best,
    trainer_rules.replaced,
    trainer_rules.values,
    device_rules.devices,
    trainer_rules.precision,
    trainer_rules.callbacks,
    trainer_rules.epochs,
    trainer_rules.of_lightning,
)
