"""Weights & Biases, kept from ever stopping or stalling a run.

Unlike Lightning's own ``WandbLogger``: the run id is ours and lives in the run directory, so that a
resumed run continues the same curve; starting is given a time budget (an unreachable server
otherwise blocks for more than a minute and then raises); and whatever fails leads one rung down a
ladder: online, offline, nothing, with one warning per rung. ``metrics.jsonl`` is complete in any
case.

Lightning's ``finalize`` after training leaves the run open, since a validation may follow; wandb
closes it when the process ends, waiting no longer for uploads than the time budget.

Steps are explicit. Points that a resumed run logs again are already on the server and are not sent
a second time. ``trainer/step`` is the default x-axis; ``progress/tokens`` can be chosen as one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from lightning.pytorch.utilities import rank_zero_only

from llm_train.context import Finding
from llm_train.errors import ConfigError, missing_package
from llm_train.trainer.logger.base import RunLogger
from llm_train.trainer.logger.wandb_files import log_artifact, log_samples, stable_id

if TYPE_CHECKING:
    from wandb import Run

_log = logging.getLogger(__name__)
_LADDER = {"online": "offline", "offline": "disabled"}
_ALERTS = ("spike", "skipped", "rollback")
ID_FILE_NAME = "wandb_id.txt"

Mode = Literal["auto", "online", "offline", "disabled"]


class WandB(RunLogger):
    """Logs to Weights & Biases, on rank 0 only.

    Args:
        project: project the run belongs to.
        name: name shown; "": the name of the run directory.
        group: runs with the same group are shown together; "": none.
        job_type: what the run is within its group; "": none.
        tags: labels to filter by.
        notes: text that is shown with the run.
        entity: team or user that owns the project; "": the account's default.
        mode: ``online``, ``offline`` (files to send later with ``wandb sync``), ``disabled``, or
            ``auto``: what the environment variable WANDB_MODE says, else online when an API key is
            configured (WANDB_API_KEY or netrc), else offline.
        init_timeout_seconds: the longest that starting online may take before the run goes offline,
            and that its end waits for uploads.
        artifacts: whether an artifact of type ``model`` is made at the end: configuration, derived
            numbers and report, and where the newest checkpoint lies, which is not sent.
        directory: where run files are written; "": the run directory.
    """

    def __init__(
        self,
        project: str = "llm-train",
        name: str = "",
        group: str = "",
        job_type: str = "",
        tags: tuple[str, ...] = (),
        notes: str = "",
        entity: str = "",
        mode: Mode = "auto",
        init_timeout_seconds: float = 3.0,
        artifacts: bool = False,
        directory: str = "",
    ) -> None:
        super().__init__(directory)
        if init_timeout_seconds <= 0.0:
            raise ConfigError(
                f"WandB.init_timeout_seconds={init_timeout_seconds} leaves no time to start; "
                "set a positive number of seconds, or mode: offline"
            )
        missing = missing_package("wandb", "wandb", "the logger WandB")
        if missing and mode != "disabled":
            raise ConfigError(f"{missing}, or set mode: disabled")
        self._project, self._run_name, self._group = project, name, group
        self._tags, self._entity = tuple(tags), entity
        self._job_type, self._notes, self._artifacts = job_type, notes, artifacts
        self._timeout_seconds = init_timeout_seconds
        self.mode = _resolved(mode)  # the rung of the ladder that the run stands on now
        self._run: Run | None = None

    @property
    def name(self) -> str:
        """The project, as in Lightning's own logger."""
        return self._project

    @property
    def version(self) -> str:
        """The run id, once the run has started."""
        return "" if self._run is None else str(self._run.id)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs metrics at a step; a step below the last one logged is passed over.

        Args:
            metrics: numbers by name.
            step: optimizer steps done.
        """
        at = step or 0

        def log(run: Run) -> None:
            if at >= run.step:
                run.log({**metrics, "trainer/step": at}, step=at)

        self._safely(log)

    @rank_zero_only
    def log_hyperparams(
        self, params: Mapping[str, object] | Namespace, *args: object, **kwargs: object
    ) -> None:
        """Stores the configuration with the run."""
        self._safely(lambda run: run.config.update(params, allow_val_change=True))  # type: ignore[no-untyped-call]

    @rank_zero_only
    def log_event(self, name: str, step: int, **details: object) -> None:
        """Alerts of what the guard found, and puts samples into a table."""
        if name in _ALERTS:
            text = f"step {step:,}: " + ", ".join(f"{k} {v}" for k, v in details.items())
            self._safely(lambda run: run.alert(f"{self._title}: {name}"[:63], text, level="WARN"))
        elif name == "samples" and isinstance(found := details.get("samples"), list):
            self._briefly(name, lambda run: log_samples(run, step, found))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Makes the artifact, once there is a run."""
        if self._artifacts:
            self._briefly("artifact", lambda run: log_artifact(run, self.directory))

    @property
    def _title(self) -> str:
        return self._run_name or self.directory.absolute().name

    def examine(self) -> Iterator[Finding]:
        """Whether the server answers, where the run would be online."""
        if self.mode != "online":
            yield Finding("W&B", f"{self.mode}; nothing is sent")
            return
        try:
            if not _key_is_configured():
                raise RuntimeError("no API key in WANDB_API_KEY or netrc")
            _probe(self._timeout_seconds)
            yield Finding("W&B", f"{_server()} answers")
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            remedy = "without it the run goes on offline: wandb sync sends its files later"
            yield Finding("W&B", f"{_server()}: {reason}", "warning", remedy)

    def _safely(self, action: Callable[[Run], None]) -> None:
        """Runs ``action`` on the run; a failure leads down the ladder, never out of here."""
        while self.mode != "disabled":
            try:
                if self._run is None:
                    self._run = self._start()
                action(self._run)
                return
            except Exception as error:
                lower = _LADDER[self.mode]
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                _log.warning("W&B %s failed (%s); going on %s", self.mode, reason, lower)
                self._run, self.mode = None, lower
                # wandb's service would hold the run id of the failed start.
                with suppress(Exception):
                    import wandb

                    wandb.teardown(exit_code=1)

    def _briefly(self, what: str, action: Callable[[Run], None]) -> None:
        """Runs what waits for the server, for as long as a start may; a failure costs itself."""
        run = self._run

        def attempt() -> None:
            try:
                if run is not None:
                    action(run)
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                _log.warning("W&B: %s not sent (%s)", what, reason)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(self._timeout_seconds)

    def _start(self) -> Run:
        # Its telemetry would be waited for at the end: 12 s and more where the server is silent.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        directory = self.directory
        directory.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        if self.mode == "online":
            if not _key_is_configured():  # wandb would ask the terminal for one
                raise RuntimeError("no API key in WANDB_API_KEY or netrc")
            _probe(self._timeout_seconds)
        left = max(0.1, self._timeout_seconds - (time.monotonic() - begun))
        swept = bool(os.environ.get("WANDB_SWEEP_ID"))  # its agent has chosen the run's id
        run = wandb.init(
            project=self._project,
            name=(self._run_name or None) if swept else self._title,
            id=os.environ.get("WANDB_RUN_ID") if swept else stable_id(directory / ID_FILE_NAME),
            resume="allow",
            dir=str(directory),
            mode="online" if self.mode == "online" else "offline",
            group=self._group or None,
            job_type=self._job_type or None,
            notes=self._notes or None,
            tags=self._tags or None,
            entity=self._entity or None,
            settings=wandb.Settings(
                init_timeout=left,
                login_timeout=left,
                finish_timeout=self._timeout_seconds,
                console="off",  # standard output stays as it is
                silent=self.mode == "offline",
                quiet=True,  # or it asks who is logged in, for ten seconds more, only to print it
            ),
        )
        run.define_metric("trainer/step")
        run.define_metric("progress/tokens", step_metric="trainer/step")
        run.define_metric("*", step_metric="trainer/step")
        return run


def _resolved(mode: Mode) -> str:
    wanted = os.environ.get("WANDB_MODE", "") if mode == "auto" else mode
    if wanted in ("online", "offline", "disabled"):
        return wanted
    return "online" if _key_is_configured() else "offline"


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def _probe(timeout_seconds: float) -> None:
    """Raises unless the server answers a query in time, be it with a refusal.

    A start that failed leaves wandb's service behind, which may wait for the network when the
    process ends; so it is not started when there is nobody to talk to. Proxies are respected.
    """
    failure: list[Exception] = [TimeoutError(f"no answer within {timeout_seconds:g} s")]

    def ask() -> None:
        try:
            _ask(timeout_seconds)
            failure.clear()
        except Exception as error:
            failure[:] = [error]

    # In a thread: no timeout of a socket bounds the resolver, which takes half a minute where no
    # name server can be reached.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    if failure:
        raise failure[0]


def _ask(timeout_seconds: float) -> None:
    """Sends the smallest query there is."""
    query = Request(f"{_server()}/graphql", b'{"query": "{serverInfo{__typename}}"}')
    query.add_header("Content-Type", "application/json")
    try:
        urlopen(query, timeout=timeout_seconds).close()
    except HTTPError as answer:
        answer.close()
        if answer.code >= 500:  # wandb itself would try again for longer than its time budget
            raise


def _key_is_configured() -> bool:
    """Whether wandb would find a key without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    from requests.utils import get_netrc_auth  # which wandb requires

    return get_netrc_auth(_server()) is not None
