"""The detector against one that sees the whole curve, on curves shaped as a real run's."""

from __future__ import annotations

import numpy as np

from llm_train.trainer.callbacks.spikes import Curve

WINDOW = 128
SIGMAS = 6.0
# Fitted to 2,000 steps of configs/shakespeare-char-cpu.yaml with log_every_n_steps=1: losses fall
# like START + HEIGHT / (1 + step / 60) ** 0.6, with 4 % of noise whose kurtosis (3.3 to 3.9 from
# step 300 on) is that of Student's t with 10 degrees of freedom.
START, HEIGHT, NOISE, FREEDOM = 1.4, 3.0, 0.04, 10


def curve(steps: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The trend, the standard deviation and the values of a clean run."""
    trend = START + HEIGHT / (1 + np.arange(steps) / 60) ** 0.6
    tails = np.random.default_rng(seed).standard_t(FREEDOM, steps)
    deviation = NOISE * trend
    return trend, deviation, trend + deviation * tails / np.sqrt(FREEDOM / (FREEDOM - 2))


def test_every_spike_of_8_sigma_and_at_most_one_false_in_10_000() -> None:
    trend, deviation, values = curve(10_000 + WINDOW, seed=1)
    watched = Curve(WINDOW)
    false, missed = 0, 0
    for step, value in enumerate(values):
        if step >= WINDOW:
            false += watched.deviations(value) > SIGMAS
            if step % 10 == 0:
                missed += watched.deviations(trend[step] + 8 * deviation[step]) <= SIGMAS
        watched.append(value)
    assert missed == 0
    assert false <= 1


def test_norms_have_heavy_tails() -> None:
    """Kurtosis 14 and skew 2 in a clean run: what is not three times the usual is no spike."""
    random = np.random.default_rng(3)
    norms = 0.5 * np.exp(0.1 * random.standard_t(4, 2000))
    watched = Curve(WINDOW, factor=3.0)
    for step, norm in enumerate(norms):
        assert watched.deviations(norm) <= SIGMAS
        assert step < WINDOW or watched.deviations(4 * 0.5) > SIGMAS
        watched.append(norm)


def test_spikes_do_not_hide_one_another() -> None:
    """Every tenth value is one: what is usual stays what it is without them."""
    trend, deviation, values = curve(600, seed=2)
    spiky = np.where(np.arange(600) % 10 == 9, trend + 20 * deviation, values)
    clean, dirty = Curve(WINDOW, values[400:-1]), Curve(WINDOW, spiky[400:-1])
    spike = trend[-1] + 8 * deviation[-1]
    assert abs(clean.deviations(spike) - dirty.deviations(spike)) < 1
    reference = (spike - trend[-1]) / deviation[-1]
    assert abs(dirty.deviations(spike) - reference) < 1.5


def test_too_few_values_and_values_that_repeat() -> None:
    assert Curve(8, [4.0] * 7).deviations(76.9) == 0
    assert Curve(8, [4.0] * 8).deviations(4.0001) < SIGMAS
    assert Curve(8, [4.0] * 8).deviations(4.1) > 8
