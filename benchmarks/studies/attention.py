"""Runs llm_train with one attention kernel tried first, which the option ``attention`` names."""

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
    # The compile cache does not know which kernel was preferred when a graph was made, so each
    # kernel has a cache of its own.
    root = os.environ.get("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir() + "/inductor")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(f"{root}-attention-{kernel}"))
    if job["device"] == "cuda":  # a CPU has one kernel, and the setting is refused
        job["options"].setdefault("overrides", []).append(f"--model.attention={kernel}")
    sys.argv[1] = json.dumps(job)
    from benchmarks.peers import ours

    ours.main()


if __name__ == "__main__":
    main()
