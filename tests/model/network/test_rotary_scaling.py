"""Scaled rotary frequencies equal published code and formulas, written out pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llm_train.errors import ConfigError
from llm_train.model.network.positions import Rotary
from llm_train.model.network.rotary_scaling.base import NoScaling
from llm_train.model.network.rotary_scaling.linear_scaling import LinearScaling
from llm_train.model.network.rotary_scaling.llama3 import Llama3
from llm_train.model.network.rotary_scaling.ntk_aware import NTKAware
from llm_train.model.network.rotary_scaling.yarn import YaRN

BASE, D = 500_000.0, 64
PLAIN = [BASE ** (-2 * i / D) for i in range(D // 2)]


def llama3(theta, factor=32.0, low=1.0, high=4.0, length=8192):
    """As Meta's code has it, with wavelengths."""
    wavelength = 2 * math.pi / theta
    if wavelength < length / high:
        return theta
    if wavelength > length / low:
        return theta / factor
    smooth = (length / wavelength - low) / (high - low)
    return (1 - smooth) * theta / factor + smooth * theta


def yarn(i, factor=4.0, length=4096):
    """As its authors' code has it."""

    def pair(turns):
        return D * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(BASE))

    low, high = math.floor(pair(32)), math.ceil(pair(1))
    ramp = min(max((i - low) / (high - low), 0.0), 1.0)
    return PLAIN[i] / factor * ramp + PLAIN[i] * (1 - ramp)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (NoScaling(), PLAIN),
        (LinearScaling(factor=4.0), [theta / 4 for theta in PLAIN]),
        (
            NTKAware(factor=4.0),
            [(BASE * 4 ** (D / (D - 2))) ** (-2 * i / D) for i in range(D // 2)],
        ),
        (Llama3(), [llama3(theta) for theta in PLAIN]),
        (Llama3(factor=8.0), [llama3(theta, factor=8.0) for theta in PLAIN]),
        (YaRN(factor=4.0, original_length=4096), [yarn(i) for i in range(D // 2)]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_frequencies_equal_the_formula(scaling, expected):
    np.testing.assert_allclose(scaling.frequencies(BASE, D), expected, rtol=1e-12)


def test_what_the_ends_do():
    ntk = NTKAware(factor=4.0).frequencies(BASE, D)
    assert ntk[0] == 1.0
    assert ntk[-1] == pytest.approx(PLAIN[-1] / 4)
    for scaling in (Llama3(factor=4.0), YaRN(factor=4.0, original_length=4096)):
        found = scaling.frequencies(BASE, D)
        assert (found[0], found[-1]) == (PLAIN[0], pytest.approx(PLAIN[-1] / 4))


def test_yarn_sharpens_attention():
    scaling = YaRN(factor=4.0, original_length=16)
    table = Rotary(64, D, base=BASE, scaling=scaling).double().table
    lengths = table.square().sum(0).sqrt().numpy()
    np.testing.assert_allclose(lengths, 0.1 * math.log(4.0) + 1.0, rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (LinearScaling, {"factor": 0.5}, r"rotary_scaling\.factor=0\.5 must be"),
        (Llama3, {"low_turns": 4.0}, r"low_turns=4 must be .*; Llama 3\.1 has 1 and 4"),
        (YaRN, {"factor": 2.0, "original_length": 8, "slow_turns": 0.0}, "slow_turns=0 must be"),
    ],
)
def test_faulty_settings_are_refused(kind, arguments, message):
    with pytest.raises(ConfigError, match=message):
        kind(**arguments)
