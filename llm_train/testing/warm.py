"""Prepares the fork server: imported there, before ranks are forked.

jsonargparse reads signatures and stubs for half a second the first time, so that one configuration
is parsed here for all ranks.
"""

import gc
import tempfile
from pathlib import Path

import torch

from llm_train.cli import load_settings
from llm_train.testing.configs import tiny, write

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    load_settings(["-c", str(write(Path(folder) / "tiny.yaml", tiny(Path(folder))))])
# Collections of a child then leave what the server has made alone: they would walk it, and copy
# every page of it.
gc.collect()
gc.freeze()
