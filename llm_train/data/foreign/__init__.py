"""Corpora that other programs have tokenised, trained on as they are."""

from llm_train.discovery import load

load(__name__)
