"""Compares the ways to compile 124M, each at the micro-batch that suits it, in turns.

``graphs`` takes one micro-batch a step. One graph with the loss in it holds all logits, so that its
micro-batch is half of that of the others.
"""

from __future__ import annotations

from benchmarks.duel import alternate, start_all
from benchmarks.studies.common import ONE_GRAPH, Settings, at
from benchmarks.studies.measure import numbers, steps_per_round

MODES = {"blocks": 64, "blocks, chunks of 4096": 64, "graphs": 64, "network": 32}
_ROOMY_GIB = 100  # all of them hold their memory at once; smaller devices get half of each
CHANGES = {
    "blocks": (),
    "blocks, chunks of 4096": ("--model.loss.init_args.chunk_tokens=4096",),
    "graphs": ("--model.compile=graphs",),
    "network": ONE_GRAPH,
}


def main() -> None:
    settings = Settings.from_arguments()
    missing = [name for name in MODES if not settings.done(name)]
    if not missing or not settings.has(95, missing[0]):
        return
    preset = settings.presets["gpt2-124m"]
    parts = 1 if (settings.versions["memory_gib"] or 0) > _ROOMY_GIB else 2
    group = {
        name: settings.ours(
            name,
            at(preset, 4 if settings.rehearse else size // parts),
            *CHANGES[name],
            variant="network" if name == "network" else settings.variant,
        )
        for name, size in MODES.items()
    }
    alive = start_all(settings.directory, group.values())
    if alive:
        steps = steps_per_round(settings, alive[0], seconds=1.5)
        rounds = 3 if settings.rehearse else 9
        alternate(alive, rounds=rounds, steps=steps, until=settings.deadline - 20)
    for name, peer in group.items():
        peer.stop()
        settings.emit(name, **numbers(settings, peer, at(preset, peer.job.shape.batch)))


if __name__ == "__main__":
    main()
