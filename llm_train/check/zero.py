"""Rules about DeepSpeed's ZeRO: what it cannot update, and where it cannot offload."""

from __future__ import annotations

from collections.abc import Iterator

from torch import optim

from llm_train.check.table import stand_ins
from llm_train.model.optimizer import MuonAdamW
from llm_train.settings import Settings
from llm_train.trainer.strategy import ZeRO

# Of torch's: what looks at whole matrices, and Adagrad, whose groups DeepSpeed merges into one.
_NOT_ON_FLAT_PIECES = (optim.Adafactor, optim.Adagrad, optim.LBFGS, optim.Muon, optim.SparseAdam)


def zero(settings: Settings) -> Iterator[str]:
    """What the optimizer, the data and the devices must be."""
    if type(settings.strategy).__name__ != "ZeRO":
        return
    if isinstance(settings.task.optimizer_config, MuonAdamW):
        yield (
            "model.optimizer=MuonAdamW needs whole matrices, and ZeRO flattens them; "
            "set trainer.strategy to ddp or fsdp, or use AdamW"
        )
    if not settings.dense:
        yield (
            "data.source or model.loss marks some targets as ignored, and DeepSpeed reduces "
            "before they are counted; set trainer.strategy to ddp or fsdp"
        )
    strategy = settings.strategy
    if isinstance(strategy, ZeRO):
        yield from _offload(settings, strategy)


def _offload(settings: Settings, strategy: ZeRO) -> Iterator[str]:
    key = "trainer.strategy.init_args"
    chosen = {
        "offload_optimizer": strategy.offload_optimizer,
        "offload_parameters": strategy.offload_parameters,
    }
    for name, device in chosen.items():
        if device != "none" and not settings.on_cuda:
            yield (
                f"{key}.{name}={device} has no effect on a CPU, where everything already is in "
                "host memory; remove it"
            )
        if device == "nvme" and not strategy.nvme_path:
            yield f"{key}.{name}=nvme needs a directory for its files; set {key}.nvme_path"
    if strategy.offload_parameters != "none" and strategy.stage < 3:
        yield (
            f"{key}.offload_parameters={strategy.offload_parameters} needs stage 3, since stage "
            f"{strategy.stage} keeps all parameters on every device; set {key}.stage to 3, or "
            "remove it"
        )
    if strategy.offload_optimizer == "nvme" and strategy.stage < 3:
        yield (
            f"{key}.offload_optimizer=nvme needs stage 3, since DeepSpeed would use host memory "
            f"with stage {strategy.stage}; set {key}.stage to 3, or write cpu"
        )
    if strategy.nvme_path and "nvme" not in chosen.values():
        yield (
            f"{key}.nvme_path={strategy.nvme_path} has no effect, since nothing is offloaded to "
            "nvme; remove it, or write nvme"
        )


def elementwise(settings: Settings) -> Iterator[str]:
    """ZeRO hands an optimizer flat pieces; builds it, on the meta device."""
    if type(settings.strategy).__name__ != "ZeRO" or isinstance(
        settings.task.optimizer_config, MuonAdamW
    ):
        return
    built = settings.task.optimizer_config.build(stand_ins(settings))
    if isinstance(built, _NOT_ON_FLAT_PIECES):
        yield (
            f"model.optimizer: {type(built).__name__} cannot update the flat pieces that ZeRO "
            "gives it; set trainer.strategy to ddp or fsdp, or use AdamW"
        )
