"""Compares llm_train with its peers at 124M, in turns: same model, batch, tokens and dtype.

Micro-batches are 16 x 1024, which all peers can hold while the others' processes wait alongside
them. If one runs out of memory all the same, they run one after the other, and the rows say so.
"""

from __future__ import annotations

import time
from importlib.util import find_spec

from benchmarks.duel import Peer, alternate
from benchmarks.studies.common import Settings, at
from benchmarks.studies.measure import numbers, start, steps_per_round

# These two projects have no adapter to this shape yet.
OTHERS = ("litgpt", "torchtitan")


def peers(settings: Settings) -> list[Peer]:
    """Returns llm_train and its peers, and writes rows for those that are left out."""
    preset = at(settings.presets["gpt2-124m"], 2 if settings.rehearse else 16)
    job, ours = settings.job(preset.shape), settings.ours("ours", preset)
    found = [ours]
    if find_spec("transformers") and find_spec("accelerate"):
        module = "benchmarks.peers.hugging_face"
        found.append(Peer(name="Hugging Face", module=module, job=job))
    else:
        settings.emit("Hugging Face", skipped="transformers or accelerate is not installed")
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
    return found


def run(settings: Settings, group: list[Peer], *, together: bool) -> None:
    """Warms all peers up and lets them take turns, or runs one after the other."""
    rounds = 3 if settings.rehearse else 11
    if together:
        living = [peer for peer in group if start(settings, peer)]
        if living:
            steps = steps_per_round(settings, living[0])
            alternate(living, rounds=rounds, steps=steps)
        for peer in group:
            peer.stop()
        return
    for peer in group:
        if start(settings, peer):
            alternate([peer], rounds=rounds, steps=steps_per_round(settings, peer))
        peer.stop()


def out_of_memory(group: list[Peer]) -> bool:
    """Returns whether a peer ran out of memory."""
    return any("out of memory" in peer.error.lower() for peer in group)


def main() -> None:
    settings = Settings.from_arguments()
    begin = time.time()
    group, together = peers(settings), True
    run(settings, group, together=True)
    if out_of_memory(group) and settings.has(1.5 * (time.time() - begin), "one after the other"):
        group, together = [Peer(name=p.name, module=p.module, job=p.job) for p in group], False
        run(settings, group, together=False)
    preset = at(settings.presets["gpt2-124m"], group[0].job.shape.batch)
    for peer in group:
        row = numbers(settings, peer, preset)
        settings.emit(peer.name, together=together, variant=peer.job.variant, **row)


if __name__ == "__main__":
    main()
