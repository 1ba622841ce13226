"""Lightning callbacks that every run has. YAML key for more of them: trainer.callbacks."""

from llm_train.discovery import load
from llm_train.trainer.callbacks.averaging import EMA
from llm_train.trainer.callbacks.garbage import GarbageCollection
from llm_train.trainer.callbacks.guard import Guard
from llm_train.trainer.callbacks.metrics import Metrics
from llm_train.trainer.callbacks.progress import Progress
from llm_train.trainer.callbacks.signals import GracefulStop

__all__ = ["EMA", "GarbageCollection", "GracefulStop", "Guard", "Metrics", "Progress"]

load(__name__, skip=("collectives", "forecast", "phases", "profile", "spikes"))
