"""Scripts that run as several ranks; each rank exits with 0 if all that it compares is equal."""

from pathlib import Path

import pytest

WORKERS = {
    "network/sharded_worker.py": 2,
    "optimizer/in_backward_worker.py": 2,
    "optimizer/low_bit_worker.py": 3,  # so that shards differ in size
    "optimizer/memory_worker.py": 2,
    "optimizer/sharded_worker.py": 2,
}


@pytest.mark.distributed
@pytest.mark.parametrize("worker", WORKERS)
def test_ranks_find_what_they_expect(worker, fork_server, tmp_path):
    if worker in ("optimizer/low_bit_worker.py", "optimizer/memory_worker.py"):
        pytest.importorskip("torchao")
    script, log = str(Path(__file__).parent / worker), tmp_path / "log.txt"
    found = fork_server.run(str(tmp_path), ranks=WORKERS[worker], log=log, script=script)
    assert found == [0] * WORKERS[worker], log.read_text()
