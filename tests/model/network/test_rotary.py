"""Rotary positions and norms are each tested alone."""

import pytest
import torch

from llm_train.model.network.norm import LayerNorm, RMSNorm
from llm_train.model.network.positions import Rotary


def exact_table(positions, head_dim, base):
    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    return torch.stack((angle.cos(), angle.sin()))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.bfloat16(),
        lambda r: r.half(),
        lambda r: r.double().float(),
        lambda r: r.to("meta").to_empty(device="cpu"),
        lambda r: r.to(torch.bfloat16).to(torch.float32),
    ],
)
def test_the_table_survives_moves_and_casts(change):
    rotary = change(Rotary(300, 8, base=10_000.0))
    assert rotary.table.dtype == torch.float32
    exact = exact_table(300, 8, 10_000.0)
    assert torch.equal(rotary.table, exact.float())
    # A network in float64 is exact: its table is not the rounded one.
    torch.testing.assert_close(rotary.double().table, exact, rtol=0, atol=1e-13)


def test_scores_depend_on_distance_alone():
    rotary = Rotary(40, 8, base=100.0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0)).unbind()
    scores = [(rotary(q, m + 5) * rotary(k, m)).sum() for m in (0, 7, 30)]
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(3), rtol=1e-5, atol=1e-6)
    assert (rotary(q, 6) * rotary(k, 0)).sum() != scores[0]
    torch.testing.assert_close(rotary(q, 11).norm(), q.norm())
    assert torch.equal(rotary(q, 0), q)


def test_start_continues_the_sequence():
    rotary = Rotary(16, 4, base=100.0)
    x = torch.randn(2, 10, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rotary(x)[:, 6:], rotary(x[:, 6:], start=6))


def test_bfloat16_inputs_are_turned_in_float32():
    rotary = Rotary(2048, 8, base=10_000.0)
    x = torch.randn(1, 2048, 1, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    turned = rotary(x)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotary(x.float()).bfloat16())


@pytest.mark.parametrize("norm", [LayerNorm(512, eps=1e-5, bias=True), RMSNorm(512, eps=1e-5)])
def test_norm_statistics_are_float32(norm):
    x = (100 + torch.randn(4, 512, generator=torch.Generator().manual_seed(0))).bfloat16()
    found = norm.bfloat16()(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, norm.float()(x.float()).bfloat16())
