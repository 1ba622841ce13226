"""What runs did, as one picture and one page that opens anywhere, without a network."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from llm_train.errors import ConfigError, LLMTrainError
from llm_train.report.difference import names
from llm_train.report.run import RecordedRun

__all__ = ["RecordedRun", "read_runs", "require_drawing", "write_report"]


def read_runs(folders: Sequence[Path]) -> dict[str, RecordedRun]:
    """Runs by their names; one that is given twice is read once.

    Raises:
        LLMTrainError: a folder has no metrics to report, or a file cannot be read.
    """
    runs = [RecordedRun.read(folder) for folder in dict.fromkeys(folders)]
    return dict(zip(names(runs), runs, strict=True))


def require_drawing() -> None:
    """Raises unless what draws is installed."""
    if find_spec("altair") is None or find_spec("vl_convert") is None:
        raise ConfigError(
            "a report needs altair and vl-convert-python, which are not installed: "
            "pip install llm-train[report]"
        )


def write_report(runs: dict[str, RecordedRun], out: Path) -> tuple[Path, Path]:
    """Writes ``report.html`` and ``report.png`` into a folder.

    Args:
        runs: by their names.
        out: the run's directory, or any other.

    Returns:
        The paths of the page and of the picture.

    Raises:
        ConfigError: a package that draws is not installed.
        LLMTrainError: the folder cannot be written to.
    """
    require_drawing()
    from llm_train.report.chart import png
    from llm_train.report.page import page

    html, picture = out / "report.html", out / "report.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(png(runs))
        html.write_text(page(runs), encoding="utf-8")
    except OSError as error:
        raise LLMTrainError(
            f"{out} cannot hold a report: {error.strerror}; name another folder with --out"
        ) from None
    return html, picture
