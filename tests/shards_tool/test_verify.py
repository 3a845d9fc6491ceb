import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards_tool.files import write_whole
from shards_tool.schema import INDEX, MANIFEST, SAMPLES
from shards_tool.tables import file_sha256
from shards_tool.verify import verify


def first_tar(data: Path) -> Path:
    return min(data.glob("train/*.tar"))


def faults(data: Path) -> list[str]:
    return [f"{fault.where} {fault.key}: {fault.what}" for fault in verify(data, workers=0).faults]


def bless(data: Path) -> None:
    """Make the manifest's checksums fit what is there, so that only deeper checks can object."""
    manifest = json.loads((data / MANIFEST).read_bytes())
    for split, content in manifest["splits"].items():
        for shard in content["shards"]:
            path = data / split / shard["name"]
            shard["sha256"], shard["bytes"] = file_sha256(path), path.stat().st_size
    manifest["tables"] = {name: file_sha256(data / name) for name in manifest["tables"]}
    write_whole(data / MANIFEST, json.dumps(manifest).encode())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sound_data_set_has_no_faults(whole: Path, workers: int):
    verdict = verify(whole, workers=workers)
    assert verdict.faults == [] and sum(row["samples"] for row in verdict.splits.values()) == 7


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def truncate(data: Path) -> None:
    path = first_tar(data)
    path.write_bytes(path.read_bytes()[:-11000])


def flip_in_image(data: Path) -> None:
    flip(first_tar(data), int(np.load(data / "train" / INDEX)[0]["image_offset"]) + 400)


def flip_in_index(data: Path) -> None:
    flip(data / "train" / INDEX, (data / "train" / INDEX).stat().st_size - 30)


def remove_shard(data: Path) -> None:
    first_tar(data).unlink()


def remove_idx(data: Path) -> None:
    first_tar(data).with_suffix(".idx").unlink()


def remove_index(data: Path) -> None:
    (data / "train" / INDEX).unlink()


def spoil_idx(data: Path) -> None:
    path = first_tar(data).with_suffix(".idx")
    path.write_text(path.read_text().replace("jpg", "png", 1))


def add_stray(data: Path) -> None:
    (data / "train" / "shard-000099.tar").write_bytes(b"x")


def wrong_counts(data: Path) -> None:
    manifest = json.loads((data / MANIFEST).read_bytes())
    manifest["counts"]["quarantined"] += 1
    (data / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, ["bytes, the manifest says", "SHA-256 differs", "damaged tar"]),
        (flip_in_image, ["SHA-256 differs", "image_crc32 differ from the tar"]),
        (flip_in_index, ["SHA-256 differs", "differ from the tar"]),
        (remove_shard, ["cannot be read: No such file"]),
        (remove_idx, [".idx : missing"]),
        (remove_index, ["index.npy : missing", "has no rows"]),
        (spoil_idx, ["differs from the tar"]),
        (add_stray, ["does not belong"]),
        (wrong_counts, ["do not add up", "rows of quarantined, the manifest says"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_found(data: Path, damage: Callable[[Path], None], words: list[str]):
    damage(data)
    found = faults(data)
    for word in words:
        assert any(word in fault for fault in found), found


def rewrite(data: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Replace contents in the first training shard, and make all checksums fit again."""
    path = first_tar(data)
    with tarfile.open(path) as tar:
        contents = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    from shards_tool.tar import TarWriter, idx_text

    samples: dict[str, list] = {}
    with path.open("wb") as file:
        tar = TarWriter(file)
        for name, content in contents:
            samples.setdefault(name.split(".")[0], []).append(tar.add(name, change(name, content)))
        tar.finish()
    path.with_suffix(".idx").write_text(idx_text(list(samples.values())))
    bless(data)


def png(pixels: np.ndarray) -> bytes:
    import cv2

    return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.mark.parametrize(
    ("suffix", "content", "word"),
    [
        (".jpg", b"no picture", "the image does not decode"),
        (".jpg", png(np.zeros((64, 32), np.uint8)), "the image is (64, 32) uint8, wanted (64, 64)"),
        (".jpg", png(np.zeros((64, 64, 3), np.uint8)), "the image is (64, 64, 3)"),
        (".contour.png", png(np.full((8, 8), 7, np.uint8)), "other values than 0, 128 and 255"),
        (".json", b"{", "damaged JSON"),
        (".json", b"[" * 200_000, "nested too deeply"),
        (".json", b" " * 2**20 + b"{}", "1048578 bytes of JSON, more than 1048576"),
        (".json", b"{}", "fields missing"),
    ],
)
def test_a_wrong_file_is_found_even_under_right_checksums(data: Path, suffix: str, content: bytes, word: str):
    rewrite(data, lambda name, old: content if name.endswith(suffix) else old)
    assert any(word in fault for fault in faults(data)), faults(data)


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("age", "forty", "age is 'forty'"),
        ("labels", {"Nodule": 3}, "labels is"),
        ("box", [0, 0, 64, 65], "lies outside"),
        ("box", [0, 0, 0, 64], "box is"),
        ("key", "0" * 16, "its record is that of 0000"),
        ("name", "Doe^Jane", "unknown: ['name']"),
        ("sex", "M", "samples.parquet"),
    ],
)
def test_a_wrong_record_is_found(data: Path, field: str, value: object, word: str):
    def change(name: str, old: bytes) -> bytes:
        return json.dumps({**json.loads(old), field: value}).encode() if name.endswith(".json") else old

    rewrite(data, change)
    assert any(word in fault for fault in faults(data)), faults(data)


def test_a_patient_in_two_splits_is_found(data: Path):
    table = pq.read_table(data / SAMPLES)
    patients = pa.array(["same"] * table.num_rows)
    pq.write_table(
        table.set_column(table.schema.get_field_index("patient"), "patient", patients), data / SAMPLES
    )
    bless(data)
    assert any("patient same is in train and" in fault for fault in faults(data))


def test_faults_of_a_shard_are_shown_up_to_a_bound(data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shards_tool.shard_check.MAX_SHOWN", 2)
    rewrite(data, lambda name, old: b"x" if name.endswith(".jpg") else old)
    assert sum("the image does not decode" in fault for fault in faults(data)) <= 2
    assert any(fault.endswith("and more") for fault in faults(data))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "no data set"),
        (b"{", "damaged"),
        (b"[]", "damaged"),
        (b"{}", "damaged"),
        (b'{"format_version": 2}', "format version 2; this program reads version 1"),
    ],
)
def test_no_data_set_is_an_error_of_its_own(tmp_path: Path, content: bytes | None, word: str):
    if content is not None:
        (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ValueError, match=word):
        verify(tmp_path, workers=0)


def test_an_unfinished_build_is_named_as_such(tmp_path: Path):
    (tmp_path / ".build").mkdir()
    with pytest.raises(ValueError, match="unfinished build"):
        verify(tmp_path, workers=0)


def test_any_flipped_byte_of_a_shard_is_found_and_never_a_crash(data: Path):
    path = first_tar(data)
    sound = path.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(sound), 40):
        flip(path, int(at))
        assert verify(data, workers=0).faults
        path.write_bytes(sound)
    assert verify(data, workers=0).faults == []
