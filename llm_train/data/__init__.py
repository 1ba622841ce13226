"""Data: text to token shards (``prepare``), and token shards to windows by index.

What Python code may use stands here; ``class_path`` in YAML takes the names of the parts.
"""

from llm_train.data.base import Corpus as Corpus
from llm_train.data.base import Document as Document
from llm_train.data.base import Piece as Piece
from llm_train.data.base import Recipe as Recipe
from llm_train.data.base import Skipped as Skipped
from llm_train.data.base import Split as Split
from llm_train.data.base import Texts as Texts
from llm_train.data.base import Tokenizer as Tokenizer
from llm_train.data.base import Unit as Unit
from llm_train.data.corpus.filtered import Filter as Filter
from llm_train.data.corpus.filtered import Filtered as Filtered
from llm_train.data.corpus.filtered import Length as Length
from llm_train.data.corpus.filtered import Normalize as Normalize
from llm_train.data.corpus.hugging_face import HuggingFace as HuggingFace
from llm_train.data.corpus.named_files import Files as Files
from llm_train.data.corpus.named_files import JSONLines as JSONLines
from llm_train.data.corpus.named_files import TextFiles as TextFiles
from llm_train.data.corpus.standard_library import StandardLibrary as StandardLibrary
from llm_train.data.duplicates import Duplicates as Duplicates
from llm_train.data.duplicates import ExactCopies as ExactCopies
from llm_train.data.duplicates import KeepCopies as KeepCopies
from llm_train.data.duplicates import NearCopies as NearCopies
from llm_train.data.fill_in_the_middle import FillInTheMiddle as FillInTheMiddle
from llm_train.data.foreign.datatrove import DatatroveTokens as DatatroveTokens
from llm_train.data.foreign.litdata import LitDataTokens as LitDataTokens
from llm_train.data.foreign.megatron import MegatronTokens as MegatronTokens
from llm_train.data.foreign.mosaic import MosaicTokens as MosaicTokens
from llm_train.data.foreign.nanogpt import NanoGPTTokens as NanoGPTTokens
from llm_train.data.mixture import Change as Change
from llm_train.data.mixture import Mixture as Mixture
from llm_train.data.preparation import Prepared as Prepared
from llm_train.data.preparation import prepare as prepare
from llm_train.data.random_tokens import RandomTokens as RandomTokens
from llm_train.data.split import HashSplit as HashSplit
from llm_train.data.split import TailSplit as TailSplit
from llm_train.data.token_shards import TokenShards as TokenShards
from llm_train.data.token_source import Documents as Documents
from llm_train.data.token_source import Place as Place
from llm_train.data.token_source import TokenSource as TokenSource
from llm_train.data.token_source import Windows as Windows
from llm_train.data.tokenize_corpus import Tokenize as Tokenize
from llm_train.data.tokenizer.characters import Characters as Characters
from llm_train.data.tokenizer.raw_bytes import Bytes as Bytes
from llm_train.data.tokenizer.sentence_piece import SentencePieceFile as SentencePieceFile
from llm_train.data.tokenizer.tokenizer_file import TokenizerFile as TokenizerFile
from llm_train.data.tokenizer.tokenizer_file import load_tokenizer as load_tokenizer
from llm_train.data.tokenizer.train_bpe import TrainBPE as TrainBPE
from llm_train.data.tokenizer.train_unigram import TrainUnigram as TrainUnigram
from llm_train.discovery import load

load(__name__, skip=("module", "sampler"))  # of torch and Lightning, which preparing does not need
