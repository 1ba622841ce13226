"""Freed memory is reused instead of requested again; the test counts page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from llm_train.testing.ranks import environment

_CODE = """
import resource, sys, torch
from llm_train.runtime.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    # 64 MiB each: more than glibc ever keeps by itself.
    return sum(float((torch.ones(16, 1 << 20) + i).sum()) for i in range(3))
step(); step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators behave otherwise")
def test_a_step_does_not_fault_its_memory_in_again() -> None:
    found = {}
    for mode in ("leave", "keep"):
        done = subprocess.run(
            [sys.executable, "-c", _CODE, mode],
            capture_output=True,
            text=True,
            env=environment(),
            check=True,
        )
        found[mode] = int(done.stdout)
    assert found["keep"] * 10 < found["leave"]
