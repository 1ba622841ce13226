"""Optimizers: named parameters in, one torch optimizer out. Short names for YAML below."""

from llm_train.discovery import load
from llm_train.model.optimizer.adamw import AdamW as AdamW
from llm_train.model.optimizer.base import Optimizer as Optimizer
from llm_train.model.optimizer.grouped import Grouped as Grouped
from llm_train.model.optimizer.groups import decay_groups as decay_groups
from llm_train.model.optimizer.lamb import LAMB as LAMB
from llm_train.model.optimizer.lars import LARS as LARS
from llm_train.model.optimizer.lion import Lion as Lion
from llm_train.model.optimizer.low_bit import LowBitAdamW as LowBitAdamW
from llm_train.model.optimizer.muon_adamw import MuonAdamW as MuonAdamW
from llm_train.model.optimizer.quickprop import QuickProp as QuickProp
from llm_train.model.optimizer.schedule_free import ScheduleFreeAdamW as ScheduleFreeAdamW
from llm_train.model.optimizer.sgd import SGD as SGD
from llm_train.model.optimizer.sgld import SGLD as SGLD
from llm_train.model.optimizer.torch_optimizer import TorchOptimizer as TorchOptimizer

load(__name__)
