"""Compiling a Triton kernel for a GPU that is not there, to see what the compiler made of it.

Triton asks its active driver for the target alone, so a stand-in that names one gives the kernel that a
launch with these arguments would compile. Not in a process with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

if TYPE_CHECKING:
    from triton.runtime.jit import JITFunction


@dataclass(frozen=True, kw_only=True)
class CompiledKernel:
    """What ptxas reports of a kernel; bytes and registers are per thread but for `shared_bytes`."""

    capability: int
    """90 for sm_90."""
    registers: int
    stack_bytes: int
    """Spilled registers and arrays in local memory."""
    local_bytes: int
    shared_bytes: int
    """Per program."""
    ptx: str
    cubin: bytes


def compile_kernel(
    kernel: JITFunction[Any], arguments: tuple[object, ...], constants: dict[str, Any], capability: int
) -> CompiledKernel:
    """The kernel as a launch with these arguments and constants compiles it for compute capability
    `capability` (90 for sm_90). Tensors may lie on any device; their dtype and alignment count."""
    with _target(capability):
        compiled = kernel.warmup(*arguments, grid=(1,), **constants)
    usage = _resource_usage(compiled.asm["cubin"])
    return CompiledKernel(
        capability=capability,
        registers=usage["REG"],
        stack_bytes=usage["STACK"],
        local_bytes=usage["LOCAL"],
        shared_bytes=compiled.metadata.shared,
        ptx=compiled.asm["ptx"],
        cubin=compiled.asm["cubin"],
    )


def widest(ptx: str, kind: str) -> int:
    """Bytes that the widest load ("ld") or store ("st") of a thread moves to or from global memory."""
    accesses = re.findall(rf"\b{kind}\.global[\w:.]*?(?:\.v(\d))?\.[bfus](\d+)\b", ptx)
    return max((int(count or 1) * int(bits) // 8 for count, bits in accesses), default=0)


def barriers(ptx: str) -> int:
    """Places where the threads of a program wait for each other."""
    return len(re.findall(r"\bbar(?:rier)?\.(?:cta\.)?sync\b", ptx))


class _StandIn:
    """The three questions that Triton asks a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        # Triton keeps compiled kernels by device number; a real device must not find these.
        return 1_000_000 + self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


@contextmanager
def _target(capability: int) -> Iterator[None]:
    # reset_active() looks for a GPU, and fails where there is none.
    before = driver._active
    driver.set_active(_StandIn(capability))  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        driver.set_active(before)  # pyright: ignore[reportArgumentType]


def _resource_usage(cubin: bytes) -> dict[str, int]:
    """REG, STACK, SHARED and LOCAL of the one function in the cubin."""
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(
            [cuobjdump, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    functions = re.findall(r"REG:\d+.*", report)
    assert len(functions) == 1, report
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", functions[0])}
