"""The configurations that come with the package: ``-c preset:NAME``, and ``llm-train presets``.

``llm_train/configs`` is a link to ``configs/`` in a checkout, and a copy of it in a wheel.
"""

from pathlib import Path

_FOLDER = Path(__file__).parent / "configs"
_PREFIX = "preset:"


def presets() -> dict[str, Path]:
    """Every file by its name, as in ``quickstart`` or ``sweeps/lion``."""
    files = sorted(_FOLDER.rglob("*.yaml"))
    return {file.relative_to(_FOLDER).with_suffix("").as_posix(): file for file in files}


def resolved(file: str) -> str:
    """The path of a preset, which is missing where there is no such one; any other path as it is.

    >>> resolved("mine.yaml"), Path(resolved("preset:quickstart")).name
    ('mine.yaml', 'quickstart.yaml')
    """
    name = file.removeprefix(_PREFIX)
    return file if name == file else str(_FOLDER / f"{name.removesuffix('.yaml')}.yaml")
