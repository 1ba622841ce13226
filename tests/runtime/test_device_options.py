"""Options of devices reach torch, and give way to the environment of the user."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llm_train.errors import ConfigError
from llm_train.runtime import affinity
from llm_train.runtime.device_options import DeviceOptions
from llm_train.runtime.devices import KINDS
from llm_train.testing import command
from llm_train.testing.configs import tiny, write


@pytest.mark.parametrize(
    ("options", "kind", "precision", "dtype"),
    [
        ({}, "cuda", "32-true", "tf32"),
        ({"float32_matmul": "ieee"}, "cuda", "32-true", "fp32"),
        ({}, "cpu", "32-true", "fp32"),
        ({}, "mps", "32-true", "fp32"),
        ({}, "cuda", "bf16-mixed", "bf16"),
    ],
)
def test_products_of_float32_are_in_tf32_on_gpus(
    options: dict[str, str], kind: str, precision: str, dtype: str
) -> None:
    assert DeviceOptions(**options).product_dtype(KINDS[kind], precision) == dtype


def test_tf32_holds_while_a_run_lasts() -> None:
    """torch must answer under both of its names for it; mixing them makes one raise an error."""
    options, seen = DeviceOptions(numa_binding=False), []
    before = torch.get_float32_matmul_precision()
    for kind in ("cuda", "cpu"):
        with options.in_use(KINDS[kind], 0):
            seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.fp32_precision))
            assert torch.compile(lambda x: x @ x, backend="eager")(torch.eye(2)).equal(torch.eye(2))
        assert torch.get_float32_matmul_precision() == before
    assert [allowed for allowed, _ in seen] == [True, False]


def test_the_environment_of_the_user_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "NCCL_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    options = DeviceOptions(nccl={"NCCL_DEBUG": "INFO"}, numa_binding=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:False")
    rows = options.described(KINDS["cuda"])
    assert rows["PYTORCH_ALLOC_CONF"].startswith("expandable_segments:False (from the environment")
    options.prepare(KINDS["cuda"])
    assert "PYTORCH_ALLOC_CONF" not in os.environ
    assert os.environ["NCCL_DEBUG"] == "INFO"
    assert options.described(KINDS["cuda"])["NCCL_DEBUG"] == "INFO"
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    options.prepare(KINDS["cpu"])
    assert "PYTORCH_ALLOC_CONF" not in os.environ
    options.prepare(KINDS["cuda"])
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


def test_a_rank_stays_next_to_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the processors that the process has."""
    own = sorted(os.sched_getaffinity(0))
    where = SimpleNamespace(pci_domain_id=0, pci_bus_id=0xAB, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: where)
    assert affinity.cpus_near(0, tmp_path) == set()
    folder = tmp_path / "0000:ab:00.0"
    folder.mkdir()
    (folder / "local_cpulist").write_text(f"{own[0]},4000-4095\n")
    assert affinity.cpus_near(0, tmp_path) == {own[0]}
    monkeypatch.setattr(affinity, "_PCI", tmp_path)
    monkeypatch.setattr(affinity, "cpus_near", lambda index: {own[0]})
    with affinity.near_device(0):
        assert os.sched_getaffinity(0) == {own[0]}
    assert sorted(os.sched_getaffinity(0)) == own


def test_what_has_no_effect_is_refused(tmp_path: Path) -> None:
    path = str(write(tmp_path / "c.yaml", tiny(tmp_path / "run")))
    for option in ("float32_matmul=tf32", "nccl.NCCL_DEBUG=INFO"):
        [line] = command.refused("check", "-c", path, f"--device.{option}")
        assert line.startswith(f"device.{option.partition('.')[0].partition('=')[0]}")
        assert "has no effect on cpu" in line
    [line] = command.refused("check", "-c", path, "--trainer.accelerator=tpu")
    assert line.startswith("trainer.accelerator=tpu is not one of")
    [line] = command.refused(
        "check", "-c", path, "--trainer.accelerator=mps", "--trainer.strategy=ddp"
    )
    assert "trainer.strategy=single" in line
    with pytest.raises(ConfigError, match=r"device\.nccl\.PATH"):
        DeviceOptions(nccl={"PATH": "/"})
