"""Every schedule has the closed-form corners; doctests hold the tables of values."""

import math

import pytest
import torch

from llm_train.errors import ConfigError
from llm_train.model.schedule import (
    Constant,
    CosineRestarts,
    InversePower,
    Linear,
    WarmupCosine,
    WarmupStableDecay,
)
from llm_train.units import Duration

N = 100


def steps(count):
    return Duration(count, "steps")


def values(schedule, total_steps=N, tokens_per_step=1000):
    at = schedule.build(total_steps=total_steps, tokens_per_step=tokens_per_step)
    return [at(step) for step in range(total_steps)]


def make(warmup, floor=0.1, unit=1, kind="steps"):
    """Returns one of each decaying schedule."""
    duration, decay = Duration(warmup * unit, kind), Duration(20 * unit, kind)
    stable = [
        WarmupStableDecay(warmup=duration, decay=decay, shape=shape, floor=floor)
        for shape in ("linear", "sqrt", "cosine")
    ]
    return [
        Linear(warmup=duration, floor=floor),
        WarmupCosine(warmup=duration, floor=floor),
        *stable,
    ]


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize("warmup", [0, 1, 10, 80])
def test_warmup_peak_floor_and_monotonicity(index, warmup, floor):
    at = values(make(warmup, floor)[index])
    for step in range(warmup):
        assert at[step] == (step + 1) / warmup
    peak = max(warmup, 1) - 1
    assert at[peak] == 1.0
    assert at[-1] == pytest.approx(floor, abs=1e-15)
    assert all(a >= b for a, b in zip(at[peak:], at[peak + 1 :], strict=False))
    assert all(floor - 1e-15 <= value <= 1.0 for value in at[peak:])
    assert all(value > 0.0 for value in at[:-1])


def test_constant_stays_at_the_peak():
    assert values(Constant()) == [1.0] * N
    at = values(Constant(warmup=steps(N)))
    assert at == [(step + 1) / N for step in range(N)]


@pytest.mark.parametrize("index", range(5))
def test_durations_in_tokens_are_the_same_as_in_steps(index):
    assert values(make(10)[index]) == values(make(10, unit=1000, kind="tokens")[index])
    # A duration of tokens that is not a whole number of steps is rounded up.
    rounded = Constant(warmup=Duration(9_001, "tokens"))
    assert values(rounded) == values(Constant(warmup=steps(10)))


def test_the_closed_forms_in_the_middle():
    assert values(Linear(warmup=steps(0), floor=0.2), 101)[50] == pytest.approx(0.6)
    assert values(WarmupCosine(warmup=steps(0), floor=0.2), 101)[50] == pytest.approx(0.6)
    expected = {"linear": 0.5, "sqrt": 1 - math.sqrt(0.5), "cosine": 0.5}
    for shape, value in expected.items():
        schedule = WarmupStableDecay(warmup=steps(5), decay=steps(20), shape=shape)
        at = values(schedule)
        assert at[5:80] == [1.0] * 75
        assert at[80] < 1.0
        assert at[89] == pytest.approx(value)


def test_the_plateau_does_not_depend_on_the_length_of_the_run():
    schedule = WarmupStableDecay(warmup=steps(5), decay=steps(20))
    assert values(schedule, 60)[:40] == values(schedule, 200)[:40]


def test_cosine_equals_torch():
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=N - 1, eta_min=0.1)
    for value in values(WarmupCosine(warmup=steps(0))):
        assert value == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        reference.step()


def test_restarts_are_cosines_one_after_another():
    cosine = values(WarmupCosine(warmup=steps(5), floor=0.2))
    restarts = CosineRestarts(warmup=steps(5), period=steps(N - 4), floor=0.2)
    at = values(restarts, 3 * N)
    # A finished run is continued: nothing before its end changes, and after it the peak is back.
    assert at[:N] == cosine
    assert at[N] == 1.0
    assert at[N : 2 * N - 4] == cosine[4:]
    tokens = CosineRestarts(warmup=Duration(4500, "tokens"), period=Duration(96_000, "tokens"))
    assert values(tokens, 150)[100] == 1.0
    growing = CosineRestarts(warmup=steps(0), period=steps(10), growth=2.0, floor=0.0)
    found = [step for step, value in enumerate(values(growing, 150)) if value == 1.0]
    assert found == [0, 10, 30, 70]


def test_inverse_powers_and_robbins_and_monros_two_sums():
    half, one = InversePower(warmup=steps(10)), InversePower(warmup=steps(10), power=1.0)
    n = 1 << 17
    for schedule, power in ((half, 0.5), (one, 1.0)):
        at = values(schedule, n)
        assert at[:10] == [(step + 1) / 10 for step in range(10)]
        assert at[999] == pytest.approx(0.01**power)
    rates, roots = values(one, n), values(half, n)
    # The sum of 1/t grows by W ln 2 with each doubling, without end; that of its squares is below
    # its limit, W + W^2 pi^2 / 6, and has almost reached it. Those of 1/sqrt(t) have no limit.
    assert sum(rates[n // 2 :]) == pytest.approx(10 * math.log(2), rel=1e-4)
    assert sum(rates[n // 4 : n // 2]) == pytest.approx(10 * math.log(2), rel=1e-4)
    squares = sum(rate**2 for rate in rates)
    limit = sum((k / 10) ** 2 for k in range(1, 11))
    limit += 100 * (math.pi**2 / 6 - sum(1 / k**2 for k in range(1, 11)))
    assert squares == pytest.approx(limit - 100 / n, rel=1e-6)
    assert sum(root**2 for root in roots[n // 2 :]) == pytest.approx(10 * math.log(2), rel=1e-4)


@pytest.mark.parametrize("warmup", [0, 1])
@pytest.mark.parametrize("schedule", [Constant, Linear, WarmupCosine])
def test_a_run_of_one_step_is_at_the_peak(schedule, warmup):
    assert values(schedule(warmup=steps(warmup)), total_steps=1) == [1.0]


@pytest.mark.parametrize(
    ("schedule", "total_steps", "message"),
    [
        (Constant(warmup=steps(11)), 10, "schedule.warmup=11 steps is 11 steps, longer than the"),
        (Linear(warmup=steps(10)), 10, "leaves none of the run's 10 for the decay; warm up for at"),
        (
            WarmupCosine(warmup=Duration(9500, "tokens")),
            10,
            "schedule.warmup=9500 tokens is 10 steps and leaves none of the run's 10 for the "
            "decay; warm up for at most 9 steps or train longer",
        ),
        (WarmupCosine(warmup=steps(2)), 1, "is 2 steps and leaves none of the run's 1"),
        (
            WarmupStableDecay(warmup=steps(4), decay=steps(7)),
            10,
            "schedule.decay=7 steps need 4 + 7 steps and the run has 10; shorten one of them",
        ),
        (WarmupStableDecay(warmup=steps(0), decay=steps(1)), 1, "need 1 + 1 steps"),
        (InversePower(warmup=steps(11)), 10, "schedule.warmup=11 steps is 11 steps, longer than"),
        (
            CosineRestarts(warmup=steps(3), period=steps(8)),
            10,
            "schedule.period=8 steps is 8 steps and leaves no restart in the run's 10; write 2 to "
            "7 steps, train longer, or use WarmupCosine",
        ),
        (
            CosineRestarts(warmup=steps(5), period=steps(3)),
            6,
            "schedule.warmup=5 steps is 5 steps and leaves none of the run's 6 for a restart; warm "
            "up for at most 3 steps, train longer",
        ),
        (
            CosineRestarts(warmup=steps(100), period=steps(9)),
            6,
            "warm up for at most 4 steps, train longer",
        ),
        (CosineRestarts(warmup=steps(0), period=steps(3)), 2, "for a restart; train longer, or"),
    ],
)
def test_phases_that_do_not_fit_are_refused(schedule, total_steps, message):
    with pytest.raises(ConfigError) as caught:
        schedule.build(total_steps=total_steps, tokens_per_step=1000)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_phases_that_just_fit_are_not():
    values(Linear(warmup=steps(9)), 10)
    values(CosineRestarts(warmup=steps(3), period=steps(3)), 6)
    values(CosineRestarts(warmup=steps(4), period=steps(2)), 6)
    assert values(WarmupStableDecay(warmup=steps(3), decay=steps(7)), 10)[2:4] == [
        1.0,
        pytest.approx(1 - math.sqrt(1 / 7)),
    ]


def test_faulty_settings_are_refused():
    for schedule in (Linear, WarmupCosine):
        with pytest.raises(
            ConfigError, match=r"schedule\.floor=1\.0 must be at least 0 and below 1; write 0.1"
        ):
            schedule(warmup=steps(1), floor=1.0)
    with pytest.raises(ConfigError, match=r"schedule\.floor=-0\.1"):
        WarmupStableDecay(warmup=steps(1), decay=steps(1), floor=-0.1)
    with pytest.raises(ConfigError, match=r"schedule\.decay=0 steps gives shape and floor no"):
        WarmupStableDecay(warmup=steps(1), decay=steps(0))
    with pytest.raises(ConfigError, match=r"schedule\.warmup=0 steps is the unit of time"):
        InversePower(warmup=steps(0))
    with pytest.raises(ConfigError, match=r"schedule\.power=1\.5 is not in \(0, 1\]; write 0\.5"):
        InversePower(warmup=steps(1), power=1.5)
    with pytest.raises(ConfigError, match=r"schedule\.growth=0\.5 must be at least 1 and below"):
        CosineRestarts(warmup=steps(1), period=steps(9), growth=0.5)
    with pytest.raises(ConfigError, match=r"schedule\.shape='square' is not one of linear, sqrt"):
        WarmupStableDecay(warmup=steps(1), decay=steps(1), shape="square")
