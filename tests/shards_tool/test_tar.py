import gc
import io
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards_tool.build import build
from shards_tool.schema import INDEX
from shards_tool.tar import TarWriter, idx_text
from tests.shards_tool.archive import FILMS, SMALL


def test_the_tar_is_plain_has_no_traces_and_its_offsets_are_right():
    file = io.BytesIO()
    tar = TarWriter(file)
    contents = {"a.jpg": b"", "a.json": b"x" * 512, "b.jpg": b"y" * 700}
    members = [tar.add(name, content) for name, content in contents.items()]
    tar.finish()
    data = file.getvalue()
    assert len(data) == tar.bytes and len(data) % tarfile.RECORDSIZE == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        infos = archive.getmembers()
    assert [info.name for info in infos] == list(contents)
    assert {(info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) for info in infos} == {
        (0, 0, 0, "", "", 0o444)
    }
    for member in members:
        content = data[member.offset : member.offset + member.size]
        assert content == contents[member.name] and zlib.crc32(content) == member.crc32


@pytest.fixture
def shards(archive: Path, key_file: Path, tmp_path: Path) -> Path:
    build([archive], tmp_path / "data", SMALL, key_file=key_file, workers=0)
    return tmp_path / "data"


def test_the_idx_is_byte_for_byte_that_of_dalis_tool(shards: Path, tmp_path: Path):
    from wds2idx import IndexCreator

    tars = sorted(shards.glob("*/*.tar"))
    assert len(tars) >= 2
    for path in tars:
        creator = IndexCreator(str(path), str(tmp_path / "idx"), verbose=False)
        creator.create_index()
        creator.close()
        assert path.with_suffix(".idx").read_bytes() == (tmp_path / "idx").read_bytes()


def test_an_empty_idx_names_its_version():
    assert idx_text([]) == "v1.2 0\n"


# webdataset leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_the_shards(shards: Path):
    from webdataset.compat import WebDataset

    paths = [str(path) for path in sorted(shards.glob("*/*.tar"))]
    dataset: Any = WebDataset(paths, shardshuffle=False).decode("l8")
    samples = list(dataset)
    gc.collect()
    assert len(samples) == FILMS
    for sample in samples:
        assert sample["jpg"].shape == (64, 64) and sample["jpg"].dtype == np.uint8
        assert set(np.unique(sample["contour.png"])) <= {0, 128, 255} and sample["contour.png"].shape == (
            8,
            8,
        )
        assert sample["json"]["key"] == sample["__key__"]


def test_dalis_own_webdataset_reader_reads_the_shards(shards: Path):
    dali: Any = pytest.importorskip("nvidia.dali")
    fn: Any = pytest.importorskip("nvidia.dali.fn")

    paths = sorted(shards.glob("*/*.tar"))
    entries = np.concatenate([np.load(shards / split / INDEX) for split in ("test", "train", "val")])

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def reader():
        image, contour, text = fn.readers.webdataset(
            paths=[str(path) for path in paths],
            index_paths=[str(path.with_suffix(".idx")) for path in paths],
            ext=["jpg", "contour.png", "json"],
        )
        return fn.decoders.image(image, device="cpu", output_type=dali.types.GRAY), contour, text

    pipeline = reader()
    pipeline.build()
    for entry in entries:
        image, contour, text = (output.at(0) for output in pipeline.run())
        assert image.shape == (64, 64, 1)
        assert zlib.crc32(contour.tobytes()) == entry["contour_crc32"]
        assert zlib.crc32(text.tobytes()) == entry["json_crc32"]
