"""Networks: a configuration (``Network``) that builds a torch module (``LanguageModel``).

Usable in YAML as ``class_path``: ``Transformer``.
"""

from llm_train.network.base import Initial, LanguageModel, Network, Projection, Readout
from llm_train.network.cache import Cache, CachedLanguageModel
from llm_train.network.flops import Counts, count
from llm_train.network.init import initialise, materialise
from llm_train.network.sample import generate
from llm_train.network.transformer import Transformer

__all__ = [
    "Cache",
    "CachedLanguageModel",
    "Counts",
    "Initial",
    "LanguageModel",
    "Network",
    "Projection",
    "Readout",
    "Transformer",
    "count",
    "generate",
    "initialise",
    "materialise",
]
