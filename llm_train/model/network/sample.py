"""Text from a network, one token at a time, or of several texts in one forward.

Random numbers come from a CPU generator of the call's own: the same seed gives the same choices on
every device, and sampling in the middle of training does not disturb the run.

When the context is full the oldest half is forgotten: the last ``max_positions // 2`` tokens are
read again from position 0 and the cache fills up anew. Dropping one token at a time would have to
read the whole window again for each token, because every cached key carries its position.

Texts of different lengths (``RaggedBatch``) are aligned at the last token, so that the next one has
one place in the cache for all of them. What pads the shorter ones is masked, and each text counts
its own positions. Texts of one length have no mask, and a text alone is computed exactly as in
``generate``; a mask changes the order of sums, and logits by rounding. When the texts change, all
are read again: reading is parallel, where continuing is not.

Shapes: B texts, T positions to read, S positions with those in the cache.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, takewhile

import torch
from torch import Tensor

from llm_train.errors import ConfigError
from llm_train.model.network.base import Cache, CachedLanguageModel, LanguageModel
from llm_train.model.network.confined import Confinement


def restrict(logits: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Probabilities (V,) after temperature, then top-k, then top-p.

    Top-p keeps the most probable tokens up to and including the one that brings their sum to
    ``top_p`` (arXiv:1904.09751); at least one token is kept.

    >>> restrict(torch.tensor([1.0, 2.0, 3.0]).log(), temperature=1.0, top_k=2, top_p=1.0)
    tensor([0.0000, 0.4000, 0.6000])
    """
    logits = logits.float() / temperature
    if 0 < top_k < logits.numel():
        kept = torch.topk(logits, top_k).indices
        logits = torch.full_like(logits, float("-inf")).index_copy(0, kept, logits[kept])
    probabilities = torch.softmax(logits, dim=-1)
    if top_p < 1.0:
        # Stable, so that of equally probable tokens the same ones are kept everywhere.
        ordered, order = torch.sort(probabilities, descending=True, stable=True)
        before = ordered.cumsum(0) - ordered
        dropped = order[(before >= top_p) & (torch.arange(len(order)) > 0)]
        probabilities = probabilities.index_fill(0, dropped, 0.0)
        probabilities = probabilities / probabilities.sum()
    return probabilities


def read(
    network: CachedLanguageModel, tokens: list[list[int]], cache: Cache, **given: object
) -> Tensor:
    """Logits (B, V) on the CPU after ``tokens``; the network's mode is as before afterwards.

    Compiled blocks run eagerly: a growing cache is a new shape, and a new compilation, each token.
    """
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            out: Tensor = network(
                torch.tensor(tokens, device=device),
                lambda hidden, projection: projection.logits(hidden[:, -1]),
                cache,
                **given,
            )
        return out.cpu()
    finally:
        network.train(training)


Choose = Callable[[Tensor], int]
"""Takes a token from logits (V,)."""


def chooser(*, temperature: float, top_k: int, top_p: float, seed: int) -> Choose:
    """Chooses tokens, each with the next random number of the seed; see ``generate``.

    Raises:
        ConfigError: a value out of range.
    """
    if not 0.0 <= temperature < float("inf"):
        raise ConfigError(f"temperature={temperature:g} must be at least 0 (0 takes the likeliest)")
    if top_k < 0:
        raise ConfigError(f"top_k={top_k} must be at least 0 (0 keeps all tokens)")
    if not 0.0 < top_p <= 1.0:
        raise ConfigError(f"top_p={top_p:g} must be above 0 and at most 1 (1 keeps all tokens)")
    if temperature == 0.0 and (top_k > 0 or top_p < 1.0):
        raise ConfigError(
            f"top_k={top_k} and top_p={top_p:g} have no effect with temperature=0; "
            "remove them or raise the temperature"
        )
    if not -(2**63) <= seed < 2**63:
        raise ConfigError(f"seed={seed} does not fit into 64 bits; take a smaller one")
    generator = torch.Generator(device="cpu").manual_seed(seed)

    def choose(logits: Tensor) -> int:
        if temperature == 0.0:
            return int(logits.argmax())
        kept = restrict(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        return int(torch.multinomial(kept, 1, generator=generator))

    return choose


def cached(network: LanguageModel) -> CachedLanguageModel:
    """The network, which must be able to continue from a cache."""
    if not isinstance(network, CachedLanguageModel):
        raise ConfigError(
            f"{type(network).__name__} cannot generate; derive it from CachedLanguageModel"
        )
    return network


def window(network: CachedLanguageModel, context: list[int]) -> list[int]:
    """What is read of a text: all, or, where it is longer than the context, its end."""
    if len(context) <= network.max_positions:
        return context
    return context[-max(1, network.max_positions // 2) :]


def generate(
    network: LanguageModel,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: int | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Continues a prompt.

    Args:
        network: on any device; its train/eval mode is left as it is.
        prompt: (T,) token ids, at least one; if longer than the context only its end is read.
        max_new_tokens: most tokens to produce.
        temperature: divides the logits; 0 takes the likeliest token each time.
        top_k: choose among this many likeliest tokens; 0 means all.
        top_p: choose among the likeliest tokens that together have this probability; 1 means all.
        stop: token that ends the text; it is not part of the result.
        seed: of the choices.

    Returns:
        The new token ids, each as soon as it is known.

    Raises:
        ConfigError: a value out of range, or a network that cannot continue from a cache.
    """
    if prompt.dim() != 1 or prompt.numel() == 0:
        raise ConfigError(
            f"the prompt has shape {tuple(prompt.shape)}, not (tokens,) with at least one token; "
            "start from an end-of-text token if there is nothing else"
        )
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens={max_new_tokens} must be at least 0")
    choose = chooser(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    tokens = islice(_stream(cached(network), prompt.tolist(), choose), max_new_tokens)
    return takewhile(lambda token: token != stop, tokens)


def _stream(network: CachedLanguageModel, context: list[int], choose: Choose) -> Iterator[int]:
    """Tokens without end, each chosen when it is asked for."""
    cache: Cache | None = None
    unread = context
    while True:
        if len(context) > network.max_positions:
            cache, context = None, window(network, context)
        if cache is None:
            cache, unread = network.new_cache(), context
        token = choose(read(network, [unread], cache)[0])
        yield token
        context, unread = [*context, token], [token]


@dataclass(eq=False)
class RaggedText:
    """A text that is being continued.

    Attributes:
        context: what the next token follows.
        choose: takes that from logits.
    """

    context: list[int]
    choose: Choose


class RaggedBatch:
    """Keeps the keys and values of the texts that it continued last.

    Args:
        network: takes masks (``document_masks`` of its configuration), or gets equal lengths.
    """

    def __init__(self, network: CachedLanguageModel) -> None:
        self._network = network
        self._rows: list[RaggedText] = []
        self._cache: Cache = []

    def step(self, rows: list[RaggedText]) -> list[int]:
        """Adds a token to each of ``rows``, and returns them; other texts are forgotten."""
        seen = [window(self._network, row.context) for row in rows]
        cut = any(len(context) < len(row.context) for context, row in zip(seen, rows, strict=True))
        if cut or self._rows != rows:
            self._rows, self._cache = list(rows), self._network.new_cache()
        for row, context in zip(rows, seen, strict=True):
            row.context = context
        longest, start = max(map(len, seen)), self._cache[0].length
        padded = [[*[0] * (longest - len(context)), *context][start:] for context in seen]
        given = {} if min(map(len, seen)) == longest else {"documents": self._apart(seen, start)}
        logits = read(self._network, padded, self._cache, **given)
        tokens = [row.choose(found) for row, found in zip(rows, logits, strict=True)]
        for row, token in zip(rows, tokens, strict=True):
            row.context.append(token)
        return tokens

    def _apart(self, contexts: list[list[int]], start: int) -> Confinement:
        """Hides what pads texts, from position ``start`` on."""
        longest = max(map(len, contexts))
        device = next(self._network.parameters()).device
        before = torch.tensor([[longest - len(context)] for context in contexts], device=device)
        keys = torch.arange(longest, device=device)  # (S,)
        queries = keys[start:, None]  # (T, 1)
        # Padding sees itself: attention to nothing is not a number.
        mask = (keys <= queries) & ((keys >= before[:, None]) | (keys == queries))  # (B, T, S)
        return Confinement((keys[start:] - before).clamp(min=0), mask[:, None])
