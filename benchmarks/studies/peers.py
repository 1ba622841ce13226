"""Compares llm_train with its peers, in turns: same model, batch, tokens and dtype.

124M runs in micro-batches of 12 x 1024, nanoGPT's own, which one device can hold for all processes
at once; 1B in micro-batches of 2 x 2048. If one runs out of memory all the same, they run one after
the other, and the rows say so. ``bare loop`` is a loop around our network, loss and optimizer, and
so its distance from ours is what the Trainer costs.
"""

from __future__ import annotations

import time
from importlib.util import find_spec

from benchmarks.duel import Peer, alternate, start_all
from benchmarks.shapes import Preset
from benchmarks.studies.common import ONE_GRAPH, Settings, at
from benchmarks.studies.measure import numbers, start, steps_per_round

# These two projects have no adapter to this shape yet.
OTHERS = ("litgpt", "torchtitan")


def small(settings: Settings, preset: Preset) -> list[Peer]:
    """Returns llm_train and its peers at 124M, and writes rows for those that are left out."""
    ours = settings.ours("ours", preset)
    one_graph = settings.ours("ours, one graph", preset, *ONE_GRAPH, variant="network")
    bare = Peer(name="bare loop", module="benchmarks.peers.bare", job=ours.job)
    found = [ours, one_graph, bare]
    job = settings.job(preset.shape)
    if settings.nanogpt:
        found.append(Peer(name="nanoGPT", module="benchmarks.peers.nanogpt", job=job))
        module = "benchmarks.peers.stock_lightning"
        found.append(Peer(name="stock Lightning", module=module, job=job))
    else:
        settings.emit("nanoGPT", skipped="no checkout given: --nanogpt DIR")
        settings.emit("stock Lightning", skipped="runs nanoGPT's model: --nanogpt DIR")
    for name in OTHERS:
        state = "has no adapter to this shape" if find_spec(name) else "not installed"
        settings.emit(name, skipped=state)
    return [*found, *hugging_face(settings, preset, "Hugging Face")]


def large(settings: Settings, preset: Preset) -> list[Peer]:
    """Returns llm_train and the one peer that has a Llama of 1B."""
    ours = settings.ours("1B ours", preset)
    return [ours, *hugging_face(settings, preset, "1B Hugging Face")]


def hugging_face(settings: Settings, preset: Preset, name: str) -> list[Peer]:
    """Returns the peer if it is installed, and writes a row if it is not."""
    if find_spec("transformers") and find_spec("accelerate"):
        module = "benchmarks.peers.hugging_face"
        job = settings.job(preset.shape)
        job.options["tied"] = preset.network.get("tied", False)
        return [Peer(name=name, module=module, job=job)]
    settings.emit(name, skipped="transformers or accelerate is not installed")
    return []


def run(settings: Settings, group: list[Peer], *, together: bool) -> None:
    """Warms all peers up and lets them take turns, or runs one after the other."""
    rounds = 3 if settings.rehearse else 9
    if together:
        living = start_all(settings.directory, group)
        if living:
            steps = steps_per_round(settings, living[0], seconds=1.2)
            alternate(living, rounds=rounds, steps=steps, until=settings.deadline - 30)
        for peer in group:
            peer.stop()
        return
    for peer in group:
        if start(settings, peer):
            alternate([peer], rounds=rounds, steps=steps_per_round(settings, peer, seconds=1.2))
        peer.stop()


def out_of_memory(group: list[Peer]) -> bool:
    """Returns whether a peer ran out of memory."""
    return any("out of memory" in peer.error.lower() for peer in group)


def measure(settings: Settings, group: list[Peer], preset: Preset) -> None:
    """Runs a group together if it can, else one after the other, and writes its rows."""
    begin, together = time.time(), True
    run(settings, group, together=True)
    if out_of_memory(group) and settings.has(1.5 * (time.time() - begin), "one after the other"):
        group, together = [Peer(name=p.name, module=p.module, job=p.job) for p in group], False
        run(settings, group, together=False)
    for peer in group:
        row = numbers(settings, peer, preset)
        if row.get("parameters", preset.parameters) != preset.parameters and not settings.rehearse:
            row = {"error": f"has {row['parameters']} parameters instead of {preset.parameters}"}
        settings.emit(peer.name, together=together, variant=peer.job.variant, **row)


def main() -> None:
    settings = Settings.from_arguments()
    for name, size, peers, least in (
        ("gpt2-124m", 12, small, 110),
        ("llama-1b-2048", 2, large, 90),
    ):
        preset = at(settings.presets[name], 2 if settings.rehearse else size)
        first = "ours" if peers is small else "1B ours"
        if settings.has(least, first):
            measure(settings, peers(settings, preset), preset)


if __name__ == "__main__":
    main()
