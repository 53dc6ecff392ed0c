"""The head against its peers, one command, one table for each shape.

    python scripts/benchmark/run.py                    # everything that runs on this machine
    python scripts/benchmark/run.py --only bf16 fp32   # some of the cases
    python scripts/benchmark/run.py --check            # small shapes, and loose bounds: 1 if broken

Ratios are to the first row of each table. Peers that are not installed, or need a GPU, are told:
`pip install -e '.[benchmark]'`.
"""

import argparse
import contextlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cases import DTYPES, HeadCase, StepCase
from measure import measure
from methods import LEVELS
from tvd_gen.head.chunked import multiplies

OURS = ["ours ce", "ours tailr"]
PEERS = [
    "torch.compile",
    "torch accurate 512",
    "torch balanced 512",
    "torch compact 512",
    "cce compile",
    "hf tailr",
    "products",
]
SLOW = ["torch auto", "trl"]  # many times slower than hf here: apart, for those in a hurry
GPU_PEERS = ["torch.compile", "torch auto", "torch compact 1024", "trl", "liger", "cce"]

CASES: dict[str, tuple[HeadCase | StepCase, list[str]]] = {
    "bf16": (HeadCase(), ["hf", *OURS, *PEERS]),
    "fp32": (HeadCase(dtype="fp32"), ["hf", *OURS, *PEERS]),
    "bf16-slow": (HeadCase(), ["hf", *OURS, *SLOW]),
    "fp32-slow": (HeadCase(dtype="fp32"), ["hf", *OURS, *SLOW]),
    "ignored": (HeadCase(ignored=0.5), ["hf", *OURS, "torch accurate 512", "trl"]),
    "ignored-fp32": (
        HeadCase(ignored=0.5, dtype="fp32"),
        ["hf", *OURS, "torch compact 512", "trl"],
    ),
    "small": (
        HeadCase(width=512, vocabulary=32000),
        ["hf", *OURS, "torch accurate 512", "torch.compile"],
    ),
    "llama": (
        HeadCase(vocabulary=128256),
        ["hf", *OURS, "torch accurate 512", "torch accurate 256"],
    ),
    "gemma": (
        HeadCase(rows=1024, width=640, vocabulary=262144),
        ["hf", *OURS, "torch accurate 512", "torch accurate 256"],
    ),
    "levels": (HeadCase(), ["hf", *OURS, *LEVELS]),
    "levels-fp32": (HeadCase(dtype="fp32"), ["hf", *OURS, *LEVELS]),
    "step-head": (HeadCase(width=384), ["hf", *OURS, "products"]),
    "step": (StepCase(), ["stock", *OURS, "body"]),
    "step-autocast": (StepCase(precision="autocast"), ["stock", *OURS, "body"]),
}
GPU_CASES: dict[str, tuple[HeadCase | StepCase, list[str]]] = {
    name: (case, ["hf", *OURS, "ours chunked", *GPU_PEERS, "products"])
    for name, case in {
        "gpu": HeadCase(4096, 4096, 128256, device="cuda"),
        "gpu-ignored": HeadCase(4096, 4096, 128256, ignored=0.5, device="cuda"),
        "gpu-small": HeadCase(8192, 768, 50257, device="cuda"),
        "gpu-gemma": HeadCase(8192, 2304, 262144, device="cuda"),
    }.items()
}
GPU_CASES["gpu-levels"] = HeadCase(8192, 768, 50257, device="cuda"), ["hf", *OURS, *LEVELS]
GPU_CASES["gpu-step"] = (
    StepCase(12, 768, rows=16, length=1024, precision="autocast", device="cuda"),
    ["stock", *OURS, "body"],
)
CHECK = {
    "check-bf16": (HeadCase(1024, 512, 32000), ["hf", *OURS]),
    "check-fp32": (HeadCase(1024, 512, 32000, dtype="fp32"), ["hf", *OURS]),
    "check-ignored": (HeadCase(1024, 512, 32000, ignored=0.5), ["hf", *OURS]),
    "check-ignored-fp32": (HeadCase(1024, 512, 32000, ignored=0.5, dtype="fp32"), ["hf", *OURS]),
    "check-levels": (HeadCase(512, 256, 8000, dtype="fp32"), ["hf", *OURS, *LEVELS]),
}
# Loose: they find a path that is lost, not a busy machine.
BOUNDS = {
    "check-bf16": {"seconds": 1.0, "peak": 0.4},
    "check-fp32": {"seconds": 1.2, "peak": 0.6},
    "check-ignored": {"seconds": 0.7, "peak": 0.4},
    "check-ignored-fp32": {"seconds": 0.9, "peak": 0.6},
    "check-levels": {"peak": 1.0},  # too small for times: that all of them run
}


def checks() -> dict[str, tuple[HeadCase, list[str]]]:
    """The check's cases in dtypes that this processor multiplies.

    In others, hf takes 70 times as long as our head, which computes in float32 there.
    """
    return {name: each for name, each in CHECK.items() if multiplies(DTYPES[each[0].dtype])}


def table(case: HeadCase | StepCase, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown; the first method is what the others are compared with."""
    base = next((r for r in results.values() if "failed" not in r), {})
    lines = [f"### {case}", "", "| | time | ratio | peak MB | ratio | loss | dh | dW |"]
    lines.append("|---" * 8 + "|")
    for method, numbers in results.items():
        if "failed" in numbers:
            lines.append(f"| {method} | {numbers['failed']} |" + " |" * 6)
            continue
        ratios = [numbers[k] / base[k] for k in ("seconds", "peak")]
        errors = [numbers.get(f"{name} error") for name in ("loss", "dh", "dW")]
        lines.append(
            f"| {method} | {numbers['seconds'] * 1e3:.0f} ms | {ratios[0]:.2f} | "
            f"{numbers['peak']:.0f} | {ratios[1]:.2f} | "
            + " | ".join("" if e is None else f"{e:.1e}" for e in errors)
            + " |"
        )
    return "\n".join(lines) + "\n"


def broken(name: str, results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the check finds: ratios beyond the bounds, and errors beyond the plain path's."""
    failed = [f"{name}: {m}: {r['failed']}" for m, r in results.items() if "failed" in r]
    if failed:
        return failed
    base, found = results["hf"], []
    for method in OURS:
        for number, bound in BOUNDS[name].items():
            ratio = results[method][number] / base[number]
            if ratio > bound:
                found.append(f"{name}: {method} {number} {ratio:.2f}, at most {bound}")
    ratio = results["ours tailr"]["seconds"] / results["ours ce"]["seconds"]
    if ratio > 1.5 and "seconds" in BOUNDS[name]:
        found.append(f"{name}: tailr takes {ratio:.2f} of cross-entropy's time, at most 1.5")
    for error in ("loss error", "dh error", "dW error"):
        if results["ours ce"][error] > base[error] + 1e-6:
            found.append(f"{name}: {error} {results['ours ce'][error]:.1e}, hf {base[error]:.1e}")
    return found


def machine() -> str:
    """Processor, threads and versions."""
    name, cpus = platform.processor(), Path("/proc/cpuinfo")
    if cpus.exists():
        lines = [line for line in cpus.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":")[1].strip() if lines else name
    if torch.cuda.is_available():
        name += f", {torch.cuda.get_device_name()}"
    found = []
    for package in ("torch", "triton", "transformers", "trl", "liger-kernel", "cut-cross-entropy"):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    spin = os.environ.get("GOMP_SPINCOUNT", "default")
    return f"{name}, {torch.get_num_threads()} threads, GOMP_SPINCOUNT {spin}; {', '.join(found)}"


def main() -> None:
    """Measure and print."""
    everything = {**CASES, **(GPU_CASES if torch.cuda.is_available() else {})}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[*everything], default=[*everything])
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.steps < 1:
        parser.error(f"--steps {given.steps}: at least 1")
    cases = checks() if given.check else {name: everything[name] for name in given.only}
    print(machine() + "\n", flush=True)
    if given.check and (left := [name for name in CHECK if name not in cases]):
        print(f"left out, for this processor has no such products: {', '.join(left)}\n", flush=True)
    faults, record = [], {"machine": machine()}
    for name, (case, methods) in cases.items():
        results = measure(case, methods, given.steps)
        print(table(case, results), flush=True)
        record[name] = results
        if given.json:
            given.json.write_text(json.dumps(record, indent=1))
        if given.check:
            faults += broken(name, results)
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
