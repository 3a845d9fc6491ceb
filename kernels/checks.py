"""Checks of what callers pass in, shared by the ops."""

import torch
from torch import Tensor


def check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    """Raises ValueError unless the tensor has this shape, one of these dtypes, and is on this device."""
    if tuple(tensor.shape) != shape or tensor.dtype not in dtypes or tensor.device != device:
        raise ValueError(
            f"{name}: got {tensor.dtype} of shape {list(tensor.shape)} on {tensor.device}, "
            f"wanted {' or '.join(map(str, dtypes))} of shape {list(shape)} on {device}"
        )


def check_ids(ids: Tensor, length: int) -> None:
    """Raises ValueError where ids on the CPU are not in [0, length).

    On other devices the check would make the host wait for the device.
    """
    if ids.device.type != "cpu" or ids.numel() == 0:
        return
    low, high = ids.aminmax()
    if low < 0 or high >= length:
        raise ValueError(
            f"ids: got {int(low)} to {int(high)}, wanted 0 to {length - 1}, as an image has {length} patches"
        )
