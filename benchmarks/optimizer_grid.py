"""Optimizers, and recompute policies with compilation, under each strategy: which are right?

A cell checks, plans, trains and resumes one combination. It is ``right`` when its losses are those
of one plain process and a resume in the middle repeats what followed, ``refused`` when ``check``
says no in a line for each reason, and else ``wrong`` or ``traceback``::

    python -m benchmarks.optimizer_grid benchmarks/results/optimizers-DATE.jsonl
    python -m benchmarks.optimizer_grid --write benchmarks/results/optimizers-DATE.jsonl

Each cell is a line as soon as it is known, and one that is there already is left out. ``--only
lamb`` takes the cells whose name has that in it, ``--again`` those that were not good. ``--write``
puts the tables into the documentation.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.judge import read_rows
from benchmarks.studies.environment import described
from llm_train.discovery import concrete
from llm_train.model.optimizer import Grouped, Optimizer, TorchOptimizer
from llm_train.model.recompute import EveryBlock, EveryNth, NoRecompute, Recompute, Selective
from llm_train.testing.configs import losses, part, tiny, write
from llm_train.testing.fork_server import ForkServer

PAGE = Path(__file__).parents[1] / "docs" / "optimizers.md"
STRATEGIES = {
    "optimizers": ("single", "ddp", "fsdp", "zero2", "zero3"),
    "recompute": ("single", "ddp", "fsdp", "tp", "zero1", "zero2", "zero3"),
}
STEPS, MIDDLE = 6, 2
# Of a loss, in six steps. Reductions in another order change it by 3e-7; updates by the sign of a
# gradient add more, where that is near zero. LAMB was off by 4e-3 where its norms were of shards.
TOLERANCE = 1e-4
POLICIES = (NoRecompute(), EveryBlock(), EveryNth(n=2), Selective())
COMPILED = ("none", "blocks", "network")
OF_TORCH = (
    *(
        "SGD",
        "ASGD",
        "Adadelta",
        "Adafactor",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "LBFGS",
        "Muon",
    ),
    *("NAdam", "RAdam", "RMSprop", "Rprop", "SparseAdam"),
)
OF_PYTORCH_OPTIMIZER = (
    *("Lamb", "LARS", "Lion", "Adan", "Muon", "Shampoo", "SOAP", "AdaFactor", "ScheduleFreeAdamW"),
    *(
        "SophiaH",
        "Prodigy",
        "DAdaptAdam",
        "CAME",
        "GaLore",
        "APOLLO",
        "Tiger",
        "AdaBelief",
        "RAdam",
    ),
    *("ADOPT", "AdEMAMix", "Fromage", "StableAdamW", "Grams", "Kron"),
)
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "Prodigy": {"lr": 1.0},
    "DAdaptAdam": {"lr": 1.0},
    "SGLD": {"temperature": 1e-9},
    "LowBitAdamW": {"state": "bf16"},  # no row of the tiny network is long enough for 8 bits
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination.

    Attributes:
        study: the table that it belongs to.
        row: in the table.
        strategy: in the table, and how it is trained.
        settings: of the tiny run, dotted keys with ``__`` for dots.
    """

    study: str
    row: str
    strategy: str
    settings: dict[str, Any] = field(compare=False)

    @property
    def case(self) -> str:
        """Its name in the file."""
        return f"{self.row} {self.strategy}"


def optimizer_cells() -> Iterator[Cell]:
    """Our own classes, torch's, and some of a library's, under each strategy."""
    chosen: dict[str, Any] = {}
    for kind in concrete(Optimizer):  # type: ignore[type-abstract]
        if kind not in (TorchOptimizer, Grouped):  # which are made of others
            name = kind.__name__
            chosen[name] = part(name, learning_rate=0.01, **_ARGUMENTS.get(name, {}))
    packages = {"torch.optim": OF_TORCH, "pytorch_optimizer": OF_PYTORCH_OPTIMIZER}
    for package, names in packages.items():
        for name in names:
            inner = part(f"{package}.{name}", **{"lr": 0.01} | _ARGUMENTS.get(name, {}))
            chosen[f"{package}.{name}"] = part("TorchOptimizer", optimizer=inner)
    for (name, optimizer), strategy in product(chosen.items(), STRATEGIES["optimizers"]):
        settings = {"model__optimizer": optimizer}
        yield Cell(study="optimizers", row=name, strategy=strategy, settings=settings)


def recompute_cells() -> Iterator[Cell]:
    """Every policy, compiled or not, under each strategy."""
    for policy, unit, strategy in product(POLICIES, COMPILED, STRATEGIES["recompute"]):
        settings = {"model__recompute": _written(policy), "model__compile": unit}
        row = f"{policy}, compile {unit}"
        yield Cell(study="recompute", row=row, strategy=strategy, settings=settings)


def _written(policy: Recompute) -> dict[str, Any]:
    return part(type(policy).__name__, **({"n": policy.n} if isinstance(policy, EveryNth) else {}))


class Grid:
    """Measures cells.

    Args:
        server: runs the command line.
    """

    def __init__(self, server: ForkServer) -> None:
        self._server = server
        self._plain: dict[str, dict[int, float]] = {}  # losses of one process by optimizer

    def measured(self, cell: Cell, *, plan: bool = True) -> dict[str, Any]:
        """What became of a cell."""
        with tempfile.TemporaryDirectory() as folder:
            return self._measured(cell, Path(folder), plan=plan)

    def _measured(self, cell: Cell, folder: Path, *, plan: bool) -> dict[str, Any]:
        settings, strategy = cell.settings, cell.strategy
        log = folder / "log.txt"

        def run(verb: str, name: str, *more: str, strategy: str = strategy) -> int:
            options = ("--allow-import", "pytorch_optimizer", *more)
            config = _config(folder / name, strategy, settings)
            log.write_text("")
            ranks = 2 if verb == "fit" and strategy != "single" else 0
            arguments = (verb, "-c", str(write(folder / f"{name}.yaml", config)), *options)
            return max(map(abs, self._server.run(*arguments, ranks=ranks, log=log)))

        code = run("check", "whole")
        said = " ".join(_refusals(log))  # a line for each problem
        if code == 2 and said and "Traceback" not in log.read_text():
            return {"verdict": "refused", "message": said[:500]}
        start = folder / "whole" / "checkpoints" / f"step-{MIDDLE:08}"
        if (
            code
            or (plan and run("plan", "whole"))
            or run("fit", "whole")
            or run("fit", "resumed", "--resume", str(start))
        ):
            last = log.read_text().splitlines()[-1:]
            return {"verdict": "traceback", "message": " ".join(_refusals(log) or last)[:500]}
        key = json.dumps(settings.get("model__optimizer"))
        if key not in self._plain:
            plain = {k: v for k, v in settings.items() if k == "model__optimizer"}
            settings = plain
            assert run("fit", "plain", strategy="single") == 0, log.read_text()
            self._plain[key] = losses(folder / "plain")
        plainly, whole, resumed = (
            self._plain[key],
            *map(losses, (folder / "whole", folder / "resumed")),
        )
        found = {
            "deviation": max(abs(whole[s] - plainly[s]) / plainly[s] for s in plainly),
            "after_resume": max(
                abs(resumed[s] / whole[s] - 1) for s in range(MIDDLE + 1, STEPS + 1)
            ),
        }
        good = found["deviation"] <= TOLERANCE and found["after_resume"] == 0.0
        return {"verdict": "right" if good else "wrong", **found}


def _config(run_dir: Path, strategy: str, settings: dict[str, Any]) -> dict[str, Any]:
    fixed = {
        "model__network__init_args__dropout": 0.0,
        "model__network__init_args__mlp_width": 256,  # which two ranks of tp can cut
        "model__network__init_args__pad_vocab_to": 4,
        "checkpoint__every": f"{MIDDLE} steps",
        "trainer__devices": 1 if strategy == "single" else 2,
        "trainer__strategy": strategy,
    }
    return tiny(run_dir, steps=STEPS, **fixed, **settings)


def _refusals(log: Path) -> list[str]:
    """What the command line has said to be wrong, on all ranks alike."""
    begun = "llm-train: error: "
    found = [line for line in log.read_text().splitlines() if line.startswith(begun)]
    return [line.removeprefix(begun) for line in dict.fromkeys(found)]


def tables(rows: Iterable[dict[str, Any]]) -> str:
    """The last verdict of each cell, in Markdown."""
    last = {(r["study"], r["row"], r["strategy"]): r for r in rows}
    parts = []
    for study, strategies in STRATEGIES.items():
        mine = {key[1:]: row for key, row in last.items() if key[0] == study}
        counts = {v: sum(r["verdict"] == v for r in mine.values()) for v in _VERDICTS}
        said = ", ".join(f"{number} {verdict}" for verdict, number in counts.items())
        lines = [f"{len(mine)} cells: {said}.", ""]
        lines += [f"| {' | '.join(('', *strategies))} |", "|---" * (len(strategies) + 1) + "|"]
        for name in dict.fromkeys(name for name, _ in mine):
            cells = [_shown(mine.get((name, strategy))) for strategy in strategies]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


_VERDICTS = ("right", "refused", "wrong", "traceback")


def _shown(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    deviation = row.get("deviation")
    return row["verdict"] + (f", {deviation:.0e}" if deviation else "")


def into_page(page: Path, made: str) -> None:
    """Writes ``made`` between the marks of a page."""
    marks = r"(<!-- figures -->\n).*(\n<!-- end of figures -->)"
    text = re.sub(marks, lambda m: f"{m[1]}\n{made}\n{m[2]}", page.read_text(), flags=re.DOTALL)
    page.write_text(text)


def main() -> int:
    """Fills the file, and exits with 1 if a cell is wrong or a traceback."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", default="", help="part of the name of a cell")
    parser.add_argument("--again", action="store_true", help="repeat what was not right or refused")
    parser.add_argument("--write", action="store_true", help=f"tables into {PAGE.name}")
    flags = parser.parse_args()
    if flags.write:
        into_page(PAGE, tables(read_rows(flags.results)))
        return 0
    known = {(r["study"], r["case"]): r["verdict"] for r in read_rows(flags.results)}
    good = ("right", "refused")
    grid, versions, bad = Grid(ForkServer()), described(), 0
    for cell in (*optimizer_cells(), *recompute_cells()):
        before = known.get((cell.study, cell.case), "")
        done = before in good if flags.again else before
        if done or flags.only.lower() not in cell.case.lower():
            continue
        began = time.perf_counter()
        row = {"study": cell.study, "case": cell.case, "row": cell.row, "strategy": cell.strategy}
        row |= grid.measured(cell, plan=cell.study == "optimizers")
        row["seconds"] = round(time.perf_counter() - began, 1)
        row |= {"time": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions}
        with open(flags.results, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        bad += row["verdict"] not in good
        print(*(row.get(key, "") for key in _PRINTED), sep="  ", flush=True)
    return int(bad > 0)


_PRINTED = ("verdict", "case", "deviation", "after_resume", "seconds", "message")

if __name__ == "__main__":
    sys.exit(main())
