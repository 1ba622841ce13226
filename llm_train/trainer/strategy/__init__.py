"""Strategies: Lightning's own, with our defaults, placement of weights and state.

YAML key: trainer.strategy.
"""

from llm_train.discovery import load
from llm_train.trainer.strategy.base import Strategy, from_word, known_words
from llm_train.trainer.strategy.ddp import DDP
from llm_train.trainer.strategy.fsdp import FSDP
from llm_train.trainer.strategy.local_sgd import LocalSGD
from llm_train.trainer.strategy.mesh import MeshShape, World
from llm_train.trainer.strategy.single import SingleDevice
from llm_train.trainer.strategy.zero import ZeRO

__all__ = [
    "DDP",
    "FSDP",
    "LocalSGD",
    "MeshShape",
    "SingleDevice",
    "Strategy",
    "World",
    "ZeRO",
    "from_word",
    "known_words",
]

load(__name__, skip=("sharding", "tensor_parallel", "zero_layout", "zero_state"))
