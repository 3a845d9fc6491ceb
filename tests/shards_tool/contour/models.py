"""Segmenters of a known function, for the signature of `--contour onnx:FILE`."""

from pathlib import Path

import numpy as np
import onnx


def save_model(
    path: Path,
    *,
    shape: tuple[object, ...] = ("n", 1, 64, 64),
    output: str = "lung",
    most: float = 1.0,
    weights: str = "",
) -> Path:
    """A model that says: what is dark is lung, with a probability of at most `most`.

    Args:
        weights: name of the file beside it that holds its weights; "" keeps them in the model's own.
    """
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Sub", ["most", "film"], [output])],
        "dark",
        [helper.make_tensor_value_info("film", kind, shape)],
        [helper.make_tensor_value_info(output, kind, shape)],
        [onnx.numpy_helper.from_array(np.array([most], np.float32), "most")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    apart = {"save_as_external_data": True, "location": weights, "size_threshold": 0} if weights else {}
    onnx.save(model, path, **apart)
    return path
