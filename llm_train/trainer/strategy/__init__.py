"""Strategies: Lightning's own, with our defaults, placement of weights and state.

YAML key: trainer.strategy.
"""

from llm_train.discovery import load
from llm_train.trainer.strategy.base import Strategy as Strategy
from llm_train.trainer.strategy.base import from_word as from_word
from llm_train.trainer.strategy.base import known_words as known_words
from llm_train.trainer.strategy.ddp import DDP as DDP
from llm_train.trainer.strategy.fsdp import FSDP as FSDP
from llm_train.trainer.strategy.local_sgd import LocalSGD as LocalSGD
from llm_train.trainer.strategy.mesh import MeshShape as MeshShape
from llm_train.trainer.strategy.mesh import World as World
from llm_train.trainer.strategy.single import SingleDevice as SingleDevice
from llm_train.trainer.strategy.zero import ZeRO as ZeRO

load(__name__, skip=("sharding", "zero_layout", "zero_state"))
