"""Says from a run which batch is critical and what a larger one costs, or which rates train."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llm_train.errors import ConfigError, LLMTrainError
from llm_train.verbs.base import Load, Verb

if TYPE_CHECKING:
    from llm_train.report import RecordedRun

_RISES = 30.0  # a rate that rises by more, to the end of the run, is a range test
_FACTORS = (0.5, 1, 2, 4, 8, 16)


class Advise(Verb):
    """Reads what NoiseScale or a RangeTest has left in the metrics, and builds nothing."""

    reads = "files"

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Which run, and which part of it."""
        parser.add_argument("run", help="run directory, for instance runs/quickstart")
        parser.add_argument(
            "--last", type=float, default=0.5, help="part of the run to average, from its end"
        )

    def run(self, flags: argparse.Namespace, load: Load) -> None:
        """Prints the noise scale and a row for each batch."""
        from llm_train.runtime.terminal import say, section

        if not 0 < flags.last <= 1:
            raise ConfigError(f"--last={flags.last} must lie above 0 and at most be 1, all of it")
        for title, values in advice(Path(flags.run), flags.last).items():
            say(section(title, values))


def advice(run_dir: Path, last: float) -> dict[str, dict[str, str]]:
    """What to say of a run, by section.

    Args:
        run_dir: of a run with the callback NoiseScale.
        last: part of the run to average, from its end.

    Raises:
        LLMTrainError: nothing was measured, or too little to say anything.
    """
    from llm_train.analysis.noise import noise_scale, relative_cost
    from llm_train.report import RecordedRun
    from llm_train.runtime import yaml12

    run = RecordedRun.read(run_dir)
    rates = [point.value for point in run.points("optimizer/lr")]
    if rates and rates == sorted(rates) and rates[-1] > _RISES * rates[0]:
        return {"learning-rate range test": _rates(run)}
    gradients, traces = run.finite("noise/gradient_squared"), run.finite("noise/trace")
    count = round(len(gradients) * last)
    if count < 2:
        raise LLMTrainError(
            f"{run_dir} has {count} log points with noise/trace, and an average needs 2; train "
            "with trainer.callbacks: [{class_path: NoiseScale}]"
        )
    steps = [point.step for point in gradients[-count:]]
    found = noise_scale(
        [point.value for point in gradients[-count:]], [point.value for point in traces[-count:]]
    )
    said = {
        "critical batch": f"{found.tokens:,.0f} tokens +- {found.error:,.0f}",
        "from": f"{count} log points, steps {steps[0]:,} to {steps[-1]:,}: the ratio of the means",
        "error": "standard error by the jackknife over blocks of log points",
    }
    if not 0 < 2 * found.error < found.tokens:
        said["but"] = "noise hides the gradient; measure for longer, or average more (--last)"
        return {"gradient noise scale": said}
    batch = int(yaml12.load(run.config)["batch"]["tokens"])
    rows = {}
    for factor in _FACTORS:
        cost = relative_cost(batch, factor * batch, found.tokens)
        now = "  (now)" if factor == 1 else ""
        rows[f"batch.tokens={factor * batch:,.0f}"] = (
            "{:.2f} x the steps, {:.2f} x the tokens".format(*cost) + now
        )
    return {"gradient noise scale": said, "to the same loss": rows}


def _rates(run: RecordedRun) -> dict[str, str]:
    """What a run with the schedule RangeTest says of the learning rate."""
    from llm_train.analysis.fits import usable_range

    points = run.finite("train/loss")
    at = {point.step: point.value for point in run.points("optimizer/lr")}
    if len(points) < 2:
        raise LLMTrainError(f"{run.name} has no two log points; set trainer.log_every_n_steps=1")
    found = usable_range([at[p.step] for p in points], [p.value for p in points])
    said = {
        "from": f"{len(points)} log points, smoothed over about 10 of them",
        "the loss falls fastest at": f"{found.steepest:.3g}",
    }
    last = at[run.points("train/loss")[-1].step]  # where it may be NaN
    if found.highest >= last:
        return said | {
            "no rise": f"was seen up to {last:.3g}; raise the peak, "
            "model.optimizer.init_args.learning_rate, and run the test again"
        }
    return said | {
        "and rises again from": f"{found.highest:.3g}",
        "to try": f"{found.highest / 10:.3g} to {found.highest / 3:.3g}, a tenth to a third of it",
    }
