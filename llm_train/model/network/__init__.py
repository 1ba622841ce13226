"""Networks: a configuration (``Network``) that builds a torch module (``LanguageModel``).

Usable in YAML as ``class_path``: ``Transformer``.
"""

from llm_train.discovery import load
from llm_train.model.network.base import (
    ForwardFlops,
    Initial,
    LanguageModel,
    Network,
    Projection,
    Readout,
)
from llm_train.model.network.cache import Cache, CachedLanguageModel
from llm_train.model.network.flops import Counts
from llm_train.model.network.init import initialise, materialise
from llm_train.model.network.sample import generate
from llm_train.model.network.transformer import Transformer

__all__ = [
    "Cache",
    "CachedLanguageModel",
    "Counts",
    "ForwardFlops",
    "Initial",
    "LanguageModel",
    "Network",
    "Projection",
    "Readout",
    "Transformer",
    "generate",
    "initialise",
    "materialise",
]

load(__name__)
