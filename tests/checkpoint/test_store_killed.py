"""A save is killed at each system call through which ``commit`` changes the disk, in turn."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_train.checkpoint import manifest
from llm_train.checkpoint.store import CheckpointStore

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
# One process per scenario forks a child per kill point, and the child kills itself just before its
# n-th call. Threads start only in the children. The loop ends with the first child that lives.
SCRIPT = """
import itertools, os, signal, sys
from pathlib import Path
from llm_train.checkpoint.store import CheckpointStore

root, first, second = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def save(store, step, content):
    stage = store.stage(step)
    (stage / "state").mkdir()
    for index in range(3):
        (stage / "state" / f"{index}").write_text(content * 1000)
    store.commit(step, {"content": content})

def kill_at(n):
    numbers = itertools.count(1)
    def counted(call):
        def wrapper(*args, **kwargs):
            if next(numbers) == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)
        return wrapper
    for name in ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))

for n in range(1, 1000):
    store = CheckpointStore(root / f"{n:03d}", keep_last=1)
    save(store, first, "old")
    child = os.fork()
    if child == 0:
        kill_at(n)
        save(store, second, "new")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
sys.exit(99)
"""


@pytest.mark.parametrize(("first", "second"), [(200, 400), (200, 200)], ids=["next", "replace"])
def test_killed_anywhere_a_complete_checkpoint_is_found(tmp_path, first, second):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(first), str(second)]
    subprocess.run(command, check=True, env=ENVIRONMENT, timeout=120)
    contents = []
    for root in sorted(tmp_path.iterdir()):
        store = CheckpointStore(root, keep_last=1)
        found = store.newest()
        assert found.path is not None, root
        assert found.skipped == []
        content = manifest.read(found.path).metadata["content"]
        assert (found.path / "state" / "2").read_text() == content * 1000
        contents.append(content)
        # After cleaning, only whole checkpoints under their final names remain.
        store.clean()
        assert all(p.name in {f"step-{first:08d}", f"step-{second:08d}"} for p in root.iterdir())
        after = store.newest().path
        assert after is not None
        assert manifest.read(after).metadata["content"] == content
        assert all(manifest.problems(path) == [] for path in root.iterdir())
    # Old up to some call, new from then on, both well represented: the kills were spread.
    assert contents == sorted(contents, reverse=True)
    assert contents.count("old") > 8
    assert contents.count("new") > 5


def test_killed_at_random_moments_while_saving_on(tmp_path):
    """A run that saves as fast as it can is killed by the clock, without any hook."""
    script = SCRIPT.split("def kill_at")[0] + (
        "store = CheckpointStore(root, keep_last=2)\n"
        "for step in range(first, 10**6):\n"
        "    save(store, step, f'{step} ')\n"
        "    print(step, flush=True)\n"
    )
    store, step = CheckpointStore(tmp_path, keep_last=2), 1
    for _ in range(4):
        command = [sys.executable, "-c", script, str(tmp_path), str(step), "0"]
        with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            told = [int(child.stdout.readline()) for _ in range(5)]
            child.kill()
        found = store.newest()
        assert found.path is not None
        assert manifest.problems(found.path) == []
        step = int(found.path.name.removeprefix("step-")) + 1
        assert step > told[-1]
        store.clean()
