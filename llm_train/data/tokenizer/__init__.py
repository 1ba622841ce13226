"""Ways to get a tokenizer. Whatever the way, it is kept as one ``tokenizer.json``."""

from llm_train.data.tokenizer.characters import Characters
from llm_train.data.tokenizer.loading import load_tokenizer
from llm_train.data.tokenizer.tokenizer_file import TokenizerFile
from llm_train.data.tokenizer.train_bpe import TrainBPE
from llm_train.discovery import load

__all__ = ["Characters", "TokenizerFile", "TrainBPE", "load_tokenizer"]

load(__name__)
