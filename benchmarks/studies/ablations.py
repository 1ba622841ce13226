"""Switches off or changes one technique of 124M at a time, in turns with the baseline.

The baseline stays alive alongside each variant, so that a drift of the clock affects both: a row
holds the variant's numbers and those of the baseline in the same rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.duel import Peer, alternate
from benchmarks.studies.common import Settings
from benchmarks.studies.measure import numbers, start, steps_per_round

_LOSS = "--model.loss=ChunkedCausalLM"
_CHUNK = "--model.loss.init_args.chunk_tokens="
_RECOMPUTE = "--model.recompute="


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One change to the recipe.

    Attributes:
        name: name in rows.
        overrides: ``--key=value`` arguments of llm_train.
        kernel: of attention, on GPUs; a CPU has one. "" leaves the default.
        variant: variant of the peer; "" leaves the default.
    """

    name: str
    overrides: tuple[str, ...] = ()
    kernel: str = ""
    variant: str = ""


ABLATIONS = [
    Ablation(name="no compilation", variant="eager"),
    Ablation(name="one graph of the network and its loss", overrides=("--model.compile=network",)),
    Ablation(name="plain loss (all logits)", overrides=("--model.loss=CausalLM",)),
    Ablation(
        name="AdamW not fused",
        overrides=("--model.optimizer=AdamW", "--model.optimizer.init_args.fused=off"),
    ),
    *(
        Ablation(name=f"attention: {kernel}", kernel=kernel)
        for kernel in ("cudnn", "flash", "efficient")
    ),
    *(
        Ablation(name=f"loss in chunks of {size}", overrides=(_LOSS, f"{_CHUNK}{size}"))
        for size in (512, 1024, 2048, 4096, 8192)
    ),
    Ablation(name="recompute: EveryBlock", overrides=(_RECOMPUTE + "EveryBlock",)),
    Ablation(name="recompute: Selective", overrides=(_RECOMPUTE + "Selective",)),
    Ablation(
        name="recompute: EveryNth n=2",
        overrides=(_RECOMPUTE + "EveryNth", "--model.recompute.init_args.n=2"),
    ),
    Ablation(name="float32 products kept exact", overrides=("--device.float32_matmul=ieee",)),
    Ablation(name="segments that do not grow", overrides=("--device.expandable_segments=false",)),
    Ablation(name="ranks on any processor", overrides=("--device.numa_binding=false",)),
    Ablation(
        name="NCCL at high priority (several ranks)",
        overrides=("--device.nccl={TORCH_NCCL_HIGH_PRIORITY: '1'}",),
    ),
    Ablation(name="metrics at every step", overrides=("--trainer.log_every_n_steps=1",)),
]


def peer(settings: Settings, ablation: Ablation) -> Peer:
    """Returns our process with one thing changed."""
    preset = settings.presets["gpt2-124m"]
    variant = ablation.variant or settings.variant
    overrides = ablation.overrides
    if ablation.kernel and settings.device == "cuda":
        overrides = (*overrides, f"--model.attention={ablation.kernel}")
    return settings.ours(ablation.name, preset, *overrides, variant=variant)


def main() -> None:
    settings = Settings.from_arguments()
    preset = settings.presets["gpt2-124m"]
    rounds = 3 if settings.rehearse else 7
    baseline = settings.ours("as shipped", preset)
    if not start(settings, baseline):
        baseline.stop()
        settings.emit(baseline.name, **numbers(settings, baseline, preset))
        return
    steps = steps_per_round(settings, baseline, seconds=2.0)
    for ablation in ABLATIONS:
        if settings.rehearse and ablation.backend in ("cudnn", "efficient"):
            settings.emit(ablation.name, skipped="needs CUDA")
            continue
        if not settings.has(90, ablation.name):
            continue
        baseline.milliseconds.clear()
        variant = peer(settings, ablation)
        if start(settings, variant):
            alternate([baseline, variant], rounds=rounds, steps=steps)
        variant.stop()
        row = numbers(settings, variant, preset)
        if "error" not in row:
            row["baseline_milliseconds"] = baseline.median
            row["baseline_spread"] = baseline.spread
        settings.emit(ablation.name, **row)
    settings.emit(baseline.name, **numbers(settings, baseline, preset))
    baseline.stop()


if __name__ == "__main__":
    main()
