"""Durations, and the arithmetic of the global batch."""

from __future__ import annotations

import math

import pytest

from llm_train.derived import Derived
from llm_train.errors import ConfigError
from llm_train.units import Batch, Duration, Scaling


@pytest.mark.parametrize(
    ("text", "count", "unit"),
    [
        ("2000 steps", 2000, "steps"),
        ("1 step", 1, "steps"),
        ("1.5B tokens", 1_500_000_000, "tokens"),
        ("10e9 tokens", 10_000_000_000, "tokens"),
        ("2k steps", 2000, "steps"),
        ("1_000 tokens", 1000, "tokens"),
        ("3T tokens", 3 * 10**12, "tokens"),
        ("8.3M tokens", 8_300_000, "tokens"),  # 8.3 * 10**6 is not whole in binary
        ("0.27T tokens", 270_000_000_000, "tokens"),
    ],
)
def test_durations_read_and_write(text: str, count: int, unit: str) -> None:
    duration = Duration.parse(text)
    assert (duration.count, duration.unit) == (count, unit)
    assert Duration.parse(str(duration)) == duration


@pytest.mark.parametrize(
    "text", ["2000", "steps", "-1 steps", "2000 epochs", "", "1..5 steps", "1e-3 steps"]
)
def test_what_is_no_duration_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a duration; write a count and its unit"):
        Duration.parse(text)


def test_fractions_of_a_step_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'2.5 steps' is not a whole number of steps"):
        Duration.parse("2.5 steps")


def test_tokens_round_up_to_steps() -> None:
    assert Duration(1000, "tokens").steps(tokens_per_step=300) == 4
    assert Duration(7, "steps").steps(tokens_per_step=300) == 7


def test_batch_that_does_not_divide_names_the_nearest() -> None:
    batch = Batch(tokens=500_000, sequence=2048, per_device=4)
    with pytest.raises(ConfigError) as caught:
        batch.accumulation(8)
    assert str(caught.value) == (
        "batch.tokens=500000 is not a multiple of 8 ranks x 4 samples x 2048 positions = 65536; "
        "nearest: 458752 or 524288"
    )
    assert Batch(tokens=458_752, sequence=2048, per_device=4).accumulation(8) == 7
    with pytest.raises(ConfigError, match=r"nearest: 64$"):
        Batch(tokens=10, sequence=8, per_device=4).accumulation(2)
    with pytest.raises(ConfigError, match=r"nearest: 2048, or batch.per_device=2$"):
        Batch(tokens=1024, sequence=128, per_device=4).accumulation(4)
    assert Batch(tokens=1024, sequence=128, per_device=2).accumulation(4) == 1


@pytest.mark.parametrize(
    ("rule", "reference", "factor"),
    [("none", 0, 1.0), ("linear", 1000, 4.0), ("sqrt", 1000, 2.0), ("linear", 16_000, 0.25)],
)
def test_scaling_rules(rule: str, reference: int, factor: float) -> None:
    scaling = Scaling(rule=rule, reference_tokens=reference)  # type: ignore[arg-type]
    assert math.isclose(scaling.factor(4000), factor)


def test_scaling_without_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match="reference_tokens=5 has no effect with rule=none"):
        Scaling(reference_tokens=5)
    with pytest.raises(ConfigError, match=r"rule=sqrt needs batch\.scaling\.reference_tokens"):
        Scaling(rule="sqrt")


def test_the_global_batch_does_not_depend_on_ranks() -> None:
    batch = Batch(
        tokens=4096, sequence=64, per_device=4, scaling=Scaling(rule="sqrt", reference_tokens=1024)
    )
    runs = [
        Derived.of(
            seed=1,
            batch=batch,
            budget=Duration(10_000, "tokens"),
            validate_every=Duration(0, "steps"),
            log_every=1,
            ranks=ranks,
        )
        for ranks in (1, 2, 4, 8, 16)
    ]
    assert {
        (r.tokens_per_step, r.samples_per_step, r.total_steps, r.learning_rate_factor) for r in runs
    } == {(4096, 64, 3, 2.0)}
    assert [r.accumulation * r.ranks for r in runs] == [16] * 5
