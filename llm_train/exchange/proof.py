"""Two programs compute the same from the same weights: ours, and ``transformers`` from a folder.

The folder is opened as anybody would, by the Auto classes, and without code from it where none was
asked for. Prompts are
token ids drawn from a fixed seed, so that every vocabulary has them, and they are kept in
``proof.json``. Each is continued greedily by our network; their network reads the whole text at
once, and at every place must prefer the token that ours prefers. That is the same as generating
with both, since as long as they agree both have read the same text.
"""

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn

from llm_train.errors import LLMTrainError
from llm_train.exchange.safetensor_files import Folder, transformers
from llm_train.exchange.tokenizer_files import FILE as TOKENIZER
from llm_train.model.network.base import LanguageModel
from llm_train.model.network.init import materialise
from llm_train.model.network.meta import without_parameters
from llm_train.model.network.sample import generate
from llm_train.model.network.transformer import Transformer
from llm_train.runtime.quiet import quiet

FILE = "proof.json"
_TOLERANCE = 1e-5  # in fp32, of the larger of 1 and the largest logit
_PROMPTS, _LENGTH, _SEED = 2, 16, 20_260
_CONTINUED = 200
# What transformers has no name for in GGUF files of one architecture or another.
_UNREAD = ("vocab_size", "head_dim", "n_positions", "n_inner")
_WHOLE_BYTES = 4e9  # of weights in fp32; of larger networks, one module's are in memory at a time

# transformers before this module took the words of each architecture, not those that a file names.
_GGUF_WORDS = "transformers.integrations.gguf"
_LETTERS = frozenset(ByteLevel.alphabet())  # it drops special tokens that have any other
_AWKWARD = (
    "",
    " ",
    "  a   b ",
    "\n\n a\r\n\tb\n",
    "don't I'LL we've 'S",
    "12345 6.7e-8 1,000",
    "a\u00a0b\u2028c",
    "na\u00efve nai\u0308ve \ufb01",
    "\u4f60\u597d\u3002 \u0633\u0644\u0627\u0645 \u0928\u092e",
    "\U0001f469\u200d\U0001f4bb\ufe0f \U0001d54f",
    "\x00\x7f\ufeff\ufffd",
    "[PAD0] <s> </s>",
    "x" * 500,
    "if (a[i]!=b) {\n    return;\n}",
)

Read = Callable[[str], Tensor]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was compared, and how far it was apart.

    Attributes:
        largest_difference: of two logits.
        largest_logit: of ours, in absolute value.
        kl: mean of the divergence of their next-token distributions from ours, in nats.
        greedy_tokens: places in all texts, prompts included.
        greedy_equal: of them, where both prefer the same token.
        text_equal: whether both tokenizers give the same ids for the texts, and in an export for
            awkward ones, too; None: there is no tokenizer, or transformers cannot read it.
        transformers: its version.
        opened_as: the class that it chose.
        prompts: token ids.
    """

    largest_difference: float
    largest_logit: float
    kl: float
    greedy_tokens: int
    greedy_equal: int
    text_equal: bool | None
    transformers: str
    opened_as: str
    prompts: list[list[int]]

    @property
    def limit(self) -> float:
        """Of the difference: what rounding in another order gives, with room."""
        return _TOLERANCE * max(1.0, self.largest_logit)

    def table(self) -> dict[str, Any]:
        """What is printed."""
        return {
            "largest difference of logits": f"{self.largest_difference:.3g} of {self.limit:.3g}",
            "KL (nats)": self.kl,
            "greedy tokens equal": f"{self.greedy_equal} of {self.greedy_tokens}",
            "opened as": f"{self.opened_as} by transformers {self.transformers}",
        }

    def require(self, folder: Path, file: str = FILE) -> None:
        """Writes the proof, and refuses one that fails.

        Raises:
            LLMTrainError: the networks compute something else.
        """
        body = {"limit": self.limit, **asdict(self)}
        (folder / file).write_text(json.dumps(body, indent=1) + "\n")
        said = {
            f"logits differ by {self.largest_difference:.3g}, more than {self.limit:.3g}": (
                self.largest_difference <= self.limit
            ),
            f"{self.greedy_equal} of {self.greedy_tokens} greedy tokens are equal": (
                self.greedy_equal == self.greedy_tokens
            ),
            "the tokenizers give other ids": self.text_equal is not False,
        }
        if wrong := [text for text, holds in said.items() if not holds]:
            raise LLMTrainError(
                f"the proof fails, so nothing is left: {'; '.join(wrong)}; transformers "
                f"{self.transformers} opened it as {self.opened_as}: try another version of it"
            )


@torch.no_grad()
def prove(
    config: Transformer,
    read: Read,
    folder: Path,
    *,
    bare: bool,
    trust: bool = False,
    gguf: str = "",
) -> Proof:
    """Compares a network with what ``transformers`` makes of a folder; both compute in fp32.

    Args:
        config: of the network.
        read: gives each of its parameters.
        folder: complete.
        bare: its tokenizer must add no token of its own to a text.
        trust: whether code from the folder, which is ours, may be run.
        gguf: file in the folder that holds the weights, all in memory; "" is its safetensors.
    """
    library = transformers()
    vocabulary, positions = config.vocab_size, config.max_sequence
    generator = torch.Generator().manual_seed(_SEED)
    with without_parameters():
        network = config.build()
    whole = bool(gguf) or 4 * sum(p.numel() for p in network.parameters()) <= _WHOLE_BYTES
    # Where each token would read all weights from files, longer prompts take the place of texts.
    length = min(_LENGTH if whole else _CONTINUED, max(1, positions // 4))
    texts = torch.randint(vocabulary, (_PROMPTS, length), generator=generator)
    prompts = texts.tolist()
    if whole:
        materialise(network, "cpu")
        for name, parameter in network.named_parameters():
            given = read(name)
            parameter.zero_()[: given.shape[0]] = given
        new = min(_CONTINUED, positions - length)
        texts = torch.stack([_continued(network.eval(), prompt, new) for prompt in texts])
    else:
        load_when_entered(network.eval(), read)
    ours: Tensor = network(texts, lambda hidden, projection: projection.logits(hidden))
    ours = ours[..., :vocabulary]
    with _quiet():
        model = _opened(folder, whole, trust, gguf)
        theirs: Tensor = model(texts).logits
        text_equal = _same_text(folder, texts, bare, gguf)
    kl = (ours.softmax(-1) * (ours.log_softmax(-1) - theirs.log_softmax(-1))).sum(-1).mean()
    equal = ours.argmax(-1) == theirs.argmax(-1)
    return Proof(
        largest_difference=(ours - theirs).abs().amax().item(),
        largest_logit=ours.abs().amax().item(),
        kl=max(0.0, kl.item()),  # rounding makes it negative where it is nothing
        greedy_tokens=equal.numel(),
        greedy_equal=int(equal.sum()),
        text_equal=text_equal,
        transformers=library.__version__,
        opened_as=type(model).__name__,
        prompts=prompts,
    )


def load_when_entered(network: nn.Module, read: Read) -> None:
    """Gives modules their parameters, in fp32, when they are entered, and takes them away again.

    Args:
        network: built without memory for parameters.
        read: gives one by its name, of which a tied one has the first.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for module in network.modules():
        own = {key: names[id(p)] for key, p in module.named_parameters(recurse=False)}

        def fetch(module: nn.Module, _: object, own: dict[str, str] = own) -> None:
            for key, name in own.items():
                module.register_parameter(key, nn.Parameter(read(name).float(), False))

        def drop(module: nn.Module, _: object, __: object, own: dict[str, str] = own) -> None:
            for key in own:
                module.register_parameter(key, nn.Parameter(torch.empty(0), False))

        if own:
            module.register_forward_pre_hook(fetch)
            module.register_forward_hook(drop)


def _opened(folder: Path, whole: bool, trust: bool, gguf: str) -> Any:
    """Their network, in evaluation mode, of which each tensor must come from the folder."""
    library = transformers()
    kind = library.AutoModelForCausalLM
    where: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust}
    known = config = library.AutoConfig.from_pretrained(folder, **where)
    if not whole:
        with without_parameters():
            model = kind.from_config(config, dtype=torch.float32, trust_remote_code=trust)
        load_when_entered(model, Folder(folder).read)
        return model.eval()
    if gguf:
        where |= {"gguf_file": gguf}
        config = library.AutoConfig.from_pretrained(folder, **where)
        config.update({key: getattr(known, key) for key in _UNREAD if hasattr(known, key)})
    model, loading = kind.from_pretrained(
        folder, config=config, dtype=torch.float32, output_loading_info=True, **where
    )
    if wrong := {key: value for key, value in loading.items() if value}:
        raise LLMTrainError(f"transformers does not open {folder} as it stands: {wrong}")
    return model.eval()


def _continued(network: LanguageModel, prompt: Tensor, new: int) -> Tensor:
    tokens = generate(network, prompt, max_new_tokens=new, temperature=0.0)
    return torch.cat([prompt, torch.tensor(list(tokens), dtype=prompt.dtype)])


def _same_text(folder: Path, texts: Tensor, bare: bool, gguf: str) -> bool | None:
    library = transformers().AutoTokenizer
    if not (folder / TOKENIZER).is_file():
        return None
    ours = Tokenizer.from_file(str(folder / TOKENIZER))
    added = [token.content for token in ours.get_added_tokens_decoder().values()]
    if gguf:
        if not find_spec(_GGUF_WORDS) or not _LETTERS.issuperset("".join(added)):
            return None
        with TemporaryDirectory() as alone:  # with a tokenizer.json next to it, that one is read
            (Path(alone) / gguf).symlink_to((folder / gguf).absolute())
            theirs = library.from_pretrained(alone, gguf_file=gguf, local_files_only=True)
    else:
        theirs = library.from_pretrained(folder, local_files_only=True)
    words = [ours.decode(text.tolist()) for text in texts]
    if bare:
        words += [*_AWKWARD, *(f"a {token} b{token}" for token in added)]
    return all(
        ours.encode(word, add_special_tokens=False).ids
        == theirs(word, add_special_tokens=bare)["input_ids"]
        for word in words
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without its bars and advice; what goes wrong is raised all the same."""
    theirs = transformers().logging
    level = theirs.get_verbosity()
    theirs.set_verbosity(logging.ERROR)
    theirs.disable_progress_bar()
    try:
        # torchao, which it imports where it is installed; the bar of GGUF has no switch.
        with quiet(), redirect_stderr(io.StringIO()):
            yield
    finally:
        theirs.set_verbosity(level)
        theirs.enable_progress_bar()
