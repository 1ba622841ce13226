"""Strategies: Lightning's own, with our defaults, placement of weights and state.

YAML key: trainer.strategy.
"""

from llm_train.strategy.base import Placement
from llm_train.strategy.ddp import DDP
from llm_train.strategy.fsdp import FSDP
from llm_train.strategy.local_sgd import LocalSGD
from llm_train.strategy.single import SingleDevice
from llm_train.strategy.zero import ZeRO

__all__ = ["DDP", "FSDP", "LocalSGD", "Placement", "SingleDevice", "ZeRO"]
