"""What a run did, as one picture and one page that opens anywhere, without a network."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from llm_train.errors import ConfigError
from llm_train.report.run import RecordedRun

__all__ = ["RecordedRun", "write_report"]


def write_report(run_dir: Path) -> tuple[Path, Path]:
    """Writes ``report.html`` and ``report.png`` into the run directory.

    Args:
        run_dir: holds ``metrics.jsonl``; ``derived.json`` and ``config.yaml`` may be missing.

    Returns:
        The paths of the page and of the picture.

    Raises:
        ConfigError: a package that draws is not installed.
        LLMTrainError: there are no metrics to report, or a file cannot be read.
    """
    run = RecordedRun.read(run_dir)
    if find_spec("altair") is None or find_spec("vl_convert") is None:
        raise ConfigError(
            "a report needs altair and vl-convert-python, which are not installed: "
            "pip install llm-train[report]"
        )
    from llm_train.report.chart import png
    from llm_train.report.page import page

    html, picture = run_dir / "report.html", run_dir / "report.png"
    picture.write_bytes(png(run))
    html.write_text(page(run), encoding="utf-8")
    return html, picture
