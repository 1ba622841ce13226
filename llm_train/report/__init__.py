"""What a run did, as one picture and one page that opens anywhere, without a network."""

from __future__ import annotations

from pathlib import Path

from llm_train.report.page import page
from llm_train.report.picture import draw
from llm_train.report.run import Run

__all__ = ["Run", "write_report"]


def write_report(run_dir: Path) -> tuple[Path, Path]:
    """Writes ``report.html`` and ``report.png`` into the run directory.

    Args:
        run_dir: holds ``metrics.jsonl``; ``derived.json`` and ``config.yaml`` may be missing.

    Returns:
        The paths of the page and of the picture.

    Raises:
        LLMTrainError: there are no metrics to report, or a file cannot be read.
    """
    run = Run.read(run_dir)
    html, png = run_dir / "report.html", run_dir / "report.png"
    picture = draw(run)
    png.write_bytes(picture)
    html.write_text(page(run, picture), encoding="utf-8")
    return html, png
