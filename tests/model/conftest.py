"""Fixtures of tests about the model."""

import pytest
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh


@pytest.fixture
def mesh(tmp_path):
    """A mesh of this process alone."""
    init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        destroy_process_group()
