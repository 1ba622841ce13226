"""Runs the command line as on a GPU: metrics are read one interval late."""

from __future__ import annotations

import sys
from functools import partial

from llm_train import assembly
from llm_train.callbacks import Metrics
from llm_train.cli import main

if __name__ == "__main__":
    assembly.Metrics = partial(Metrics, late=True)
    main(sys.argv[1:])
