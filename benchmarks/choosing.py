"""Compares optimizers, each at its own best rate: python -m benchmarks.choosing --text input.txt.

For every specification in ``configs/sweeps``: one run with seed 1 at each of its rates; where the
best lies at the edge, further rates, each about three times further out; then two more seeds at the
best rate. Everything that is done is kept in ``--out``, so that the command may be killed and
started again at any time; ``--table`` prints the table of docs/choosing-an-optimizer.md from what
is there, and runs nothing.

``--standard-library --tuned OUT`` asks whether the order carries over: three seeds on the Python
source of the interpreter's own library, at the rates that were best in OUT.
"""

from __future__ import annotations

import argparse
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import yaml

from llm_train import load_settings
from llm_train.parity.processes import command
from llm_train.sweep import trial
from llm_train.sweep.spec import Spec
from llm_train.sweep.trial import TrialResult, nested

SPECS = Path(__file__).parents[1] / "configs" / "sweeps"
SEEDS = (1, 2, 3)
MOST_RATES = 7
TOKENS_PER_STEP = 768
VOCABULARY = 512
STANDARD_LIBRARY = [
    "--data.recipe.init_args.corpus=StandardLibrary",
    "--data.recipe.init_args.tokenizer=TrainBPE",
    f"--data.recipe.init_args.tokenizer.init_args.vocab_size={VOCABULARY}",
    "--data.recipe.init_args.split=HashSplit",
    "--data.recipe.init_args.split.init_args.fraction=0.02",
    f"--model.network.init_args.vocab_size={VOCABULARY}",
]


class Unfinished(Exception):
    """A run that has not been made yet."""


class Comparison:
    """The runs of one specification.

    Args:
        file: the specification.
        out: folder of all runs.
        words: further options of ``fit``.
        run: whether runs that are missing are made.
    """

    def __init__(self, file: Path, out: Path, words: list[str], *, run: bool) -> None:
        self.spec = Spec.read(file)
        (self.rate,) = (k for k, v in self.spec.keys.items() if isinstance(v[-1], float))
        self.fixed = {k: v[0] for k, v in self.spec.keys.items() if k not in ("seed", self.rate)}
        self.out = out / file.stem
        self.words = [f"-c{file}" for file in self.spec.config] + words
        self.run = run

    def trial(self, rate: float, seed: int) -> TrialResult:
        """One run, from its file where it is there.

        Raises:
            Unfinished: it is not, and must not be made.
        """
        values = {**self.fixed, self.rate: rate, "seed": seed}
        if not self.run and not (self.out / trial.name_of(values) / trial.RESULT).is_file():
            raise Unfinished
        found = trial.run(self.out, values, self.words, self.spec.metric)
        if found.why:
            raise SystemExit(f"{self.out.name}, rate {rate:g}, seed {seed}: {found.why}")
        print(f"{self.out.name:14} rate {rate:<8g} seed {seed}  {found.loss:.4f}", flush=True)
        return found

    def tuned(self) -> tuple[float, list[TrialResult], bool]:
        """The best rate with its runs, and whether it lies inside what was tried."""
        tried = {rate: self.trial(rate, 1).loss for rate in self.spec.keys[self.rate]}
        while True:
            best = min(tried, key=lambda rate: tried[rate])
            edge = {min(tried): beyond(best, up=False), max(tried): beyond(best, up=True)}
            if best not in edge or len(tried) >= MOST_RATES:
                return best, self.at(best), best not in edge
            tried[edge[best]] = self.trial(edge[best], 1).loss

    def at(self, rate: float) -> list[TrialResult]:
        """All seeds at one rate."""
        return [self.trial(rate, seed) for seed in SEEDS]

    def state_bytes(self, rate: float) -> float:
        """Bytes of optimizer state for each parameter."""
        overlay = self.out / "overlay.yaml"
        overlay.write_text(yaml.safe_dump(nested({**self.fixed, self.rate: rate})))
        settings = load_settings(*self.spec.config, overlay)
        named = settings.context().parameters
        optimizer = settings.task.optimizer_config
        return sum(optimizer.state_bytes(*pair) for pair in named) / sum(
            p.numel() for _, p in named
        )


def beyond(rate: float, *, up: bool) -> float:
    """The next of 1, 3, 10, 30, ... times a power of ten.

    >>> [beyond(0.3, up=True), beyond(0.1, up=False)]
    [1.0, 0.03]
    """
    first = round(rate / 10 ** math.floor(math.log10(rate) + 1e-9)) == 1
    step = 3 if first == up else 10 / 3
    return float(f"{rate * step if up else rate / step:.3g}")


def rows(
    files: list[Path], out: Path, words: list[str], *, run: bool, tuned: Path | None = None
) -> Iterator[dict[str, Any]]:
    """One for each optimizer whose runs are all there; rates are those of ``tuned``, if given."""
    for file in files:
        comparison = Comparison(file, out, words, run=run)
        try:
            if tuned:
                rate, _, inside = Comparison(file, tuned, words, run=False).tuned()
                trials = comparison.at(rate)
            else:
                rate, trials, inside = comparison.tuned()
        except Unfinished:
            continue
        losses = [found.loss for found in trials]
        yield {
            "optimizer": file.stem,
            "rate": f"{rate:g}" + ("" if inside else " (edge)"),
            "loss": fmean(losses),
            "spread": stdev(losses),
            "bytes": comparison.state_bytes(rate),
            "ms": 1000 * TOKENS_PER_STEP / median(found.tokens_per_s for found in trials),
        }


def main() -> None:
    """Runs what is missing, unless only the table is wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", default="input.txt", help="the text of Shakespeare's plays")
    parser.add_argument("--standard-library", action="store_true", help="another text")
    parser.add_argument("--out", default="runs/choosing", help="folder of all runs")
    parser.add_argument("--tuned", type=Path, help="folder of runs whose best rates are taken")
    parser.add_argument("--only", default="", help="names of specifications, between commas")
    parser.add_argument("--table", action="store_true", help="run nothing")
    flags = parser.parse_args()
    names = flags.only.split(",") if flags.only else []
    files = [f for f in sorted(SPECS.glob("*.yaml")) if f.stem != "base"]
    files = [file for file in files if not names or file.stem in names]
    words = [f"--data.recipe.init_args.corpus.init_args.paths=[{flags.text}]"]
    words = STANDARD_LIBRARY if flags.standard_library else words
    words = [*words, f"--data.source.init_args.path={flags.out}/data"]
    if not flags.table and not (Path(flags.out) / "data").is_dir():
        prepare = command("prepare", "-c", str(SPECS / "base.yaml"), *words)
        subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL)
    found = list(rows(files, Path(flags.out), words, run=not flags.table, tuned=flags.tuned))
    print(
        "\n| optimizer | best rate | held-out loss | spread | state, bytes/parameter | ms a step |"
    )
    print("|---|---|---|---|---|---|")
    for row in sorted(found, key=lambda row: row["loss"]):
        print(
            f"| {row['optimizer']} | {row['rate']} | {row['loss']:.4f} | {row['spread']:.4f} "
            f"| {row['bytes']:.1f} | {row['ms']:.1f} |"
        )


if __name__ == "__main__":
    main()
