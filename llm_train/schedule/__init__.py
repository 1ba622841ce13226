"""Learning rate schedules: pure functions of the step. Short names for YAML below."""

from llm_train.schedule.base import Multiplier, Schedule
from llm_train.schedule.constant import Constant
from llm_train.schedule.linear import Linear
from llm_train.schedule.warmup_cosine import WarmupCosine
from llm_train.schedule.warmup_stable_decay import WarmupStableDecay

__all__ = ["Constant", "Linear", "Multiplier", "Schedule", "WarmupCosine", "WarmupStableDecay"]
