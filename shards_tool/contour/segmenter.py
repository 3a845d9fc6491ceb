"""A lung segmenter in an ONNX file, on one CPU thread: a film to maps of probability.

The signature, for `--contour onnx:FILE`:

- one input, float32 [N, 1, S, S] with S fixed: the film letterboxed to S x S, its grey between the 0.5th and
  the 99.5th percentile of the content scaled to 0..1, bone bright, padding 0; N is dynamic or 1.
- output `lung` (or the only output), float32 [N, 1, s, s]: the probability of lung, s at most S.
- output `chest`, if there is one: the same for the convex hull of both lungs.
- output `pose`, if there is one, float32 [N, 5]: the probability of each of the four clockwise quarter turns
  that would set the film upright, and of its being a negative.

Weights lie in the same file, so that its SHA-256 says which model it is.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime

from shards_tool.film import Grey
from shards_tool.letterbox import Box, letterbox

Map = npt.NDArray[np.float32]
SHIPPED = Path(__file__).with_name("weights.onnx")
"""The weights that come with the package; `MODEL.md` beside them says what they are."""
POSES = 5
_FINEST = 512
"""About how many pixels of the longest side are looked at: of larger films every so-many-th."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the network says of a film; maps are of the size of its input, letterboxed as that was."""

    lung: Map
    chest: Map | None
    turn: int
    """Clockwise quarter turns that would set the film upright."""
    is_negative: bool


class Segmenter:
    def __init__(self, path: Path) -> None:
        """
        Raises:
            ValueError: not such a file, or not of the signature above.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # the processes are the parallelism
        options.log_severity_level = 3
        # Of a model given as bytes, onnxruntime would look for external weights in the working directory.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        if not path.is_file():
            raise ValueError(f"--contour onnx:{path}: no such file")
        content = path.read_bytes()
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own kinds, none of which it exports
            raise ValueError(
                f"--contour onnx:{path}: not a model that onnxruntime can load: {error}. Weights that are in "
                "a file of their own have to be in this one: onnx.save(onnx.load(FILE), ANOTHER)"
            ) from error
        self.sha256 = hashlib.sha256(content).hexdigest()
        """Of the very bytes that are used."""
        inputs = self._session.get_inputs()
        names = [output.name for output in self._session.get_outputs()]
        shape = inputs[0].shape
        is_square = len(shape) == 4 and shape[1] == 1 and shape[2] == shape[3] and isinstance(shape[2], int)
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not is_square:
            got = ", ".join(f"{node.name} {node.type} {node.shape}" for node in inputs)
            raise ValueError(
                f"--contour onnx:{path}: inputs are {got}; wanted one, float32 [N, 1, S, S], S fixed"
            )
        if "lung" not in names and len(names) != 1:
            raise ValueError(f"--contour onnx:{path}: outputs are {', '.join(names)}; wanted one named lung")
        self.side: int = shape[2]
        self._input = inputs[0].name
        self._outputs = {name: name for name in ("chest", "pose") if name in names}
        self._outputs["lung"] = "lung" if "lung" in names else names[0]

    def canvas_of(self, pixels_HW: Grey) -> tuple[Map, Box]:
        """The network's view of a film of any size, all 0 for a blank one; and where the film lies in it."""
        step = max(1, round(max(pixels_HW.shape) / _FINEST))
        small, box = letterbox(
            np.ascontiguousarray(pixels_HW[step // 2 :: step, step // 2 :: step]), self.side
        )
        content = small[box.top : box.bottom, box.left : box.right]
        low, high = _percentiles(content, (0.005, 0.995))
        canvas = np.zeros((self.side, self.side), np.float32)
        if high > low:
            scaled = (content.astype(np.float32) - low) / (high - low)
            canvas[box.top : box.bottom, box.left : box.right] = scaled.clip(0, 1)
        return canvas, box

    def __call__(self, canvas: Map) -> Found:
        """
        Raises:
            ValueError: the outputs are not of the signature above.
        """
        names = list(self._outputs)
        film = np.ascontiguousarray(canvas, dtype=np.float32)[None, None]
        values = self._session.run([self._outputs[name] for name in names], {self._input: film})
        found = dict(zip(names, (np.asarray(value) for value in values), strict=True))
        for name in ("lung", "chest"):
            if name in found and (found[name].ndim != 4 or found[name].shape[:2] != (1, 1)):
                raise ValueError(
                    f"--contour onnx: output {name} has shape {found[name].shape}, wanted [N, 1, s, s]"
                )
        pose = found.get("pose", np.array([[1, 0, 0, 0, 0]], np.float32))
        if pose.shape != (1, POSES):
            raise ValueError(f"--contour onnx: output pose has shape {pose.shape}, wanted [N, {POSES}]")
        return Found(
            lung=self._full(found["lung"]),
            chest=self._full(found["chest"]) if "chest" in found else None,
            turn=int(pose[0, : POSES - 1].argmax()),
            is_negative=bool(pose[0, POSES - 1] > 0.5),
        )

    def _full(self, values: npt.NDArray[np.float32]) -> Map:
        return cv2.resize(values[0, 0], (self.side, self.side), interpolation=cv2.INTER_LINEAR)


def _percentiles(values: Grey, shares: tuple[float, ...]) -> list[float]:
    """The least grey that each share of the pixels does not exceed; counted, for a tenth of NumPy's time."""
    counted = np.bincount(values.ravel()).cumsum()
    return [float(np.searchsorted(counted, share * values.size)) for share in shares]
