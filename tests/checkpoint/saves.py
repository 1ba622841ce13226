"""Real saves of small content, for tests in which the disk fails or the process is killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from llm_train.checkpoint.content import Content
from llm_train.checkpoint.rank_state import RankState
from llm_train.checkpoint.remote import Remote
from llm_train.checkpoint.store import CheckpointStore
from llm_train.checkpoint.writer import Writer
from llm_train.testing.checkpoints import tensors_of

OLD, NEW = 1.0, 2.0


def writer(root: Path) -> Writer:
    store = CheckpointStore(root, keep_last=1)
    return Writer(store=store, metadata={"run": "x"}, files={"config.yaml": "a: 1\n"})


def content(step: int, value: float) -> Content:
    tensors = {f"model.{i}": torch.full((50, 40), value) for i in range(2)}
    return Content(
        states={"state": RankState(tensors=tensors, scalars={"0": {"value": value}})},
        rank={"sums": torch.full((2,), value)},
        kept={"callbacks": {"C": {"value": value}}},
        position={"step": step, "value": value},
        snapshot=None,
    )


def save(root: Path, step: int, value: float) -> None:
    writer(root).write(content(step, value))


def leave_halves(root: Path) -> None:
    """What killed processes leave: a stage, a grave, a replacement whose renames did not come."""
    save(root, 100, OLD)
    (root / "step-00000100").rename(root / ".deleting-step-00000100")
    save(root, 200, OLD)
    (root / ".staging-step-00000300" / "state").mkdir(parents=True)
    (root / ".staging-step-00000300" / "state" / "x").write_text("x")
    (root / "step-00000200").rename(root / "aside")
    save(root, 200, NEW)
    (root / "step-00000200").rename(root / "step-00000200.new")
    (root / "aside").rename(root / "step-00000200")


def upload(root: Path) -> None:
    """A newer checkpoint in a second home, by a run on another machine."""
    save(root, 200, OLD)
    far = root.parent / "far"
    for step, value in ((100, OLD), (400, NEW)):
        save(far, step, value)
    remote = Remote(url=f"file://{root.parent}/bucket", store=CheckpointStore(far))
    remote.offer(far / "step-00000400")
    remote.finish(60)


def bring(root: Path) -> None:
    Remote(url=f"file://{root.parent}/bucket", store=CheckpointStore(root)).bring_newest()


# name -> what is there before, and what is done under faults
SCENARIOS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "next": (lambda root: save(root, 200, OLD), lambda root: save(root, 400, NEW)),
    "replace": (lambda root: save(root, 200, OLD), lambda root: save(root, 200, NEW)),
    "clean": (leave_halves, lambda root: CheckpointStore(root, keep_last=1).clean()),
    "bring": (upload, bring),
}


def value_of(root: Path) -> float:
    """What the newest complete checkpoint was saved with; everything in it must agree."""
    found = CheckpointStore(root, keep_last=1).newest()
    assert found.path is not None, root
    assert found.skipped == []
    value = float(torch.load(found.path / "rank-00000.pt")["sums"][0])
    tensors = tensors_of(found.path)
    assert len(tensors) == 2
    assert all(bool((tensor == value).all()) for tensor in tensors.values())
    assert torch.load(found.path / "callbacks.pt")["callbacks"]["C"]["value"] == value
    return value


def require_going_on(root: Path) -> None:
    """The next start cleans, finds what was found before, and saves."""
    before = value_of(root)
    store = CheckpointStore(root, keep_last=1)
    store.clean()
    assert not [path.name for path in root.iterdir() if not path.name.startswith("step-")]
    assert not list(root.glob("*.new"))
    assert value_of(root) == before
    save(root, 600, 3.0)
    assert value_of(root) == 3.0
    assert [path.name for path in root.iterdir()] == ["step-00000600"]
