"""Architectures of ``transformers``, one file each; a new file is a new architecture."""

from llm_train.discovery import load
from llm_train.exchange.families.base import Family as Family
from llm_train.exchange.families.base import families as families
from llm_train.exchange.families.base import fitting as fitting

load(__name__)
