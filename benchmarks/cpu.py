"""Compares everything that can be compared without a GPU: python -m benchmarks.cpu (make bench).

Times are compared only within one run, between processes that take turns; counts are the same on
any machine. Rows go to a JSON-lines file with all versions, and a table goes to the terminal.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import tempfile
from datetime import UTC, date, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import counts, loader, mixture
from benchmarks.duel import Peer, duel, ratio
from benchmarks.peers.fetch import nanogpt
from benchmarks.shapes import CPU
from benchmarks.work import Job, Shape, write_tokens

ROOT = Path(__file__).parents[1]
NANO = CPU["nanogpt-cpu"].shape
GPT2 = CPU["gpt2-tiny-width"].shape
ONE_LAYER = Shape(
    name="one layer of width 8", vocab=64, layers=1, width=8, heads=1, kv_heads=1, mlp=32,
    sequence=8, batch=1,
)  # fmt: skip


class Rows:
    """Collects rows and writes each one as soon as it is known."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.all: list[dict[str, Any]] = []
        self._common = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {_processor()}",
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "lightning")},
        }

    def add(self, study: str, **values: Any) -> None:
        """Adds one measurement."""
        self.all.append({"study": study, **values})
        with self._out.open("a") as file:
            file.write(json.dumps({"study": study, **values, **self._common}) + "\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def peers(shape: Shape, directory: Path, nanogpt: str, threads: int) -> list[Peer]:
    """Returns llm_train and those of its peers that are installed."""
    tokens = write_tokens(directory / f"{shape.vocab}.bin", shape.vocab, 1_000_000)
    options = {"path": nanogpt}
    wanted = [("llm_train", "ours", v) for v in ("eager", "compiled", "network")]
    if nanogpt:
        wanted += [("nanoGPT", "nanogpt", v) for v in ("eager", "compiled")]
        wanted += [("stock Lightning", "stock_lightning", v) for v in ("eager", "compiled")]
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("accelerate"):
        wanted += [("Hugging Face", "hugging_face", v) for v in ("eager", "compiled")]
    return [
        Peer(
            name=f"{name}, {variant}",
            module=f"benchmarks.peers.{module}",
            job=Job(
                shape=shape, device="cpu", dtype="float32", variant=variant, tokens=str(tokens),
                warmup=5, threads=threads, options=options,
            ),
        )
        for name, module, variant in wanted
    ]  # fmt: skip


def step_times(
    rows: Rows, shape: Shape, steps: int, directory: Path, arguments: argparse.Namespace
) -> None:
    """Measures milliseconds per optimizer step, end to end, and the ratio to the best peer.

    There are many short rounds, because a shared machine changes its speed within seconds, and a
    disturbance that lasts longer than a round slows all peers alike.
    """
    found = duel(
        peers(shape, directory, arguments.nanogpt, arguments.threads),
        directory,
        rounds=arguments.rounds,
        steps=steps,
    )
    found.sort(key=lambda peer: peer.median)
    others = [peer for peer in found if not peer.name.startswith("llm_train")]
    for peer in found:
        row = {"shape": shape.name, "peer": peer.name, "milliseconds": round(peer.median, 2),
               "spread": round(peer.spread, 2), "threads": arguments.threads,
               "seconds_to_step_5": round(peer.first_step_seconds, 1)}  # fmt: skip
        if others and peer.name.startswith("llm_train"):
            # The best peer is the one against which this ratio is worst.
            worst, spread = max(ratio(peer, other) for other in others)
            row |= {"to_best_peer": round(worst, 3), "spread_of_ratio": round(spread, 3)}
            sure = abs(1 - worst) > 2 * spread
            row["verdict"] = ("faster" if worst < 1 else "slower") if sure else "equal"
        rows.add("step time", **row)


def tax(rows: Rows, directory: Path) -> None:
    """Measures host CPU time per step above a bare loop, where nothing else takes time."""
    tokens = write_tokens(directory / "tax.bin", ONE_LAYER.vocab, 100_000)
    cases = {
        "bare loop": ("bare", []),
        "llm_train, log point every 10 steps": ("ours", []),
        "llm_train, log point every step": ("ours", ["--trainer.log_every_n_steps=1"]),
    }
    found = duel(
        [
            Peer(
                name=name,
                module=f"benchmarks.peers.{module}",
                job=Job(
                    shape=ONE_LAYER, device="cpu", dtype="float32", variant="eager",
                    tokens=str(tokens), warmup=100, threads=1, options={"overrides": overrides},
                ),
            )
            for name, (module, overrides) in cases.items()
        ],
        directory,
        rounds=15,
        steps=300,
    )  # fmt: skip
    bare = found[0].cpu_median
    for peer in found:
        rows.add("framework tax", peer=peer.name, cpu_milliseconds=round(peer.cpu_median, 3),
                 above_bare=round(peer.cpu_median - bare, 3))  # fmt: skip


ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "as shipped: blocks compiled, chunked loss, fused AdamW": ("compiled", {}),
    "nothing compiled": ("eager", {}),
    "one graph, plain loss": ("network", {}),
    "plain loss: all logits": ("compiled", {"overrides": ["--model.loss=CausalLM"]}),
    "AdamW not fused": ("compiled", {"overrides": ["--model.optimizer.init_args.fused=off"]}),
    "freed memory returned to the system": ("compiled", {"return_memory": True}),
    "freed memory returned, nothing compiled": ("eager", {"return_memory": True}),
    "a log point every step": ("compiled", {"overrides": ["--trainer.log_every_n_steps=1"]}),
}


# A round has as many steps as lie between two measurements of a callback.
CALLBACK_STEPS = 10
CALLBACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "no callback": ("compiled", {}),
    **{
        name: ("compiled", {"overrides": [f"--trainer.callbacks=[{written}]"]})
        for name, written in {
            "LayerStatistics every 10 steps": '{"class_path": "LayerStatistics", "init_args": '
            f'{{"every": {CALLBACK_STEPS}}}}}',
            "EMA every step": '{"class_path": "EMA", "init_args": {"decay": 0.999}}',
        }.items()
    },
}


def variants(
    rows: Rows,
    study: str,
    cases: dict[str, tuple[str, dict[str, Any]]],
    steps: int,
    directory: Path,
    arguments: argparse.Namespace,
) -> None:
    """Changes one thing at a time; ratios are to the first case, which is what is shipped."""
    tokens = write_tokens(directory / "variants.bin", GPT2.vocab, 1_000_000)
    peers_ = [
        Peer(
            name=name,
            module="benchmarks.peers.ours",
            job=Job(
                shape=GPT2, device="cpu", dtype="float32", variant=variant, tokens=str(tokens),
                warmup=5, threads=arguments.threads, options=options,
            ),
        )
        for name, (variant, options) in cases.items()
    ]  # fmt: skip
    shipped, *others = duel(peers_, directory, rounds=arguments.rounds, steps=steps)
    for peer in (shipped, *others):
        to_shipped, spread = ratio(peer, shipped)
        rows.add(study, case=peer.name, milliseconds=round(peer.median, 1),
                 to_shipped=round(to_shipped, 3), spread_of_ratio=round(spread, 3))  # fmt: skip


def everything_counted(rows: Rows, directory: Path) -> None:
    """Adds a row for each count of ``counts``."""
    rows.add("host synchronisations", **counts.synchronisations(directory))
    for strategy in ("ddp", "fsdp"):
        for accumulation in (1, 4):
            found = counts.collectives(directory, strategy, accumulation)
            rows.add("collectives a step, 2 ranks", strategy=strategy, accumulation=accumulation,
                     **found)  # fmt: skip
    rows.add("bytes kept per token, layer and unit of width, fp32", **counts.kept_bytes())
    for unit in ("blocks", "network"):
        rows.add("compilation", unit=unit, **counts.compilation(directory, unit))


def table(rows: list[dict[str, Any]]) -> str:
    """Formats one line per row, with studies under headings."""
    lines: list[str] = []
    for study, group in groupby(rows, key=lambda row: row["study"]):
        lines.append(f"\n{study}")
        for row in group:
            cells = (
                f"{k} {v:,.3f}" if isinstance(v, float) else f"{k} {v}"
                for k, v in row.items()
                if k != "study"
            )
            lines.append("  " + "  ".join(cells))
    return "\n".join(lines).lstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nanogpt", default="", help="a checkout of karpathy/nanoGPT; else cloned")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--rounds", type=int, default=45, help="measurements of each peer")
    parser.add_argument(
        "--only", default="", help="steps, tax, counts, loader, ablations, callbacks; with commas"
    )
    parser.add_argument("--out", type=Path, help="rows are appended to it")
    arguments = parser.parse_args()
    out = arguments.out or ROOT / "benchmarks/results" / f"cpu-{date.today().isoformat()}.jsonl"
    rows = Rows(out)
    studies = {"steps", "tax", "counts", "loader", "ablations", "callbacks"}
    wanted = set(filter(None, arguments.only.split(","))) or studies
    if unknown := wanted - studies:
        parser.error(
            f"no study is called {', '.join(sorted(unknown))}; there are {sorted(studies)}"
        )
    if "steps" in wanted:
        arguments.nanogpt = nanogpt(arguments.nanogpt)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if "counts" in wanted:
            everything_counted(rows, directory)
        if "loader" in wanted:
            for row in (*loader.measure(directory), *mixture.measure(directory)):
                rows.add("loader", **row)
        if "tax" in wanted:
            tax(rows, directory)
        if "ablations" in wanted:
            variants(rows, "ablations", ABLATIONS, 1, directory, arguments)
        if "callbacks" in wanted:
            variants(rows, "callbacks", CALLBACKS, CALLBACK_STEPS, directory, arguments)
        if "steps" in wanted:
            for shape, steps in ((NANO, 4), (GPT2, 1)):
                step_times(rows, shape, steps, directory, arguments)
    print(table(rows.all))
    print(f"\nrows: {out}")


if __name__ == "__main__":
    main()
