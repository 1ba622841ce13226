"""lm-evaluation-harness on a network of ours as it is, without an export; needs the extra ``eval``.

What is unusual: every rank is given all requests, and the division of labour is made here, batch by
batch. The harness would deal requests out itself, and pads the shares with requests of one kind
only, so that ranks with sharded weights would wait for each other's forwards for ever.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from llm_train.data.corpus.hugging_face import require_hub
from llm_train.data.tokenizer.tokenizer_file import encoded
from llm_train.errors import ConfigError
from llm_train.evaluation.subject import Subject

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
        """What precedes a text without a context."""
        return self.subject.boundary

    def tok_encode(self, string: str, **_: object) -> list[int]:
        """As training saw text."""
        return encoded(self.subject.tokenizer, string)

    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], **_: object
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the greedy one."""
        subject, most = self.subject, self.subject.positions
        texts, asked = list[list[int]](), list[int]()
        for _name, context, answer in requests:
            # The end of another document has told a confined network nothing. Without it, the text
            # is one document from position 0, whose first token training has not scored either.
            before = [] if subject.confined and context == [subject.end_of_text] else context
            texts.append((before + answer)[-most - 1 :])
            asked.append(min(len(answer), len(texts[-1]) - 1))
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        batches = [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
        found = torch.zeros(len(texts), 2, device=subject.device)
        for first in range(0, len(batches), subject.ranks):
            mine = first + subject.rank
            batch = batches[min(mine, len(batches) - 1)]
            scores = self._scores([texts[i] for i in batch], [asked[i] for i in batch])
            if mine < len(batches):
                found[batch] = scores
        return [(nats, bool(greedy)) for nats, greedy in subject.total(found).tolist()]

    def _scores(self, texts: Sequence[list[int]], asked: Sequence[int]) -> Tensor:
        """(B, 2) of texts and how many tokens at their end are asked for."""
        length = max(2, *map(len, texts))
        padded = [text + [0] * (length - len(text)) for text in texts]
        tokens = torch.tensor(padded, device=self.subject.device)
        logits, targets = self.subject.logits(tokens[:, :-1]), tokens[:, 1:]  # (B, T, V), (B, T)
        nats = logits.gather(2, targets[..., None])[..., 0] - logits.logsumexp(2)
        greedy = (logits.argmax(2) == targets).to(nats)
        rows = []
        for row, (text, count) in enumerate(zip(texts, asked, strict=True)):
            span = slice(len(text) - 1 - count, len(text) - 1)
            rows.append(torch.stack([nats[row, span].sum(), greedy[row, span].prod()]))
        return torch.stack(rows)

    def loglikelihood_rolling(self, requests: Iterable[Any], **_: object) -> list[float]:
        """Log-probability of whole texts, in windows of which each token is scored once."""
        found = []
        for request in requests:
            pairs = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.eot_token_id, self.subject.positions, 1
            )
            windows = [(None, *make_disjoint_window(pair)) for pair in pairs]
            found.append(sum(nats for nats, _ in self._loglikelihood_tokens(windows)))
        return found

    def generate_until(self, requests: Iterable[Any], **_: object) -> list[str]:
        """Greedy texts, one by one."""
        said = []
        for context, wanted in (request.args for request in requests):
            new, until = wanted.get("max_gen_toks", _NEW_TOKENS), wanted.get("until") or []
            until = [until] if isinstance(until, str) else until
            said.append(self.subject.continued(context, tokens=int(new), until=until))
        return said


def loaded(tasks: Sequence[str], folder: str = "") -> dict[str, Any]:
    """Tasks with their data, as the harness keeps them.

    Args:
        tasks: names that the harness knows, names in ``folder``, or YAML files.
        folder: of YAML files with tasks; "": none.

    Raises:
        ConfigError: there is no such task, or its data cannot be had.
    """
    if not tasks:
        raise ConfigError(
            "no tasks are named; name YAML files, or names that 'lm-eval ls tasks' lists"
        )
    # Its own 14,000 files take half a minute to read.
    known = TaskManager(include_path=folder or None, include_defaults=False)
    try:
        if any(not name.endswith(".yaml") and name not in known.all_tasks for name in tasks):
            require_hub("tasks of the harness have their data on the Hugging Face Hub")
            known = TaskManager(include_path=folder or None)
        found: dict[str, Any] = known.load(list(tasks))
    except Exception as error:  # of the harness, of datasets, of the network
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"the tasks {', '.join(tasks)} cannot be loaded: {reason}; name YAML files, or names "
            "that 'lm-eval ls tasks' lists"
        ) from error
    for task in found["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1234)  # the harness's own
    return found


def examine(
    subject: Subject, tasks: dict[str, Any], *, batch: int, limit: int, bootstraps: int = 0
) -> dict[str, float]:
    """Metrics by TASK/METRIC, the same on all ranks.

    Args:
        subject: the network.
        tasks: what ``loaded`` found.
        batch: texts of one forward.
        limit: most documents of each task; 0: all.
        bootstraps: of standard errors, which are TASK/METRIC_stderr; 0: none are computed.
    """
    examinee = Examinee(subject, batch)
    options = {"limit": limit or None, "bootstrap_iters": bootstraps, "log_samples": False}
    results = evaluate(examinee, tasks, **options)["results"]
    return {
        f"{task}/{name.removesuffix(',none').replace(',', '/')}": float(value)
        for task, metrics in results.items()
        for name, value in metrics.items()
        if "," in name and isinstance(value, int | float)
    }
