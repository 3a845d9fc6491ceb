"""Which implementation of an op runs."""

import os
from typing import Literal, get_args

import torch

Backend = Literal["auto", "torch", "triton"]
"""`auto`: the Triton kernel for CUDA tensors, plain PyTorch for others."""


def use_triton(backend: Backend, device: torch.device) -> bool:
    """True where the Triton kernel is to run.

    Raises:
        ValueError: for an unknown backend, or for `triton` on a device without it.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend: got {backend!r}, wanted one of {', '.join(get_args(Backend))}")
    if backend == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"backend: 'triton' needs CUDA tensors, got tensors on {device}; use backend='torch', or set "
            "TRITON_INTERPRET=1 before triton is imported to run the kernel in Triton's interpreter"
        )
    return backend == "triton" or (backend == "auto" and device.type == "cuda")
