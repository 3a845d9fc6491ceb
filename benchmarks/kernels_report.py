"""What the compiler made of every kernel, without a GPU: writes docs/kernels.md.

    python -m benchmarks.kernels_report [--out docs/kernels.md]

Fails, and writes nothing, where a kernel spills registers or uses local memory.
"""

from dataclasses import dataclass
from pathlib import Path

import triton
import tyro

from kernels.ahead_of_time import CompiledKernel, barriers, compile_kernel, widest
from kernels.catalogue import Launch, launches
from xpt.config import Config, MaskConfig
from xpt.files import write_atomically
from xpt.flops import traffic

BATCH = 32
BANDWIDTH = {80: ("A100", 2.04e12), 90: ("H100", 3.35e12), 100: ("B200", 8.0e12)}
"""Bytes/s of the data sheets, by compute capability; HBM gives about nine tenths of it."""
REACHABLE = 0.9


@dataclass(frozen=True, kw_only=True)
class Options:
    out: Path = Path("docs/kernels.md")
    capabilities: tuple[int, ...] = tuple(BANDWIDTH)
    """80 for sm_80."""


def main(args: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=args, description=__doc__)
    text = [_INTRODUCTION.format(triton=triton.__version__, batch=BATCH)]
    for capability in options.capabilities:
        name, bandwidth = BANDWIDTH[capability]
        text.append(f"## sm_{capability} ({name}, {bandwidth / 1e12:.2f} TB/s)\n\n{_HEADER}")
        for launch in launches():
            kernel = compile_kernel(launch.kernel, launch.arguments, launch.constants, capability)
            if kernel.stack_bytes or kernel.local_bytes:
                raise ValueError(
                    f"{launch.name}: {kernel.stack_bytes} bytes of stack and {kernel.local_bytes} of local "
                    f"memory for each thread on sm_{capability}, wanted 0: it spills. Use smaller blocks."
                )
            text.append(_row(launch, kernel, bandwidth))
        text.append("\n")
    write_atomically(options.out, "".join(text).rstrip() + "\n")
    print(f"wrote {options.out}")  # noqa: T201 - what a command line says


def _row(launch: Launch, kernel: CompiledKernel, bandwidth: float) -> str:
    moved = bytes_moved(launch)
    threads = 32 * launch.constants.get("num_warps", 4)
    cells = (
        launch.name,
        threads,
        kernel.registers,
        kernel.stack_bytes,
        kernel.local_bytes,
        f"{kernel.shared_bytes:,}",
        f"{widest(kernel.ptx, 'ld')} / {widest(kernel.ptx, 'st')}",
        barriers(kernel.ptx),
        f"{moved / 1e6:.1f}",
        f"{1e6 * moved / (REACHABLE * bandwidth):.1f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |\n"


def bytes_moved(launch: Launch) -> int:
    """Of the device's memory, for a batch of BATCH images."""
    ratio = 1 - launch.kept / (launch.kept + launch.predicted)
    floor = traffic(Config(mask=MaskConfig(ratio=ratio)), launch.dtype.itemsize)
    of_images = {
        "mask_gather": floor.mask_gather,
        "patch_loss": floor.patch_loss,
        "scale": 2 * launch.predicted * 256 * launch.dtype.itemsize,
    }
    return BATCH * of_images[launch.op]


_INTRODUCTION = """# The Triton kernels, as compiled

Written by `make kernels-report` with triton {triton}, without a GPU: each kernel is compiled as a launch at
1280 pixels (6,400 patches of 16 x 16, one channel) would compile it, and `cuobjdump` says what it takes.

- *registers*, *stack* (where spilled registers go), *local*: per thread; *shared*: bytes per program.
- *load / store*: bytes of the widest access of a thread; 16 is the most there is.
- *barriers*: places in the code where threads wait for each other. The bisection passes its own some 14
  times.
- *MB*, *us*: what must move for {batch} images, in sectors of 32 bytes, and the time for it at nine tenths of
  the data sheet's bandwidth: the floor, not a measurement. In `mask_gather` the latency of the selection is
  added to it. The scaling kernel reads one number where the factor is 1, as it is without accumulation.

"""
_HEADER = """| kernel | threads | registers | stack | local | shared | load / store | barriers | MB | us |
|---|---|---|---|---|---|---|---|---|---|
"""

if __name__ == "__main__":
    main()
