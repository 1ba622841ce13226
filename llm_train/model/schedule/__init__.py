"""Learning rate schedules: pure functions of the step. YAML may use the short names below."""

from llm_train.discovery import load
from llm_train.model.schedule.base import Multiplier as Multiplier
from llm_train.model.schedule.base import Schedule as Schedule
from llm_train.model.schedule.constant import Constant as Constant
from llm_train.model.schedule.cosine_restarts import CosineRestarts as CosineRestarts
from llm_train.model.schedule.inverse_power import InversePower as InversePower
from llm_train.model.schedule.linear import Linear as Linear
from llm_train.model.schedule.range_test import RangeTest as RangeTest
from llm_train.model.schedule.warmup_cosine import WarmupCosine as WarmupCosine
from llm_train.model.schedule.warmup_stable_decay import WarmupStableDecay as WarmupStableDecay

load(__name__)
