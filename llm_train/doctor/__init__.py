"""Looks before a run at what would end it later: the machine, the folder, the data, one real step.

A probe is one function from settings to findings, in the list below; a part brings its own
(``Part.examine``). No probe writes anything that outlives it.
"""

from collections.abc import Callable, Iterator

from llm_train import check
from llm_train.context import Finding
from llm_train.doctor import folder, machine, step
from llm_train.settings import Settings

__all__ = ["PROBES", "examine"]


def configuration(settings: Settings) -> Iterator[Finding]:
    """What ``fit`` would refuse."""
    found = check.problems(settings)
    for problem in found:
        yield Finding("configuration", problem, "failed")
    if not found:
        yield Finding("configuration", "no problems found")


def parts(settings: Settings) -> Iterator[Finding]:
    """What parts say of the world around them."""
    for part in settings.parts():
        yield from part.examine()


PROBES: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    configuration,
    machine.versions,
    machine.devices,
    folder.disk_space,
    folder.write_speed,
    folder.file_system,
    folder.remote,
    machine.data,
    parts,
)


def examine(settings: Settings, *, local: bool) -> Iterator[Finding]:
    """All findings, as they are made.

    Args:
        settings: what was configured.
        local: whether to ask what one rank can answer for all; all ranks take the step.
    """
    for probe in PROBES if local else ():
        try:
            yield from probe(settings)
        except Exception as error:  # the next probe may still have something to say
            about = probe.__name__.replace("_", " ")
            remedy = "look at the path or URL, and who may write there"
            yield Finding(about, f"{type(error).__name__}: {error}", "failed", remedy)
    if not check.problems(settings):
        yield from step.one_step(settings)
