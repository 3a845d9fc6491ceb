"""Mean squared error of predicted patches, from the uint8 image, with its gradient in the same pass."""

from kernels.patch_loss.op import patch_loss

__all__ = ["patch_loss"]
