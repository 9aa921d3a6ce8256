"""What is installed, built and able to run on this machine."""

from __future__ import annotations

import platform
from importlib import metadata, util
from typing import Any

import torch

from . import _backends, _native
from ._version import __version__


def backends() -> dict[str, dict[str, str | None]]:
    """For each family, each backend's reason for being off, or None where it runs."""
    return {
        family: {name: record.available() for name, record in _backends.registered(family).items()}
        for family in _backends.families()
    }


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Model name of the CPU as the system gives it."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def report() -> dict[str, Any]:
    """Versions, builds and availability, ready for JSON."""
    cpu = _native.CPU.reason()
    cuda = _native.CUDA.reason()
    devices = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            capability = torch.cuda.get_device_capability(index)
            name = torch.cuda.get_device_name(index)
            devices.append({"name": name, "capability": "sm_{}{}".format(*capability)})
    return {
        "sublimate": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version_of("triton") if util.find_spec("triton") else None,
        "platform": platform.platform(),
        "cpu": {
            "model": processor(),
            "threads": torch.get_num_threads(),
            "kernels": _native.CPU.load().isa if cpu is None else None,
            "reason": cpu,
        },
        "cuda": {
            "architectures": _native.CUDA.load().architectures if cuda is None else None,
            "devices": devices,
            "reason": _native.cuda_reason(),
        },
        "setting": _backends.get_backend(),
        "families": backends(),
    }
