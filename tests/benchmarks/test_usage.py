"""Whoever asks a program of this repository for help gets help, and nothing else happens."""

from __future__ import annotations

import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = [
    path
    for folder in ("benchmarks", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if '__name__ == "__main__"' in path.read_text("utf-8")
]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_program_says_how_it_is_used(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    inner = path.relative_to(ROOT).with_suffix("").parts
    module = partial(runpy.run_module, ".".join(inner), alter_sys=True)
    start = module if inner[0] == "benchmarks" else partial(runpy.run_path, str(path))
    with pytest.raises(SystemExit) as end:
        start(run_name="__main__")
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "usage: " in said
    assert inner[-1] in said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda p: p.name)
def test_a_shell_script_says_how_it_is_used(path: Path, tmp_path: Path) -> None:
    command = [str(path), "--help"]
    done = subprocess.run(
        command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, done.stderr
    assert f"scripts/{path.name}" in done.stdout
    assert "#" not in done.stdout
    assert not any(tmp_path.iterdir())
