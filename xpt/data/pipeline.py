"""Decode and crop with DALI, the same graph on CPU and GPU.

Bytes and windows come from outside, so DALI holds no state of its own: what it returns depends on
what it was fed, not on its threads.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import DALIDataType, DALIImageType, DALIInterpType
from torch import Tensor

from xpt.data.batch import CONTOUR_SAMPLES
from xpt.data.crop import Windows
from xpt.data.reader import Sample


class PicturePipeline:
    """Encoded films and contours in, cropped squares out, `depth` batches in flight.

    Feed `depth` batches before the first `take`, then one for each taken. `keeps_frame` promises that
    every window is the full frame and that the stored side is `side`: images are then only decoded.
    """

    def __init__(
        self,
        *,
        batch: int,
        side: int,
        grid: int,
        threads: int,
        depth: int,
        keeps_frame: bool,
        device: torch.device,
    ) -> None:
        assert device.type == "cpu" or device.index is not None
        self._device = device
        self._depth = depth
        self._fed = 0
        self._pipeline = Pipeline(
            batch_size=batch,
            num_threads=threads,
            device_id=device.index if device.type == "cuda" else None,
            prefetch_queue_depth=depth,
        )
        decoder = "mixed" if device.type == "cuda" else "cpu"
        with self._pipeline:
            start: Any = fn.external_source(name="start", dtype=DALIDataType.FLOAT, ndim=1)
            end: Any = fn.external_source(name="end", dtype=DALIDataType.FLOAT, ndim=1)
            image: Any = _decoded("image", decoder)
            contour: Any = _decoded("contour", decoder)
            window = {"roi_start": start, "roi_end": end, "roi_relative": True}
            if not keeps_frame:
                # Cubic keeps fine lines where a small crop is enlarged; triangular (linear with
                # antialiasing) does not alias where it is reduced. Both return an unscaled picture as is.
                image = fn.resize(
                    image,
                    size=[side, side],
                    min_filter=DALIInterpType.INTERP_LINEAR,
                    mag_filter=DALIInterpType.INTERP_CUBIC,
                    **window,
                )
            contour = fn.resize(
                contour, size=[CONTOUR_SAMPLES * grid] * 2, interp_type=DALIInterpType.INTERP_NN, **window
            )
            self._pipeline.set_outputs(image, contour)
        self._pipeline.build()

    def feed(self, samples: Sequence[Sample], windows: Windows) -> None:
        """Hand over the next batch; its bytes are copied."""
        self._pipeline.feed_input("image", [sample.image for sample in samples])
        self._pipeline.feed_input("contour", [sample.contour for sample in samples])
        self._pipeline.feed_input("start", windows.start_B2)
        self._pipeline.feed_input("end", windows.end_B2)
        self._fed += 1
        if self._fed >= self._depth:
            # The first call starts as many runs as the queue is deep, each later one starts one.
            self._pipeline.schedule_run()

    def take(self) -> tuple[UInt8[Tensor, "B 1 S S"], UInt8[Tensor, "B C C"]]:
        """The oldest batch fed: images and contour values, on the device, without a copy.

        Raises RuntimeError where DALI cannot decode one of them; the pipeline is of no use after that.
        """
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        # Bound to torch's stream, a GPU batch needs no synchronisation with the host. DALI's default
        # executor counts references to its outputs: they live as long as the tensors.
        outputs = self._pipeline.share_outputs(cuda_stream=stream)
        image_BSS1, contour_BCC1 = (torch.from_dlpack(output.as_tensor()) for output in outputs)
        self._pipeline.release_outputs()
        return image_BSS1.movedim(-1, 1), contour_BCC1[..., 0]

    def close(self) -> None:
        """End DALI's threads; what was taken stays valid. Closing twice does nothing."""
        # The destructor is the public way to shut a DALI pipeline down.
        if hasattr(self, "_pipeline"):
            del self._pipeline


def _decoded(name: str, decoder: str) -> Any:  # noqa: ANN401  DALI's graph nodes have no public type
    """Grey pixels of 8 bits; those of 16 bits are scaled by 1/257 and rounded."""
    encoded = fn.external_source(name=name, dtype=DALIDataType.UINT8, ndim=1)
    return fn.decoders.image(
        encoded, device=decoder, output_type=DALIImageType.GRAY, adjust_orientation=False
    )
