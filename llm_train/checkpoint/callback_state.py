"""What callbacks keep in a checkpoint, for training that goes on and for a validation alike.

Three ways lead into it: ``state_dict``, Lightning's hook ``on_save_checkpoint`` (for averages of
whole weights, ``EMAWeightAveraging``), and ``CutAlike`` for tensors that are cut over ranks as the
parameters are. The hook is given a dictionary like Lightning's own checkpoint; the weights in it
are those that the strategy writes anyway, so only the name under which the hook left them is kept.
"""

import pickle
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from llm_train.checkpoint import dcp
from llm_train.errors import CheckpointError
from llm_train.run_state import task_of

FILE = "callbacks.pt"
FOLDER = "callbacks"
_VERSION = "pytorch-lightning_version"


@runtime_checkable
class CutAlike(Protocol):
    """A callback with tensors that lie over the ranks as the parameters do."""

    def tensors(self, network: nn.Module) -> dict[str, Tensor]:
        """The tensors by key; they are written as they are, and read in place."""


def collect(trainer: pl.Trainer) -> dict[str, Any]:
    """What callbacks return and put aside, asked for on all ranks."""
    kept: dict[str, Any] = {"callbacks": call._call_callbacks_state_dict(trainer)}
    if _any_has(trainer, "on_save_checkpoint"):
        weights = trainer.lightning_module.state_dict()
        checkpoint = {
            **kept,
            "state_dict": weights,
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            _VERSION: version("lightning"),
        }
        call._call_callbacks_on_save_checkpoint(trainer, checkpoint)
        kept = {key: value for key, value in checkpoint.items() if value is not weights}
        kept["weights"] = [key for key, value in checkpoint.items() if value is weights]
    return kept


def write(directory: Path, kept: dict[str, Any]) -> None:
    """Writes what ``collect`` found, on one rank.

    Raises:
        CheckpointError: it could not be loaded again; later would be too late to learn that. Or
            what a hook put aside is not finite, an average of the weights for instance.
    """
    for name, value in kept.items():
        # Not what ``state_dict`` returns: the best score of a monitor that has seen none is inf.
        aside = value if name != "callbacks" and isinstance(value, dict) else {}
        tensors = {key: tensor for key, tensor in aside.items() if isinstance(tensor, Tensor)}
        for key, count in dcp.not_finite(tensors).items():
            raise CheckpointError(f"{name}.{key} of a callback holds {count} that are not finite")
    with open(directory / FILE, "wb") as file:
        torch.save(kept, file)
    try:
        torch.load(directory / FILE, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "trainer.callbacks: the state_dict of a callback holds objects that cannot be loaded "
            f"safely ({str(error).splitlines()[0]}); let it return plain values and tensors"
        ) from error


def restore(trainer: pl.Trainer, path: Path) -> None:
    """Gives callbacks back what they kept; the weights are in place already.

    A validation scores the weights that a hook left as the checkpoint's own, as Lightning does.
    """
    device = trainer.strategy.root_device
    with dcp.readable(path / FILE):
        kept = torch.load(path / FILE, weights_only=True, map_location=device)
    kept[_VERSION] = version("lightning")
    if _any_has(trainer, "on_load_checkpoint"):
        module = trainer.lightning_module
        own = module.state_dict()
        kept.update(dict.fromkeys(kept.pop("weights", ["state_dict"]), own))
        if trainer.state.fn != "fit" and kept["state_dict"] is not own:
            module.load_state_dict(kept["state_dict"])
        with warnings.catch_warnings():
            # Lightning's averaging cannot train on from here, and is not asked to.
            warnings.filterwarnings("ignore", message=".*checkpoint outside the 'fit' stage.*")
            call._call_callbacks_on_load_checkpoint(trainer, kept)
    call._call_callbacks_load_state_dict(trainer, kept)
    if (path / FOLDER).is_dir():
        stored = dcp.keys(path / FOLDER)
        found = {key: tensor for key, tensor in tensors(trainer).items() if key in stored}
        dcp.read(path / FOLDER, found)


def left_weights(path: Path) -> dict[str, Tensor]:
    """Weights by name that a hook left as a checkpoint's own; none where no hook did."""
    with dcp.readable(path / FILE):
        kept = torch.load(path / FILE, weights_only=True, map_location="cpu")
    return dict(kept.get("state_dict", {}))


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    found: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # not declared
    return found


def _any_has(trainer: pl.Trainer, hook: str) -> bool:
    return any(is_overridden(hook, callback, pl.Callback) for callback in _callbacks(trainer))


def tensors(trainer: pl.Trainer) -> dict[str, Tensor]:
    """What is cut as the parameters are, by key."""
    network = task_of(trainer.lightning_module).network
    return {
        f"{callback.state_key}.{key}": tensor
        for callback in _callbacks(trainer)
        if isinstance(callback, CutAlike)
        for key, tensor in callback.tensors(network).items()
    }
