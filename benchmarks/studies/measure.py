"""Runs peers for a while and turns their answers into the numbers of a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.duel import Peer, alternate
from benchmarks.shapes import Preset
from benchmarks.studies.common import Settings, counts
from llm_train.runtime.devices import device_named


def start(settings: Settings, peer: Peer) -> bool:
    """Starts a peer and lets it warm up; returns False if it could not."""
    peer.start(Path(settings.directory))
    return not peer.error


def steps_per_round(settings: Settings, peer: Peer, seconds: float = 3.0) -> int:
    """Returns the steps that take so many seconds, in whole log intervals if these are short."""
    if settings.rehearse:
        return 2
    peer.run(1)
    if peer.error:
        return 1
    steps = int(1000 * seconds / peer.milliseconds.pop())
    return max(1, min(100, steps - steps % 10 if steps >= 10 else steps))


def alone(settings: Settings, peer: Peer, rounds: int = 7) -> Peer:
    """Starts, measures and stops one peer."""
    if start(settings, peer):
        steps = steps_per_round(settings, peer)
        alternate([peer], rounds=3 if settings.rehearse else rounds, steps=steps)
    peer.stop()
    return peer


def numbers(settings: Settings, peer: Peer, preset: Preset) -> dict[str, Any]:
    """Returns a row: times, rates, both conventions of MFU and memory, or the error."""
    shape = peer.job.shape
    row: dict[str, Any] = {"micro_batch": shape.batch, "accumulation": shape.accumulation}
    if peer.error or len(peer.milliseconds) < 2:
        return {**row, "error": peer.error or "too few rounds"}
    rate = 1000 * shape.tokens_per_step / peer.median
    counted = counts(preset)
    causal = counted.flops_per_token(shape.sequence)
    full = counted.flops_per_token(shape.sequence, causal=False)
    device = device_named(settings.versions.get("device", "cpu"))
    peak = device and device.peak_flops("bf16")
    return {
        **row,
        "tokens_per_s": rate,
        "spread_tokens_per_s": rate * peer.spread / peer.median,
        "milliseconds": peer.median,
        "spread": peer.spread,
        "rounds": [round(value, 4) for value in peer.milliseconds],
        "tflops": rate * causal / 1e12,
        "mfu": rate * causal / peak if peak else None,
        "mfu_full_attention": rate * full / peak if peak else None,
        "parameters": peer.answer["parameters"],
        "peak_gib": peer.answer.get("peak_gib"),
        "reserved_gib": peer.answer.get("reserved_gib"),
        "warm_up_seconds": peer.first_step_seconds,
    }
