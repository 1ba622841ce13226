"""Optimizers: named parameters in, one torch optimizer out. Short names for YAML below."""

from llm_train.discovery import load
from llm_train.model.optimizer.adamw import AdamW
from llm_train.model.optimizer.base import Optimizer
from llm_train.model.optimizer.grouped import Grouped
from llm_train.model.optimizer.groups import decay_groups
from llm_train.model.optimizer.lamb import LAMB
from llm_train.model.optimizer.lars import LARS
from llm_train.model.optimizer.lion import Lion
from llm_train.model.optimizer.low_bit import LowBitAdamW
from llm_train.model.optimizer.muon_adamw import MuonAdamW
from llm_train.model.optimizer.quickprop import QuickProp
from llm_train.model.optimizer.schedule_free import ScheduleFreeAdamW
from llm_train.model.optimizer.sgd import SGD
from llm_train.model.optimizer.sgld import SGLD
from llm_train.model.optimizer.torch_optimizer import TorchOptimizer

__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "SGLD",
    "AdamW",
    "Grouped",
    "Lion",
    "LowBitAdamW",
    "MuonAdamW",
    "Optimizer",
    "QuickProp",
    "ScheduleFreeAdamW",
    "TorchOptimizer",
    "decay_groups",
]

load(__name__)
