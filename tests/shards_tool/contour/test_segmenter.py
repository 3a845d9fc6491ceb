"""Models of a known function, made here, through the signature of `--contour onnx:FILE`."""

from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from shards_tool.contour import contour_finder
from shards_tool.contour.segmenter import Segmenter
from shards_tool.letterbox import full_mask
from tests.shards_tool.contour.models import save_model


def film() -> np.ndarray:
    pixels = np.full((400, 300), 200, np.uint8)
    pixels[100:300, 50:130] = pixels[100:300, 170:250] = 10
    return pixels


def test_another_model_finds_what_it_is_made_for(tmp_path: Path):
    model = save_model(tmp_path / "dark.onnx", shape=("n", 1, 256, 256))
    finder = contour_finder(f"onnx:{model}")
    contour = finder(film(), PurePosixPath("x.png"))
    assert contour.method == "network" and contour.orientation == "upright"
    is_lung = film() == 10
    mask_HW = full_mask(contour.mask_hw, *is_lung.shape)
    assert np.mean((mask_HW == 255) != is_lung) < 0.01
    assert (mask_HW[110:290, 140:160] == 128).all()


def test_a_closer_look_sees_more_than_the_whole_film_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A small chest in a large film, and a network of 64 pixels: an edge moves by no pixel of its own."""
    pixels = np.full((1000, 1000), 200, np.uint8)
    pixels[301:698, 303:451] = pixels[301:698, 545:693] = 10
    finder = contour_finder(f"onnx:{save_model(tmp_path / 'dark.onnx')}")
    wrong = []
    for sure in (0.0, 2.0):
        monkeypatch.setattr("shards_tool.contour.finder._SURE", sure)
        contour = finder(pixels, PurePosixPath("x.png"))
        assert contour.method == "network"
        wrong.append(np.count_nonzero((full_mask(contour.mask_hw, 1000, 1000) == 255) != (pixels == 10)))
    once, closer = wrong
    assert closer < 0.6 * once, wrong


def test_the_network_sees_the_film_letterboxed_and_stretched(tmp_path: Path):
    segment = Segmenter(save_model(tmp_path / "dark.onnx"))
    canvas, box = segment.canvas_of(film().astype(np.uint16) * 50)
    assert canvas.shape == (64, 64) and box.as_tuple() == (0, 8, 64, 56)
    assert (canvas[:, :8] == 0).all() and canvas.min() == 0 and canvas.max() == 1
    assert segment(canvas).lung.shape == (64, 64)
    blank, _ = segment.canvas_of(np.full((100, 100), 77, np.uint8))
    assert not blank.any()


@pytest.mark.parametrize(
    ("shape", "output", "word"),
    [
        (("n", 3, 64, 64), "lung", "wanted one, float32"),
        (("n", 1, "h", "w"), "lung", "wanted one, float32"),
        (("n", 1, 64, 48), "lung", "wanted one, float32"),
    ],
)
def test_models_of_another_signature_are_refused(
    tmp_path: Path, shape: tuple[object, ...], output: str, word: str
):
    with pytest.raises(ValueError, match=word):
        contour_finder(f"onnx:{save_model(tmp_path / 'odd.onnx', shape=shape, output=output)}")


def test_what_is_no_model_is_refused(tmp_path: Path):
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="not a model"):
        contour_finder(f"onnx:{tmp_path / 'x.onnx'}")


def test_weights_in_a_file_of_their_own_are_refused_wherever_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They could change under the model's hash."""
    model = save_model(tmp_path / "dark.onnx", weights="dark.data")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a file of their own have to be in this one"):
        contour_finder(f"onnx:{model}")
