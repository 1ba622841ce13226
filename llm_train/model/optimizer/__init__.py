"""Optimizers: named parameters in, one torch optimizer out. Short names for YAML below."""

from llm_train.discovery import load
from llm_train.model.optimizer.adamw import AdamW
from llm_train.model.optimizer.base import Optimizer
from llm_train.model.optimizer.groups import decay_groups
from llm_train.model.optimizer.low_bit import LowBitAdamW
from llm_train.model.optimizer.muon_adamw import MuonAdamW
from llm_train.model.optimizer.torch_optimizer import TorchOptimizer

__all__ = ["AdamW", "LowBitAdamW", "MuonAdamW", "Optimizer", "TorchOptimizer", "decay_groups"]

load(__name__)
