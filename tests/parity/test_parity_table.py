"""In the table of parity, right strategies agree with one process and wrong ones are found."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llm_train import check
from llm_train.cli.dispatch import load_settings
from llm_train.errors import ConfigError
from llm_train.parity import configuration
from llm_train.parity.comparison import parity
from llm_train.parity.judge import Distance, judge, tolerance
from llm_train.parity.trajectory import Trajectory, counted
from llm_train.parity.variants import Variant, rounding, variants
from llm_train.testing.command import refused, run
from llm_train.testing.configs import tiny, write
from llm_train.testing.fork_server import ForkServer
from llm_train.testing.ranks import launched_as, llm_train
from llm_train.units import Batch

ROOT = Path(__file__).parents[2]
DDP = partial(Variant, name="ddp", ranks=2, strategy="ddp")
Table = Callable[..., tuple[int, dict[str, Any]]]
DROPOUT = "model.network.init_args.dropout"
WARMUP = "--model.schedule.init_args.warmup"
ADAMW = "model.optimizer.init_args."


def config(folder: Path, **overrides: Any) -> Path:
    """Has no dropout, clips gradients at every step, and has shapes that 2 and 4 ranks divide."""
    settings: dict[str, Any] = {
        "model__network__init_args__dropout": 0.0,
        "model__network__init_args__heads": 4,
        "model__network__init_args__pad_vocab_to": 4,
        "model__network__init_args__mlp_width": 256,
        "trainer__gradient_clip_val": 0.25,
    }
    return write(folder / "c.yaml", tiny(folder / "run", **{**settings, **overrides}))


@pytest.fixture
def table(fork_server: ForkServer, tmp_path: Path) -> Table:
    """Compares in forked ranks; returns the exit status and what ``--json`` holds."""

    def forked(arguments: Sequence[str], ranks: int, log: Path) -> bool:
        log.unlink(missing_ok=True)
        return not any(fork_server.run(*arguments, ranks=ranks, log=log))

    def compare(
        which: Sequence[Variant], steps: int = 6, **overrides: Any
    ) -> tuple[int, dict[str, Any]]:
        settings = load_settings(["-c", str(config(tmp_path, **overrides))])
        file = tmp_path / "table.json"
        code = parity(settings, load_settings, which, steps=steps, json_file=file, launch=forked)
        return code, json.loads(file.read_text())

    return compare


def rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found["rows"]}


@pytest.mark.distributed
def test_strategies_agree_and_wrong_ones_are_found_out(
    table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wrong ones are DDP that clips at twice the norm, and a run that diverges."""
    tampered = [
        DDP(name="scaled", overrides={"trainer.gradient_clip_val": 0.5}),
        DDP(
            name="diverging",
            ranks=1,
            overrides={f"{ADAMW}learning_rate": 1e30, f"{ADAMW}weight_decay": 0},
        ),
    ]
    code, found = table([*variants(["ddp", "fsdp", "hsdp"], [2]), *tampered])
    by_name = rows(found)
    assert code == 1
    for name in ("ddp", "fsdp"):
        row = by_name[name]
        assert row["faults"] == []
        assert 0 < row["distance"]["loss"] < 1e-5
        assert 0 < row["distance"]["weights"] < 1e-5
        assert row["peak_gib"] > 0
    assert by_name["single"]["collectives"] == {}
    assert by_name["ddp"]["collectives"] == {"all-reduce": 1}
    assert by_name["fsdp"]["collectives"]["reduce-scatter"] == 3  # two blocks and the root
    assert "norm above 1.0e-05" in by_name["scaled"]["faults"]
    assert by_name["diverging"]["faults"] == ["failed"]
    assert found["skipped"] == ["hsdp on 2: needs at least 4 ranks"]
    said = capsys.readouterr().out
    assert "out of tolerance: scaled on 2, diverging on 1" in said
    assert "skipped hsdp on 2: needs at least 4 ranks" in said
    assert "trainer.enable_progress_bar  false" in said


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_strategy_on_one_two_and_four_ranks(precision: str, table: Table) -> None:
    settings = {"batch__tokens": 256, "trainer__precision": precision}
    compared = variants([], [1, 2, 4])
    code, found = table(compared, steps=50, **settings)
    assert code == 0, found
    ran = {(row["name"], row["ranks"]) for row in found["rows"]}
    assert {(v.name, 4) for v in compared} <= ran
    assert (("single, in fp32", 1) in ran) == (precision != "32-true")


@pytest.mark.slow
@pytest.mark.distributed
def test_the_verb_and_torchrun(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    arguments = ["--strategies", "fsdp", "--steps", "4", "--json", str(file)]
    outcome = run("parity", "-c", str(config(tmp_path)), *arguments)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    assert outcome.out.splitlines()[-1] == "all within tolerance"
    found = rows(json.loads(file.read_text()))
    assert set(found) == {"single", "single, rounded otherwise", "fsdp"}


@pytest.mark.slow
@pytest.mark.distributed
def test_a_users_strategy_and_local_sgd_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded gradients are out of the tolerance of fp32; another computation is not judged."""
    examples = ROOT / "docs/examples"
    monkeypatch.setenv("PYTHONPATH", f"{examples}{os.pathsep}{ROOT}")
    file, path = tmp_path / "table.json", config(tmp_path)
    compared = ["--strategies", "compressed,localsgd", "--steps", "4", "--json", str(file)]
    mine = ["--trainer.strategy.class_path=compressed.Compressed", "--allow-import", "compressed"]
    done = llm_train("parity", "-c", str(path), *compared, *mine, cwd=tmp_path, check=False)
    assert done.returncode == 1, done.stderr
    found = rows(json.loads(file.read_text()))
    assert any("loss above" in fault for fault in found["compressed"]["faults"])
    assert found["compressed"]["collectives"] == found["localsgd"]["collectives"]
    assert found["localsgd"]["faults"] == []
    assert "not judged" in done.stdout


RARELY = [("fsdp-no-reshard", 2), ("hsdp", 4), ("zero1", 2)]
ACCUMULATING = [
    *[("ddp", 2), ("fsdp", 2)],
    *(pytest.param(name, ranks, marks=pytest.mark.slow) for name, ranks in RARELY),
]


@pytest.mark.distributed
@pytest.mark.parametrize(("name", "ranks"), ACCUMULATING)
def test_gradients_are_reduced_once_a_step_whatever_the_accumulation(
    name: str, ranks: int, fork_server: ForkServer, tmp_path: Path
) -> None:
    """HSDP reduces in both directions. Gathers may grow: resharding is what saves memory."""
    several = (1, 8) if name in ("ddp", "fsdp") else (1, 2, 8)
    counts = [per_step(name, ranks, a, fork_server, tmp_path) for a in several]
    kinds = {"reduce-scatter", "all-reduce"}
    reductions = [{kind: found.get(kind, 0) for kind in kinds} for found in counts]
    assert reductions[0]["all-reduce"] + reductions[0]["reduce-scatter"] > 0
    assert all(found == reductions[0] for found in reductions)
    if name not in ("fsdp", "hsdp"):
        assert all(found == counts[0] for found in counts)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("name", "kind"), [("zero2", "all-reduce"), ("zero3", "reduce-scatter")])
def test_zero_reduces_every_micro_batch_where_gradients_are_sharded(
    name: str, kind: str, fork_server: ForkServer, tmp_path: Path
) -> None:
    """By design: a rank holds no gradients but its own, so the others cannot wait."""
    one, two, eight = (per_step(name, 2, a, fork_server, tmp_path)[kind] for a in (1, 2, 8))
    assert (two - one, eight - one) == (1, 7)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("name", "ranks", "groups"), [("tp", 2, 0), ("fsdp-tp", 4, 3)])
def test_tensor_parallelism_talks_about_activations_only(
    name: str, ranks: int, groups: int, fork_server: ForkServer, tmp_path: Path
) -> None:
    """Every micro-batch scatters as many activations; gradients come to that once a step."""
    counts = [per_step(name, ranks, a, fork_server, tmp_path) for a in (1, 2, 8)]
    one, two, eight = (found["reduce-scatter"] for found in counts)
    activations = two - one
    assert (one - activations, eight - 8 * activations) == (groups, groups)
    assert {found["all-reduce"] for found in counts} == {counts[0]["all-reduce"]}


def per_step(
    name: str, ranks: int, accumulation: int, fork_server: ForkServer, folder: Path
) -> dict[str, float]:
    """Returns the collectives of a step with so many micro-batches."""
    (variant,) = variants([name], [ranks])
    place = folder / str(accumulation)
    place.mkdir()
    path = config(
        place,
        steps=4,
        batch__tokens=ranks * 2 * 16 * accumulation,
        checkpoint__every="0 steps",
        trainer__strategy=variant.strategy,
    )
    log = place / "log.txt"
    arguments = ["fit", "-c", str(path), "--count-collectives"]
    assert not any(fork_server.run(*arguments, ranks=ranks, log=log)), log.read_text()
    return dict(counted(place / "run"))


@pytest.mark.parametrize(
    ("options", "key", "remedy"),
    [
        ("--ranks=0", "--ranks=0", "must be at least 1"),
        ("--ranks=two", "llm-train parity: argument --ranks", "invalid whole_numbers value: 'two'"),
        ("--strategies=dpp", "--strategies=dpp", "did you mean ddp?"),
        ("--steps=3", "--steps=3", "must be at least 4"),
        ("--ranks=1,3", "--ranks=3: batch.tokens=128", "nearest: 96 or 192"),
        (f"--{DROPOUT}=0.1", f"{DROPOUT}=0.1", f"give --{DROPOUT}=0"),
        ("--strategies=hsdp", "hsdp on 2", "needs at least 4 ranks"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    options: str, key: str, remedy: str, tmp_path: Path
) -> None:
    (line,) = refused("parity", "-c", str(config(tmp_path)), "--budget=100 steps", options)
    assert line.startswith(key)
    assert remedy in line
    assert not list((tmp_path / "run").glob("parity/*/metrics.jsonl"))


def test_a_shorter_run_has_shorter_phases(tmp_path: Path) -> None:
    options = ["-c", str(config(tmp_path)), "--budget=100 steps", f"{WARMUP}=60 steps"]
    changed = configuration.shared(load_settings(options), 50)
    assert changed["model.schedule.init_args.warmup"] == "30 steps"
    ramp = ["--batch.ramp.tokens=64", "--batch.ramp.doubles_every=2000 tokens"]
    in_tokens = [*options[:2], f"--budget={100 * 128} tokens", f"{WARMUP}=1000 tokens", *ramp]
    changed = configuration.shared(load_settings(in_tokens), 50)
    assert changed["batch.ramp.doubles_every"] == "1000 tokens"
    shorter = [f"--{key}={value}" for key, value in configuration.spelt(changed).items()]
    assert check.problems(load_settings([*in_tokens, *shorter])) == []


def test_it_starts_its_own_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in launched_as("torchrun", rank=0, ranks=2, port=29500).items():
        monkeypatch.setenv(name, value)
    (line,) = refused("parity", "-c", str(config(tmp_path)))
    assert "run it without torchrun, with --ranks" in line


STEPS = {"loss": [4.0, 2.0], "norm": [1.0, 1.0], "rate": [0.1, 0.2], "tokens": [8.0, 16.0]}
RUN = Trajectory(**STEPS, peak_gib=1.0, collectives={})


@pytest.mark.parametrize(
    ("changed", "faults"),
    [
        ({}, []),
        ({"rate": [0.1, 0.2000001]}, ["learning rate differs"]),
        ({"tokens": [8.0, 17.0]}, ["tokens differ"]),
        ({"loss": [4.0, 2.0001]}, ["loss above 1.0e-05"]),
        ({"loss": [4.0, float("nan")]}, ["loss above 1.0e-05"]),
        ({"norm": [1.00002, 1.0]}, ["norm above 1.0e-05"]),
        ({"loss": [4.0]}, ["loss above 1.0e-05"]),
    ],
)
def test_what_is_out_of_tolerance_is_named(changed: dict[str, Any], faults: list[str]) -> None:
    found = replace(RUN, **changed)
    allowed = tolerance(Distance(loss=0.0, norm=0.0, weights=0.0))
    assert judge(DDP(), found, RUN, allowed).faults == faults


def test_the_tolerance_is_three_times_what_rounding_does_and_continuous() -> None:
    spread = Distance(loss=1e-3, norm=1e-7, weights=2e-2)
    assert tolerance(spread) == Distance(loss=3e-3, norm=1e-5, weights=6e-2)
    # Tied weights, clipped to 0.1, two samples a step: ddp's norm was 1.6e-5 away.
    just_below, just_above = (
        tolerance(Distance(loss=0.0, norm=norm, weights=None)).norm for norm in (9.99e-6, 1.001e-5)
    )
    assert just_above - just_below < 1e-7
    assert just_below > 1.6e-5


@pytest.mark.parametrize(("per_device", "other"), [(8, 4), (9, 3), (7, 1), (1, 2)])
def test_the_same_samples_are_added_in_another_order(per_device: int, other: int) -> None:
    batch = Batch(tokens=16 * 504, sequence=16, per_device=per_device)
    assert rounding(batch).overrides == {"batch.per_device": other}


def test_one_sample_has_one_order() -> None:
    with pytest.raises(ConfigError, match=r"batch\.tokens=16 is one sample of 16 a step"):
        rounding(Batch(tokens=16, sequence=16, per_device=1))
