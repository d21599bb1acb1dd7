"""Compiles the CUDA sources for several architectures, without a GPU and without a torch built for CUDA.

Fails if a source does not compile, or if a kernel spills more registers than MAY_SPILL allows. With ``--verbose`` it
prints the registers and the spilled bytes of every kernel.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from setup import CUDA_FLAGS  # noqa: E402

ARCHITECTURES = ["75", "80", "90", "100", "120"]  # of those that the compiler knows
# Part of a kernel's name: the bytes that it may spill, and why that is right.
MAY_SPILL = {
    "11tile_kernel": (200, "held to 56 registers for four blocks on a multiprocessor: faster than three without"),
    "SourceE0ELb0E": (368, "likewise, with other padding modes than zeros"),
    "SourceE1ELb0E": (280, "likewise, from offsets"),
    "SourceE2ELb0E": (480, "likewise, from affine maps, which are read again for every pass"),
    "Li3ELb1ELb1ELNS_6SourceE": (656, "of three axes, to 72 for three blocks: eight corners, and two lists at a time"),
    "Li3ELb0ELb1ELNS_6SourceE": (656, "likewise"),
    "Li3ELb1ELb1ELNS_6SourceE2": (928, "likewise, from affine maps, twelve numbers each"),
    "Li3ELb0ELb1ELNS_6SourceE2": (680, "likewise"),
    "21sample_packets_kernel": (52, "held to 80 registers for three blocks on a multiprocessor"),
    "18sample_tile_kernel": (56, "held to 64 registers for four blocks; with zeros around the image 8"),
    "18convolution_kernel": (808, "all the registers there are: of three axes eight corners for each row; of two 128"),
    "convolution_positions_kernel": (40, "likewise, of three axes"),
    "convolution_input_kernel": (700, "held to 128 registers for two blocks on a multiprocessor"),
    "17sums_input_kernel": (400, "held to 80 registers, of three axes to 128, for three and for two blocks"),
    "convolution_weight_kernel": (56, "of three axes: what the compiler chose for itself"),
    "11sums_kernel": (536, "held to 64 registers for four blocks, for products to 80 for three; all results most"),
    "11pool_kernel": (168, "what the compiler chose for itself"),
    "20pool_backward_kernel": (400, "likewise; of three axes, in float64 most"),
    "20differentiate_kernel": (64, "the bound of its blocks: a handful of values, of three axes in float64 most"),
    "17sparse_sum_kernel": (24, "of three axes, in float64: a handful of values"),
    "17sparse_dot_kernel": (32, "likewise, of three axes"),
    "12build_kernel": (32, "a handful of values, in float64"),
    "reduce_kernel": (304, "the general path, float64 and 64-bit offsets most; dot alone, two channels at a time"),
    "sample_kernel": (128, "likewise"),
}
LEAN = ["-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE"]  # a torch for the CPU has CUDA headers, but for this one


@dataclass(frozen=True)
class Kernel:
    source: str
    architecture: str
    name: str
    registers: int
    spilled: int  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print("no nvcc: CUDA sources not compiled")
        return
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    architectures = [a for a in args.architectures if f"sm_{a}" in known]
    listed = [ROOT / "csrc" / name for name in json.loads((ROOT / "csrc" / "build.json").read_text())["cuda"]]
    sources = [source for source in listed if source.suffix == ".cu"]
    jobs = [(source, architecture) for source in sources for architecture in architectures]
    jobs += [(source, architectures[0]) for source in listed if source.suffix == ".cpp"]  # the host's part
    with ThreadPoolExecutor(args.jobs) as pool:
        reports = pool.map(lambda job: compile_one(nvcc, *job), jobs)
        kernels = [kernel for report in reports for kernel in report]

    spilling = [k for k in kernels if k.spilled > allowance(k)]
    for kernel in kernels if args.verbose else spilling:
        print(
            f"{kernel.source} sm_{kernel.architecture}: {kernel.registers} registers, {kernel.spilled} bytes spilled: "
            f"{kernel.name}"
        )
    print(f"{len(sources)} sources, {', '.join(f'sm_{a}' for a in architectures)}: {len(kernels)} kernels")
    if spilling:
        raise SystemExit(f"{len(spilling)} kernels spill registers")


def allowance(kernel: Kernel) -> int:
    return max((size for part, (size, _) in MAY_SPILL.items() if part in kernel.name), default=0)


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def compile_one(nvcc: str, source: Path, architecture: str) -> list[Kernel]:
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            nvcc,
            *CUDA_FLAGS,
            *LEAN,
            "-std=c++20",
            f"-gencode=arch=compute_{architecture},code=sm_{architecture}",
            "-Xptxas=-v",
            *(f"-I{path}" for path in include_paths()),
            "-c",
            str(source),
            "-o",
            f"{scratch}/object.o",
        ]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"{source.name} sm_{architecture}:\n{result.stderr}")
    found = re.findall(
        r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        result.stderr,
        re.DOTALL,
    )
    if result.stderr.count("Compiling entry function") != len(found):
        raise SystemExit(f"the report of {nvcc} has another form than expected:\n{result.stderr}")
    return [
        Kernel(source.name, architecture, name, int(registers), int(stores) + int(loads))
        for name, stores, loads, registers in found
    ]


if __name__ == "__main__":
    main()
