"""Bodies of text that ``prepare`` can read."""

from llm_train.data.corpus.hugging_face import HuggingFace
from llm_train.data.corpus.json_lines import JSONLines
from llm_train.data.corpus.standard_library import StandardLibrary
from llm_train.data.corpus.text_files import TextFiles
from llm_train.discovery import load

__all__ = ["HuggingFace", "JSONLines", "StandardLibrary", "TextFiles"]

load(__name__)
