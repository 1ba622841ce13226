"""A checkpoint continues under any strategy; ``make elastic`` tries all pairs, this tries some."""

from __future__ import annotations

import pytest

from benchmarks.elastic import STRATEGIES, TOLERANCE, Matrix, markdown
from llm_train.testing.fork_server import ForkServer

pytestmark = pytest.mark.distributed
NAMES = list(STRATEGIES)


@pytest.fixture(scope="module")
def matrix(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(fork_server, tmp_path_factory.mktemp("elastic"))


@pytest.mark.parametrize(
    ("start", "to"), [("tp-2", "zero3-1"), ("zero3-1", "fsdp-tp-4"), ("ddp-2", "hsdp-4")]
)
def test_some_pairs(start: str, to: str, matrix: Matrix) -> None:
    cell = matrix.cell(start, to)
    assert "refused" not in cell, cell
    assert cell["difference"] <= TOLERANCE
    assert cell["samples_off"] == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_strategy_is_left_and_entered(matrix: Matrix) -> None:
    """A ring goes through all of them, in steps that change strategy and number of ranks."""
    order = NAMES[::3] + NAMES[1::3] + NAMES[2::3]
    pairs = zip(order, order[1:] + order[:1], strict=True)
    cells = [matrix.cell(start, to) for start, to in pairs]
    wrong = [c for c in cells if c.get("difference", 1.0) > TOLERANCE or c.get("samples_off")]
    assert not wrong


def test_the_table_says_what_a_cell_is() -> None:
    cells = [
        {"from": "a", "to": "a", "difference": 0.0, "samples_off": 0},
        {"from": "a", "to": "b", "difference": 3e-8, "samples_off": 0},
        {"from": "b", "to": "a", "refused": "one line"},
        {"from": "b", "to": "b", "difference": 0.0, "samples_off": 4},
    ]
    assert markdown(cells).splitlines()[2:] == [
        "| a | = | 3e-08 |",
        "| b | refused | 4 samples off |",
    ]
