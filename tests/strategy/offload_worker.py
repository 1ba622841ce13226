"""One rank of a run that offloads on a CPU, where ``check`` refuses it for having no effect.

DeepSpeed takes the same way through its code as on a GPU, so that it can be tested without one.
"""

from __future__ import annotations

import sys
from typing import Any

from llm_train.check import zero
from llm_train.cli import main

rules: Any = zero
rules._offload = lambda settings, strategy: ()
main(sys.argv[1:])
