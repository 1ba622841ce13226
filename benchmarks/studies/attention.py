"""Ours with one attention kernel tried first: the job's option ``attention`` names it.

The compile cache does not know which kernel was preferred when a graph was made, so each has a
cache of its own.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

KERNELS = ("cudnn", "flash", "efficient")


def main() -> None:
    job = json.loads(sys.argv[1])
    kernel = job["options"]["attention"]
    assert kernel in KERNELS, f"{kernel!r} is none of {KERNELS}"
    root = os.environ.get("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir() + "/inductor")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(f"{root}-attention-{kernel}"))
    if job["device"] == "cuda":  # on a CPU there is one kernel, and the setting is refused
        job["options"].setdefault("overrides", []).append(f"--model.attention={kernel}")
    sys.argv[1] = json.dumps(job)
    from benchmarks.peers import ours

    ours.main()


if __name__ == "__main__":
    main()
