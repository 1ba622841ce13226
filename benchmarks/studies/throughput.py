"""Measures llm_train on every shape, end to end, with loader, optimizer, clipping and logging.

The first micro-batch that fits is measured; with ``--thorough`` all of them are, and the fastest
becomes the shape's row. The row's memory is the peak of the same process.
"""

from __future__ import annotations

from typing import Any

from benchmarks.shapes import Preset
from benchmarks.studies.common import Settings, at
from benchmarks.studies.measure import alone, numbers


def best(settings: Settings, name: str, preset: Preset) -> dict[str, Any]:
    """Returns the numbers of the fastest micro-batch that runs, or of the first one."""
    rows: list[dict[str, Any]] = []
    for micro_batch in preset.micro_batches:
        candidate = at(preset, micro_batch)
        case = f"{name} micro-batch {micro_batch}"
        if not settings.has(90, case):
            break
        peer = alone(settings, settings.ours(case, candidate))
        row = numbers(settings, peer, candidate)
        rows.append(row)
        if settings.thorough or "error" in row:
            settings.emit(case, trial=True, **row)
        elif "error" not in row:
            break
    if not rows:
        return {"skipped": "time"}
    return max(rows, key=lambda row: row.get("tokens_per_s", 0.0))


def main() -> None:
    settings = Settings.from_arguments()
    for name, preset in settings.presets.items():
        if settings.shapes and name not in settings.shapes:
            continue
        if settings.done(name):
            continue
        goals = {"must": preset.must, "aim": preset.aim, "roof": preset.roof}
        settings.emit(name, **best(settings, name, preset), **goals)


if __name__ == "__main__":
    main()
