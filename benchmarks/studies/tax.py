"""Measures what the Trainer costs, against a bare loop around the same step.

Both programs have the same network, loss and optimizer and cast weights once per step, so they
differ only in what is around the step.
"""

from __future__ import annotations

from benchmarks.duel import Peer, alternate
from benchmarks.studies.common import Settings, at
from benchmarks.studies.measure import numbers, start, steps_per_round


def main() -> None:
    settings = Settings.from_arguments()
    preset = at(settings.presets["gpt2-124m"], 2 if settings.rehearse else 16)
    ours = settings.ours("ours", preset)
    bare = Peer(name="bare loop", module="benchmarks.peers.bare", job=ours.job)
    living = [peer for peer in (ours, bare) if start(settings, peer)]
    if living:
        steps = steps_per_round(settings, living[0])
        alternate(living, rounds=3 if settings.rehearse else 11, steps=steps)
    for peer in (ours, bare):
        peer.stop()
        settings.emit(peer.name, **numbers(settings, peer, preset))


if __name__ == "__main__":
    main()
