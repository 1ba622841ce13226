"""lm-evaluation-harness on a network of ours as it is, without an export; needs the extra ``eval``.

What is unusual: every rank is given all requests, and the division of labour is made here, batch by
batch. The harness would deal requests out itself, and pads the shares with requests of one kind
only, so that ranks with sharded weights would wait for each other's forwards for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from llm_train.data.base import NO_TOKEN
from llm_train.errors import ConfigError
from llm_train.evaluation.subject import Subject, encoded

_NEW_TOKENS = 256  # where a task does not say, as the harness's own models have it

_Request = tuple[object, list[int], list[int]]


class Examinee(TemplateLM):  # type: ignore[misc]  # the library has no types
    """Answers what tasks ask.

    Args:
        subject: the network.
        batch: texts of one forward.
    """

    def __init__(self, subject: Subject, batch: int) -> None:
        super().__init__()
        self.subject = subject
        self.batch = batch

    @property
    def eot_token_id(self) -> int:
        """What precedes a text without a context.

        Raises:
            ConfigError: training had no such token.
        """
        if self.subject.end_of_text == NO_TOKEN:
            raise ConfigError(
                "the task scores whole texts, which begin after an end of text, and this network "
                "was trained without a token for it; prepare with boundary, or take another task"
            )
        return self.subject.end_of_text

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: object
    ) -> list[int]:
        """As training saw text."""
        return encoded(self.subject.tokenizer, string)

    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], **kwargs: object
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the greedy one."""
        subject, most = self.subject, self.subject.positions
        texts = [(context + answer)[-most - 1 :] for _, context, answer in requests]
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        batches = [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
        found = torch.zeros(len(texts), 2, device=subject.device)
        for turn in range(math.ceil(len(batches) / subject.ranks)):
            mine = turn * subject.ranks + subject.rank
            batch = batches[min(mine, len(batches) - 1)]
            scores = self._scores([(texts[i], min(len(requests[i][2]), most)) for i in batch])
            if mine < len(batches):
                found[batch] = scores
        return [(nats, bool(greedy)) for nats, greedy in subject.total(found).tolist()]

    def _scores(self, batch: Sequence[tuple[list[int], int]]) -> Tensor:
        """(B, 2) of texts and how many tokens at their end are asked for."""
        length = max(len(text) for text, _ in batch)
        padded = [text + [0] * (length - len(text)) for text, _ in batch]
        tokens = torch.tensor(padded, device=self.subject.device)
        targets = tokens[:, 1:]
        logits = self.subject.logits(tokens[:, :-1])  # (B, T, V)
        nats = logits.gather(2, targets[..., None])[..., 0] - logits.logsumexp(2)
        greedy = logits.argmax(2) == targets
        spans = [slice(len(text) - 1 - asked, len(text) - 1) for text, asked in batch]
        return torch.stack(
            [
                torch.stack([nats[row, span].sum(), greedy[row, span].all().to(nats)])
                for row, span in enumerate(spans)
            ]
        )

    def loglikelihood_rolling(
        self, requests: Iterable[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of whole texts, in windows of which each token is scored once."""
        windows: list[_Request] = []
        counts = []
        for text in (request.args[0] for request in requests):
            pairs = get_rolling_token_windows(
                self.tok_encode(text), self.eot_token_id, self.subject.positions, 1
            )
            own = [(None, *make_disjoint_window(pair)) for pair in pairs]
            windows += own
            counts.append(len(own))
        scores = iter(self._loglikelihood_tokens(windows))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Iterable[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts one by one: the likeliest tokens, or drawn ones where a task wants that."""
        said = []
        for context, wanted in (request.args for request in requests):
            new = int(wanted.get("max_gen_toks", _NEW_TOKENS))
            room = self.subject.positions - new
            if room < 1:
                raise ConfigError(
                    f"the task generates {new} tokens, and this network reads "
                    f"{self.subject.positions} in all; give the task a smaller max_gen_toks"
                )
            until = wanted.get("until") or []
            drawn = wanted.get("temperature", 1.0) if wanted.get("do_sample") else 0.0
            said.append(
                self.subject.continued(
                    self.tok_encode(context)[-room:] or [self.eot_token_id],
                    tokens=new,
                    temperature=float(drawn),
                    until=[until] if isinstance(until, str) else until,
                )
            )
        return said


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Tasks to be put to a network, any number of times.

    Attributes:
        loaded: the tasks, as the harness keeps them.
        limit: most documents of each; 0: all.
    """

    loaded: dict[str, Any]
    limit: int

    @classmethod
    def of(
        cls, tasks: Sequence[str], *, folder: str = "", limit: int = 0, examples: int = -1
    ) -> Examination:
        """Loads tasks and their data.

        Args:
            tasks: names that the harness knows, names in ``folder``, or YAML files.
            folder: of YAML files with tasks; "": none.
            limit: most documents of each; 0: all.
            examples: in each prompt; -1: as the task says.

        Raises:
            ConfigError: there is no such task, or its data cannot be had.
        """
        if folder and not Path(folder).is_dir():
            raise ConfigError(f"the folder of tasks {folder} does not exist; correct the path")
        known = TaskManager(include_path=folder or None, include_defaults=False)
        if any(name not in known.all_tasks and not Path(name).is_file() for name in tasks):
            known = TaskManager(include_path=folder or None)  # which reads 14,000 files
        try:
            loaded: dict[str, Any] = known.load(list(tasks))
        except Exception as error:  # of the harness, of datasets, of the network
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                f"the tasks {', '.join(tasks)} cannot be loaded: {reason}; 'lm-eval ls tasks' "
                "lists their names"
            ) from error
        for task in loaded["tasks"].values():
            if examples >= 0 or task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=max(0, examples))
            task.set_fewshot_seed(seed=1234)  # the harness's own
        return cls(loaded=loaded, limit=limit)

    def scores(self, subject: Subject, *, batch: int, errors: bool = False) -> dict[str, float]:
        """Metrics by TASK/METRIC, the same on all ranks.

        Args:
            subject: the network.
            batch: texts of one forward.
            errors: also standard errors, as TASK/METRIC_stderr.
        """
        results = evaluate(
            Examinee(subject, batch),
            self.loaded,
            limit=self.limit or None,
            bootstrap_iters=100 if errors else 0,
            log_samples=False,
        )
        found = {}
        for task, metrics in results["results"].items():
            for name, value in metrics.items():
                metric, _, kind = name.partition(",")
                if kind and isinstance(value, int | float) and (errors or "_stderr" not in metric):
                    found[f"{task}/{metric}" + (f"/{kind}" if kind != "none" else "")] = value
        return found
