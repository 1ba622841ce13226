"""Every strategy runs its whole life on one device; ``make rehearse`` runs more."""

from __future__ import annotations

import importlib
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "rehearse.py"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_strategy_runs_and_waits_at_log_points_only(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--named", "--jobs", "4", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_pairs_meet_in_a_cell_or_must_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    grid = importlib.import_module("rehearsal.cells")
    cells = grid.cells()
    assert len({cell.name for cell in cells}) == len(cells)
    met = {pair for cell in cells for pair in itertools.combinations(cell.choice.items(), 2)}
    alone = ("hybrid", "tensor", "local-sgd")  # these need more ranks than one
    for one, other in itertools.combinations(grid.FACTORS, 2):
        for values in itertools.product(grid.FACTORS[one], grid.FACTORS[other]):
            assert values[0] in alone or tuple(zip((one, other), values, strict=True)) in met
