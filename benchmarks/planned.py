"""Compares ``llm-train plan`` with measurements: python -m benchmarks.planned RESULTS.jsonl ...

Every row of ours on a known device is planned with the settings it ran with, on the machine where
this runs, which needs no device. Ratios are planned over measured. The last line gives the factor
by which products must have been slower than kernels alone for the measured times, if the other
parts took what the planner says: the planner's ``IN_A_STEP``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.draw import read
from benchmarks.judge import Row, Rows
from benchmarks.peers.ours import configuration, write_shards
from benchmarks.shapes import GPU, Preset
from benchmarks.studies.common import RECIPE, at
from benchmarks.studies.modes import CHANGES
from benchmarks.work import Job, write_tokens
from llm_train.cli.dispatch import load_settings
from llm_train.plan import speed
from llm_train.plan.cost_model import CostModel
from llm_train.plan.draft import configured
from llm_train.plan.simulate import peak
from llm_train.runtime.devices import DEVICES, Device

# Cases of ours -> the preset that they ran, and the way they were compiled.
OURS = {
    ("peers", "ours"): ("gpt2-124m", "blocks"),
    ("peers", "ours, one graph"): ("gpt2-124m", "network"),
    ("peers", "1B ours"): ("llama-1b-2048", "blocks"),
    **{("modes", mode): ("gpt2-124m", mode) for mode in CHANGES},
    **{("throughput", name): (name, "blocks") for name in GPU},
}


def ours(rows: Rows) -> Iterator[tuple[Row, Preset, str]]:
    """Rows with a rate, the preset in their micro-batch, and how they were compiled."""
    for (study, case), (name, mode) in OURS.items():
        row = rows.get(study, case)
        if row.get("case") == case and "tokens_per_s" in row:
            yield row, at(GPU[name], row["micro_batch"]), mode


def planned(preset: Preset, mode: str, device: Device, directory: Path) -> dict[str, Any]:
    """What the planner says of a preset on one device."""
    tokens = directory / f"{preset.shape.vocab}.bin"
    if not tokens.exists():
        write_tokens(tokens, min(preset.shape.vocab, 1 << 16), 200_000)
    write_shards(str(tokens), preset.shape.vocab)
    job = Job(
        shape=preset.shape,
        device="cuda",
        dtype="bfloat16",
        variant="network" if mode == "network" else "compiled",
        tokens=str(tokens),
        warmup=1,
        threads=1,
        options={},
    )
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump(configuration(job, directory)))
    overrides = [*RECIPE, *preset.arguments(), *CHANGES[mode]]
    settings = load_settings(["-c", str(file), *overrides])
    _, _, values = configured(CostModel(settings, device))
    highest = peak(values["simulated"])[1] - values["not_kept_by_compiled_blocks"]
    return {**values["configured"], "peak_gib": highest / 2**30}


def in_a_step(found: dict[str, Any], row: Row) -> float:
    """Of the rates of products alone, where all else took what was planned."""
    products = found["seconds"]["matrix products"]
    others = found["seconds"]["step"] - products
    return float(products * speed.IN_A_STEP / (row["milliseconds"] / 1000 - others))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="+", type=Path)
    rows = read(parser.parse_args().results)
    factors = []
    print(f"{'case':28} {'tokens/s':>9} {'planned':>9} {'ratio':>6} {'GiB':>6} {'planned':>8}")
    with tempfile.TemporaryDirectory() as directory:
        for row, preset, mode in ours(rows):
            name = row["versions"]["device"]
            device = next((d for d in DEVICES.values() if d.name == name), None)
            if device is None:
                continue
            found = planned(preset, mode, device, Path(directory))
            rate, planned_rate = row["tokens_per_s"], found["tokens_per_second"]
            factors.append(in_a_step(found, row))
            print(
                f"{row['study'] + ' ' + row['case']:28} {rate:9,.0f} {planned_rate:9,.0f} "
                f"{planned_rate / rate:6.2f} {row['peak_gib']:6.1f} {found['peak_gib']:8.1f}"
            )
    if factors:
        middle = statistics.median(factors)
        print(f"products in a step: {middle:.2f} of alone; assumed {speed.IN_A_STEP}")


if __name__ == "__main__":
    main()
