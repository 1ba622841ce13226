"""Where metrics go: a JSONL file that is the source of truth, and Weights & Biases."""

from llm_train.discovery import load
from llm_train.trainer.logger.jsonl import JSONLMetrics
from llm_train.trainer.logger.records import merge, read_lines, read_metrics
from llm_train.trainer.logger.wandb import WandB

__all__ = ["JSONLMetrics", "WandB", "merge", "read_lines", "read_metrics"]

load(__name__)
