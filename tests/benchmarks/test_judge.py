"""Verdicts on recorded rows say what may be claimed, was missed, or was never measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("benchmarks", reason="the benchmarks are not in an installed package")

from benchmarks.draw import LIMIT, picture, read, summary
from benchmarks.judge import WHOLE_STUDY, Goal, Rows, compare, goals
from benchmarks.shapes import GPU

VERSIONS = {"torch": "2.11.0", "device": "NVIDIA H200", "memory_gib": 139.8}


def row(study: str, case: str, **numbers: Any) -> dict[str, Any]:
    return {"study": study, "case": case, **numbers, "versions": VERSIONS}


def timed(study: str, case: str, milliseconds: float, spread: float) -> dict[str, Any]:
    rates = {"tokens_per_s": 65_536_000 / milliseconds, "spread_tokens_per_s": 1.0}
    return row(study, case, milliseconds=milliseconds, spread=spread, micro_batch=16, **rates)


def verdicts(*rows: dict[str, Any]) -> dict[str, Goal]:
    return {goal.name: goal for goal in goals(Rows(rows))}


@pytest.mark.parametrize(
    ("other", "spread", "expected"),
    [(110, 4.9, "faster"), (110, 5.0, "equal"), (90, 1.0, "slower"), (100, 0.0, "equal")],
)
def test_a_difference_within_twice_the_spread_is_none(
    other: float, spread: float, expected: str
) -> None:
    ratio, verdict = compare(timed("peers", "a", 100, 0.1), timed("peers", "b", other, spread))
    assert ratio == other / 100
    assert verdict == expected


def test_nothing_measured_is_nothing_missed() -> None:
    assert {goal.verdict for goal in verdicts().values()} == {"not measured"}


@pytest.mark.parametrize(
    ("rate", "expected"), [(469_999, "missed"), (470_000, "must"), (520_000, "aim")]
)
def test_tokens_per_second(rate: float, expected: str) -> None:
    assert verdicts(row("throughput", "gpt2-124m", tokens_per_s=rate))["gpt2-124m"].verdict == (
        expected
    )


@pytest.mark.parametrize(
    ("gib", "expected"), [(19.0, "missed"), (18.0, "must"), (16.5, "aim")]
)  # 20.4, 19.3 and 17.7 GB
def test_less_memory_is_better(gib: float, expected: str) -> None:
    found = verdicts(row("memory", "as shipped", peak_gib=gib))
    assert found["124M at 64 x 1024, peak memory"].verdict == expected


def test_a_noisy_win_is_not_claimed() -> None:
    ours = timed("peers", "ours", 100, 20)
    goal = verdicts(ours, timed("peers", "nanoGPT", 130, 1))["124M against nanoGPT"]
    assert (goal.value, goal.verdict) == (1.0, "missed")
    ours = timed("peers", "ours", 100, 1)
    assert verdicts(ours, timed("peers", "nanoGPT", 130, 1))["124M against nanoGPT"].value == 1.3


def test_a_peer_that_failed_says_why() -> None:
    rows = [timed("peers", "ours", 100, 1), row("peers", "nanoGPT", error="out of memory")]
    goal = verdicts(*rows)["124M against nanoGPT"]
    assert (goal.verdict, goal.note) == ("not measured", "out of memory")


def test_float8_is_measured_against_both_baselines() -> None:
    name = "llama-8b-4096"
    rates = {"bf16": 10_000, "tensorwise": 12_000, "rowwise": 11_000, "bf16 again": 10_400}
    found = verdicts(*(row("float8", f"{name} {c}", tokens_per_s=r) for c, r in rates.items()))
    goal = found["8B, FP8 against bf16"]
    assert goal.value == pytest.approx(100 * (12_000 / 10_200 - 1))
    assert (goal.verdict, goal.note) == ("missed", "tensorwise")


def test_only_a_cold_start_counts() -> None:
    seconds = [("cold", 0, 70.0), ("warm", 0, 20.0), ("cold", 1, 40.0)]
    rows = [row("startup", s, state=s, repeat=i, seconds=t) for s, i, t in seconds]
    assert verdicts(*rows)["command to step 10, 24 layers, cold cache"].value == 55.0


def test_trials_and_later_failures_do_not_replace_a_result() -> None:
    rows = Rows(
        [
            row("largest", "largest", parameters=14e9, peak_gib=130.0),
            row("largest", "70 layers", trial=True, error="out of memory"),
            row("largest", "largest", error="interrupted"),
        ]
    )
    assert rows.get("largest", "largest")["parameters"] == 14e9
    assert len(rows.of("largest")) == 1
    goal = {goal.name: goal for goal in goals(rows)}["largest model, sequence 2048"]
    assert (goal.value, goal.verdict) == (14.0, "must")


def test_a_skipped_study_says_why_until_it_ran() -> None:
    skipped = row("peers", WHOLE_STUDY, skipped="time")
    name = "124M against bare loop"
    goal = verdicts(skipped)[name]
    assert (goal.verdict, goal.note) == ("not measured", "time")
    ran = [timed("peers", "ours", 100, 1), timed("peers", "bare loop", 99, 1)]
    assert verdicts(skipped, *ran)[name].verdict == "must"
    assert len(Rows([skipped, *ran]).of("peers")) == 2


def test_the_summary_fits_and_loses_the_least_important(tmp_path: Path) -> None:
    rows = [row("throughput", name, tokens_per_s=1.0, micro_batch=2) for name in GPU]
    rows += [row("loss", f"method {i}", vocab=i, width=1, tokens=2) for i in range(1000)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"study": "torn')
    text = summary(read([file]))
    assert len(text) <= LIMIT
    assert "gpt2-1.5b" in text
    assert "More rows" in text
    assert "method 999" in summary(read([file]), limit=1_000_000)


def test_a_rehearsal_never_mixes_with_measurements(tmp_path: Path) -> None:
    made_up = {**row("throughput", "gpt2-124m", tokens_per_s=9e9, micro_batch=2)}
    made_up["versions"] = {**VERSIONS, "rehearsal": True}
    real = row("throughput", "gpt2-124m", tokens_per_s=500_000, micro_batch=64)
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(made_up) + "\n")
    assert "rehearsal of tiny twins" in summary(read([file]))
    file.write_text(json.dumps(real) + "\n" + json.dumps(made_up) + "\n")
    assert read([file]).get("throughput", "gpt2-124m")["tokens_per_s"] == 500_000


def test_the_picture_can_be_drawn_from_any_part(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shape = {"must": 1, "aim": 2, "roof": 3, "tokens_per_s": 2.0}
    rows = [row("throughput", "gpt2-124m", **shape), timed("peers", "ours", 100, 1)]
    for index, some in enumerate((rows, [])):
        picture(Rows(some), tmp_path / f"{index}.png")
        assert (tmp_path / f"{index}.png").stat().st_size > 1000
