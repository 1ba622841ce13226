"""Freed memory is reused instead of requested again; the test counts page faults."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from llm_train.testing.fork_server import ForkServer

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
def test_a_step_does_not_fault_its_memory_in_again(fork_server: ForkServer, tmp_path: Path) -> None:
    script, found = tmp_path / "steps.py", {}
    script.write_text(_CODE)
    for mode in ("leave", "keep"):
        done = fork_server.command(mode, folder=tmp_path, script=script)
        assert done.code == 0, done.err
        found[mode] = int(done.out)
    assert found["keep"] * 10 < found["leave"]
