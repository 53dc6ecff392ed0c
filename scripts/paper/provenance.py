"""What a number was made with."""

import platform
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("tvd-gen", "torch", "transformers")


def made_with() -> dict[str, str]:
    """Versions of packages, and "processor": its name and the widest instructions that torch uses,
    as in "AMD EPYC, AVX512". With others the same run rounds otherwise."""
    versions = {package: version(package) for package in PACKAGES}
    return versions | {"processor": f"{processor()}, {torch.backends.cpu.get_cpu_capability()}"}


def processor() -> str:
    """Its name; on Linux platform.processor() has none."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text("utf-8").splitlines() if cpus.exists() else []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
