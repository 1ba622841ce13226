"""Measured fractions are worked out by hand, and every constant that they replace is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("benchmarks", reason="the benchmarks are not in an installed package")

from benchmarks import fractions, record_tests
from benchmarks.judge import Rows
from benchmarks.studies.environment import ROOT, described
from benchmarks.studies.fractions import products
from benchmarks.studies.numerics import cases, distance


def row(case: str, part: str, milliseconds: float, fraction: float, **more: Any) -> dict[str, Any]:
    found = {"part": part, "milliseconds": milliseconds, "fraction": fraction, **more}
    return {"study": "fractions", "case": case, **found}


ROWS = [
    row("gpt2-124m up", "products", 1, 0.5, preset="gpt2-124m", amount=1e9),
    row("gpt2-124m down", "products", 3, 0.9, preset="gpt2-124m", amount=1e9),
    row("gpt2-124m AdamW", "optimizer", 3, 0.4),
    row("norm", "element-wise", 1, 0.8),
    row("copy", "copy", 1, 0.95),
]


def test_fractions_are_weighed_by_time_and_the_optimizer_alone_says_nothing_of_the_memory() -> None:
    # (0.5 x 1 + 0.9 x 3) / 4; (0.4 x 3 + 0.8 x 1) / 4; a copy is no part.
    assert fractions.measured(Rows(ROWS)) == {fractions.PRODUCTS: 0.8, fractions.MEMORY: 0.5}
    assert fractions.measured(Rows(ROWS[:3])) == {fractions.PRODUCTS: 0.8}


def test_a_fit_finds_the_constants_that_rows_were_made_with() -> None:
    presets = ("gpt2-124m", "llama-1b", "llama-3b", "llama-8b")
    shapes = [
        row(
            f"{name} {matrix}",
            "products",
            1,
            0.0,
            preset=name,
            amount=6.0 * 4096 * inputs * outputs,
        )
        for name in presets
        for matrix, inputs, outputs in products(fractions.preset(name)[0])
    ]
    heads = [row(f"{name} attention", "attention", 1, 0.0, preset=name) for name in presets]
    for one in shapes:
        intensity = fractions.product_terms(one)[1]
        one["fraction"] = 1 / (1 / 0.9 + intensity / 1.25)
    for one in heads:
        network, sequence, _ = fractions.preset(one["preset"])
        one["fraction"] = 1 / (1.5 + 60 / network.head_dim + 1e5 / network.head_dim / sequence)
    found = fractions.measured(Rows([*shapes, *heads]))
    assert [found[name] for name in fractions.PRODUCT_FIT] == [0.9, 1.25]
    assert [found[name] for name in fractions.ATTENTION_FIT] == [1.5, 60, 1e5]


def test_the_faster_kernel_of_a_preset_counts() -> None:
    rows = [row("a", "attention", 4, 0.3, preset="p"), row("b", "attention", 2, 0.6, preset="p")]
    assert fractions.fastest(rows) == rows[1:]


def test_every_constant_stands_once_where_it_is_replaced() -> None:
    for constant, place in fractions.PLACES.items():
        text = (ROOT / place).read_text(encoding="utf-8")
        assert f"\n{constant} = 0.123\n" in fractions.replaced(text, constant, 0.123)


def test_a_test_that_has_passed_is_left_out_and_one_that_failed_since_is_not(
    tmp_path: Path,
) -> None:
    file = tmp_path / "rows.jsonl"
    assert record_tests.passed(file) == set()
    now = described()["commit"]
    outcomes = [
        *(("a", "failed", now), ("a", "passed", now), ("b", "passed", now), ("b", "failed", now)),
        *(("c", "passed", now), ("d", "passed", "other code")),
    ]
    rows = [
        {"study": "tests", "case": case, "outcome": outcome, "versions": {"commit": commit}}
        for case, outcome, commit in outcomes
    ]
    file.write_text("".join(json.dumps(r) + "\n" for r in [*rows, ROWS[0]]) + '{"study": "tes')
    assert record_tests.passed(file) == {"a", "c"}


def test_what_a_numerical_case_is_compared_with_is_a_case() -> None:
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names)
    assert {case.like for case in cases()} <= {"", *names}


def test_the_distance_of_two_curves() -> None:
    other = [2.0] * 40
    found = distance([2.0, 2.2, *[2.0] * 18, 2.5, *[2.0] * 19], other)
    assert found == pytest.approx({"largest": 0.25, "first_20": 0.1, "last_20": 0.0125})
