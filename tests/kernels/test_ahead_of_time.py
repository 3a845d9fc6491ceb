"""Every kernel compiles for the GPUs it is meant for, without one, and keeps its numbers in registers."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: this process interprets kernels", allow_module_level=True)

from kernels.ahead_of_time import compile_kernel, widest
from kernels.catalogue import Launch, launches, patch_loss_launch

CAPABILITIES = [80, 90, 100]
LAUNCHES = {launch.name: launch for launch in launches()}


@pytest.mark.parametrize("name", LAUNCHES)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_nothing_spills_at_1280_pixels_and_memory_moves_in_vectors_of_16_bytes(capability, name):
    kernel = compiled(LAUNCHES[name], capability)
    assert kernel.cubin.startswith(b"\x7fELF")
    assert f".target sm_{capability}" in kernel.ptx
    assert kernel.stack_bytes == kernel.local_bytes == 0
    assert widest(kernel.ptx, "ld") == widest(kernel.ptx, "st") == 16


def test_without_autograd_the_patch_loss_stores_no_vectors():
    launch = patch_loss_launch("", torch.float32, normalize=False, with_gradient=False)
    assert widest(compiled(launch, 90).ptx, "st") == 4


def test_the_width_of_an_access_is_read_from_ptx():
    ptx = "ld.global.b8 a;\n@%p1 ld.global.L1::evict_last.v4.b32 b;\nst.global.v2.b64 c;\nst.shared.v4.b32 d;"
    assert (widest(ptx, "ld"), widest(ptx, "st"), widest("", "ld")) == (16, 16, 0)


def compiled(launch: Launch, capability: int):
    return compile_kernel(launch.kernel, launch.arguments, launch.constants, capability)
