"""Runs every variant in processes of its own and puts them in a table with one process."""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_train import check
from llm_train.errors import ConfigError, LLMTrainError
from llm_train.parity import configuration, judge, trajectory
from llm_train.parity.judge import Row, explanation, table
from llm_train.parity.processes import Launcher, launch
from llm_train.parity.trajectory import Trajectory
from llm_train.parity.variants import EXACT, REFERENCE, Variant, rounding
from llm_train.runtime.terminal import say, section
from llm_train.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One configuration, ready to be run in variants.

    Attributes:
        settings: what was configured.
        changes: dotted key -> value of what differs from that in all runs.
        options: flags that every run of the command line is given.
        load: parses and builds a configuration as the command line does.
        launch: runs the command line.
    """

    settings: Settings
    changes: Mapping[str, Any]
    options: Sequence[str]
    load: Callable[[Sequence[str]], Settings]
    launch: Launcher = launch

    @property
    def folder(self) -> Path:
        """Where all runs write."""
        return self.settings.run_dir / "parity"

    def prepare(self, variant: Variant) -> list[str]:
        """Writes the configuration of ``variant``; returns what ``check`` has against it."""
        configuration.write(self._file(variant), self.settings.plain, self.changes, variant)
        try:
            return check.problems(self.load(["-c", str(self._file(variant))]))
        except LLMTrainError as error:
            return str(error).splitlines()

    def run(self, variant: Variant) -> Trajectory | None:
        """Runs ``variant`` in place of what it left behind before; None if it failed."""
        run_dir, log = self._file(variant).with_suffix(""), self._file(variant).with_suffix(".log")
        shutil.rmtree(run_dir, ignore_errors=True)
        arguments = ["fit", "-c", str(self._file(variant)), "--count-collectives", *self.options]
        ranks = 0 if variant.alone else variant.ranks
        begun = time.monotonic()
        if not self.launch(arguments, ranks, log):
            say(f"  {variant.name} on {variant.ranks}: failed, see {log}")
            return None
        say(f"  {variant.name} on {variant.ranks}: {time.monotonic() - begun:.0f} s")
        found = trajectory.read(run_dir)
        try:
            return replace(found, weights=trajectory.weights(self.settings, run_dir))
        except LLMTrainError as error:
            say(f"    weights cannot be compared: {error}")
            return found

    def run_needed(self, variant: Variant) -> Trajectory:
        """Runs one of those that the others are compared with."""
        found = self.run(variant)
        if found is None:
            raise LLMTrainError(
                f"{variant.name} failed, and there is nothing to compare with; see "
                f"{self.folder / variant.folder}.log"
            )
        return found

    def _file(self, variant: Variant) -> Path:
        return self.folder / f"{variant.folder}.yaml"


def parity(
    settings: Settings,
    load: Callable[[Sequence[str]], Settings],
    variants: Sequence[Variant],
    *,
    steps: int = 50,
    options: Sequence[str] = (),
    json_file: Path | None = None,
    launch: Launcher = launch,
) -> int:
    """Runs ``variants`` and one process, prints the table; 0 if all are within tolerance, else 1.

    Raises:
        ConfigError: the configuration cannot be compared, or one process cannot run it.
    """
    _require(_refusals(settings, variants, steps))
    changes = configuration.shared(settings, steps)
    compared = Comparison(
        settings=settings, changes=changes, options=options, load=load, launch=launch
    )
    compared.folder.mkdir(parents=True, exist_ok=True)
    precision = settings.precision
    baselines = [rounding(settings.batch), *([] if precision == "32-true" else [EXACT])]
    for variant in (REFERENCE, *baselines):
        _require(compared.prepare(variant))
    checked = [(v, [v.refusal] if v.refusal else compared.prepare(v)) for v in variants]
    refused = [(f"{v.name} on {v.ranks}", line) for v, why in checked for line in why]
    ready = [v for v, why in checked if not why]
    if refused and not ready:
        _require(f"{name}: {line}" for name, line in refused)
    say(section("changed for the comparison, in all runs", configuration.spelt(changes)))
    say(f"\nruns of {changes.get('budget', settings.budget)}, in {compared.folder}")
    rows, allowed = _rows(compared, baselines, ready)
    say("\n" + explanation(precision, allowed, peak_memory=settings.accelerator.peak_memory))
    say("\n" + table(rows))
    for name, line in refused:
        say(f"skipped {name}: {line}")
    if json_file is not None:
        record = {
            "precision": precision,
            "steps": steps,
            "tolerance": vars(allowed),
            "rows": [row.plain() for row in rows],
            "skipped": [f"{name}: {line}" for name, line in refused],
        }
        json_file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    outside = [f"{row.name} on {row.ranks}" for row in rows if row.faults]
    say(f"\nout of tolerance: {', '.join(outside)}" if outside else "\nall within tolerance")
    return 1 if outside else 0


def _refusals(settings: Settings, variants: Sequence[Variant], steps: int) -> list[str]:
    found = list(configuration.refusals(settings.plain, steps))
    if settings.launch.kind != "none":
        found.append(
            f"parity starts its own processes; run it without {settings.launch.kind}, with --ranks"
        )
    for ranks in dict.fromkeys(variant.ranks for variant in variants):
        try:
            settings.batch.accumulation(ranks)
        except ConfigError as error:
            found.append(f"--ranks={ranks}: {error}")
    return found


def _require(problems: Iterable[str]) -> None:
    lines = list(dict.fromkeys(problems))
    if lines:
        raise ConfigError("\n".join(lines))


def _rows(
    compared: Comparison,
    baselines: Sequence[Variant],
    variants: Sequence[Variant],
) -> tuple[list[Row], judge.Distance]:
    """The rows, and the tolerance that the last baseline gives."""
    expected = compared.run_needed(REFERENCE)
    known = [(REFERENCE, expected), *((v, compared.run_needed(v)) for v in baselines)]
    allowed = judge.tolerance(judge.measured(known[-1][1], expected))
    rows = [judge.judge(variant, found, expected, allowed) for variant, found in known]
    rows += [judge.judge(v, compared.run(v), expected, allowed) for v in variants]
    return rows, allowed
