"""Optimizers: named parameters in, one torch optimizer out. Short names for YAML below."""

from llm_train.optimizer.adamw import AdamW
from llm_train.optimizer.base import Optimizer
from llm_train.optimizer.groups import decay_groups
from llm_train.optimizer.muon_adamw import MuonAdamW
from llm_train.optimizer.stochastic_adamw import StochasticAdamW
from llm_train.optimizer.torch_optimizer import TorchOptimizer

__all__ = ["AdamW", "MuonAdamW", "Optimizer", "StochasticAdamW", "TorchOptimizer", "decay_groups"]
