"""Rules about LocalSGD: whatever reads the weights must find them agreed on."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.check.table import derive
from llm_train.settings import Settings
from llm_train.trainer.strategy import LocalSGD


def local_sgd(settings: Settings) -> Iterator[str]:
    """Somebody to agree with, and lengths that end with an agreement."""
    strategy = settings.strategy
    if not isinstance(strategy, LocalSGD):
        return
    if settings.world_size == 1:
        yield (
            "trainer.strategy=LocalSGD has no effect on 1 rank, which has nobody to agree with; "
            "start several with torchrun or trainer.devices, or write trainer.strategy=auto"
        )
    derived = derive(settings)
    saved = settings.checkpoint.every
    lengths = (
        ("budget", settings.budget, derived.total_steps),
        ("validate_every", settings.validate_every, derived.validate_every),
        ("checkpoint.every", saved, saved.steps(derived.tokens_per_step)),
    )
    for key, value, steps in lengths:
        if steps % strategy.every:
            shown = str(value) if value.unit == "steps" else f"{value} = {steps} steps"
            yield (
                f"{key}={shown} is not a multiple of trainer.strategy.init_args.every="
                f"{strategy.every}, so replicas would not agree on the weights then; nearest: "
                f"{_nearest(steps, strategy.every)} steps"
            )


def _nearest(steps: int, every: int) -> str:
    below = steps // every * every
    return f"{below} or {below + every}" if below else f"{every}"
