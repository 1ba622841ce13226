"""Learning rate schedules: pure functions of the step. YAML may use the short names below."""

from llm_train.discovery import load
from llm_train.model.schedule.base import Multiplier, Schedule
from llm_train.model.schedule.constant import Constant
from llm_train.model.schedule.cosine_restarts import CosineRestarts
from llm_train.model.schedule.inverse_power import InversePower
from llm_train.model.schedule.linear import Linear
from llm_train.model.schedule.range_test import RangeTest
from llm_train.model.schedule.warmup_cosine import WarmupCosine
from llm_train.model.schedule.warmup_stable_decay import WarmupStableDecay

__all__ = [
    "Constant",
    "CosineRestarts",
    "InversePower",
    "Linear",
    "Multiplier",
    "RangeTest",
    "Schedule",
    "WarmupCosine",
    "WarmupStableDecay",
]

load(__name__)
