"""Ways to stretch rotary positions beyond the length that a network was trained on."""

from llm_train.discovery import load
from llm_train.model.network.rotary_scaling.base import RotaryScaling as RotaryScaling

load(__name__)
