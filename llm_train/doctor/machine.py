"""What is installed, which devices are here, and whether prepared tokens are as they were."""

import os
import platform
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata, requires

import torch
from packaging.requirements import Requirement
from torch.utils import collect_env

from llm_train.context import Finding
from llm_train.data.shards import describe_file
from llm_train.data.token_manifest import Manifest
from llm_train.settings import Settings

_NAMED = ("torch", "lightning", "deepspeed")
_FREE = 0.9  # of a device that nobody else uses; its context takes some


def versions(settings: Settings) -> Iterator[Finding]:
    """Versions that logs of a failure should name, and packages that are not as required."""
    shown = [f"python {platform.python_version()}"]
    shown += [f"{name} {found}" for name in _NAMED if (found := _version(name))]
    if settings.accelerator.type == "cuda" and settings.accelerator.count:
        shown.append(f"CUDA {torch.version.cuda or torch.version.hip}")
        driver = collect_env.get_nvidia_driver_version(collect_env.run)  # type: ignore[no-untyped-call]
        shown.append(f"driver {driver or 'not known'}")
        shown.append(f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}")  # type: ignore[no-untyped-call]
    yield Finding("versions", ", ".join(shown))
    for requirement in map(Requirement, (_version("llm-train") and requires("llm-train")) or ()):
        found = _version(requirement.name)
        optional = requirement.marker is not None
        if (not found and optional) or found in requirement.specifier:
            continue
        yield Finding(
            "versions",
            f"{requirement.name} {found or 'is not installed'}, needed: {requirement.specifier}",
            "warning" if optional else "failed",
            f"pip install '{requirement.name}{requirement.specifier}'",
        )


def devices(settings: Settings) -> Iterator[Finding]:
    """The devices that ranks of this node will use, and whether somebody else is on them."""
    kind = settings.accelerator
    if kind.type != "cuda":
        yield Finding("devices", f"{settings.devices} x {kind.type}, {os.cpu_count()} processors")
        return
    for index in settings.context().here:
        free, total = torch.cuda.mem_get_info(index)
        text = f"{index}: {torch.cuda.get_device_name(index)}, {free / 2**30:.1f} GiB free"
        if free < _FREE * total:
            remedy = "another process uses it: look for it with nvidia-smi"
            yield Finding("devices", f"{text} of {total / 2**30:.1f}", "warning", remedy)
        else:
            yield Finding("devices", text)


def _version(name: str) -> str:
    with suppress(PackageNotFoundError):
        return str(metadata(name)["Version"])
    return ""


_SECONDS = 10.0


def data(settings: Settings) -> Iterator[Finding]:
    """Hashes of files in a random order, as many as the time allows."""
    folder = settings.data.source.folder
    if folder is None or not settings.data.source.prepared:
        return
    files = Manifest.load(folder).files
    random.shuffle(files)
    began, done = time.perf_counter(), 0
    for file in files:
        if time.perf_counter() - began > _SECONDS:
            break
        if describe_file(folder / file.name).sha256 != file.sha256:
            text = f"{folder / file.name} is damaged: its sha256 is not the manifest's"
            yield Finding("data", text, "failed", "llm-train prepare --force with the same options")
        done += 1
    yield Finding("data", f"sha256 of {done} of {len(files)} files in {folder} compared")
