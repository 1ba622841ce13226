"""Two ranks with fully_shard give what one process gives, and resume (sharded_worker.py)."""

from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("sharded_worker.py")


@pytest.mark.distributed
def test_two_sharded_ranks_equal_one_process(fork_server, tmp_path):
    log = tmp_path / "log.txt"
    assert fork_server.run(ranks=2, log=log, script=WORKER) == [0, 0], log.read_text()
