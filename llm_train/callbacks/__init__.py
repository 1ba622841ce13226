"""Lightning callbacks that every run has. YAML key for more of them: trainer.callbacks."""

from llm_train.callbacks.garbage import GarbageCollection
from llm_train.callbacks.metrics import Metrics
from llm_train.callbacks.progress import Progress
from llm_train.callbacks.signals import GracefulStop

__all__ = ["GarbageCollection", "GracefulStop", "Metrics", "Progress"]
