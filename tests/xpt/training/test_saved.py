"""Checkpoints as they lie on disk; their files are stand-ins."""

import dataclasses
import errno
import hashlib
import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpt.config import demo
from xpt.training import saved
from xpt.training.checkpoint import Job
from xpt.training.saved import DESCRIPTION, Checkpoint, newest, sealed, surplus

JOB = Job(config=demo(), data_hash="0" * 64, world_size=2, zero_stage=2)


def write(run: Path, images: int, job: Job = JOB, val_loss: float | None = None) -> Path:
    folder = run / "checkpoints" / f"images-{images:012d}"
    (folder / "state").mkdir(parents=True)
    content = f"weights after {images}".encode()
    (folder / "state" / "model.pt").write_bytes(content)
    description = {
        "images": images,
        "config": dataclasses.asdict(job.config),
        "data_hash": job.data_hash,
        "world_size": job.world_size,
        "zero_stage": job.zero_stage,
        "val_loss": val_loss,
        "files": {"state/model.pt": hashlib.sha256(content).hexdigest()},
    }
    (folder / DESCRIPTION).write_text(json.dumps(sealed(json.loads(json.dumps(description)))))
    return folder


def test_a_new_run_has_none(tmp_path: Path):
    assert newest(tmp_path) is None


def test_the_newest_is_taken(tmp_path: Path):
    for images in (900, 1_000_000, 10_000):
        write(tmp_path, images)
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.images == 1_000_000


def test_one_that_was_being_written_is_not_seen(tmp_path: Path):
    write(tmp_path, 10)
    write(tmp_path, 20).rename(tmp_path / "checkpoints" / ".images-000000000020.tmp")
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.images == 10


def flip_byte(folder: Path):
    path = folder / "state" / "model.pt"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def test_who_only_reads_renames_nothing(tmp_path: Path):
    write(tmp_path, 10)
    flip_byte(write(tmp_path, 20))
    before = sorted((tmp_path / "checkpoints").iterdir())
    found = newest(tmp_path, set_aside=False)
    assert found is not None and found.images == 10
    assert sorted((tmp_path / "checkpoints").iterdir()) == before
    assert newest(tmp_path) == found
    assert (tmp_path / "checkpoints" / "damaged-images-000000000020").exists()


DAMAGE = {
    "flipped byte": flip_byte,
    "truncated file": lambda f: (f / "state" / "model.pt").write_bytes(b"w"),
    "missing file": lambda f: (f / "state" / "model.pt").unlink(),
    "missing description": lambda f: (f / DESCRIPTION).unlink(),
    "half a description": lambda f: (f / DESCRIPTION).write_text('{"images": 20'),
    "description of files elsewhere": lambda f: (f / DESCRIPTION).write_text(
        json.dumps(sealed(json.loads((f / DESCRIPTION).read_text()) | {"files": {"../../../model.pt": "0"}}))
    ),
    "endless description": lambda f: (f / DESCRIPTION).write_text("[" * 200_000),
    "description of another kind": lambda f: (f / DESCRIPTION).write_text("[1]"),
    "changed description": lambda f: (f / DESCRIPTION).write_text(
        (f / DESCRIPTION).read_text().replace('"images": 20', '"images": 21')
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_skipped_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
):
    write(tmp_path, 10)
    DAMAGE[damage](write(tmp_path, 20))
    with caplog.at_level(logging.WARNING):
        checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.images == 10
    assert "images-000000000020 is damaged" in caplog.text
    # It no longer stands where training will write its own after 20 images.
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["damaged-images-000000000020", "images-000000000010"]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_again(tmp_path: Path):
    for images in (10, 20):
        flip_byte(write(tmp_path, images))
    with pytest.raises(ValueError, match=r"none of 2 checkpoints is intact.*move the folder away"):
        newest(tmp_path)


def test_a_checkpoint_that_cannot_be_read_now_is_neither_passed_over_nor_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path, 10)
    folder = write(tmp_path, 20)

    def away(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(saved, "hash_of", away)
    with pytest.raises(ValueError, match=r"Input/output error.*Mend the file system"):
        newest(tmp_path)
    assert folder.is_dir()


def test_a_folder_of_checkpoints_that_cannot_be_listed_is_no_new_run(tmp_path: Path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(NotADirectoryError):
        newest(tmp_path)


def test_a_run_whose_latest_checkpoint_is_gone_does_not_start_again(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("images-000000000010\n")
    with pytest.raises(ValueError, match="none of 0 checkpoints is intact"):
        newest(tmp_path)


def made(images: int, val_loss: float | None = None) -> Checkpoint:
    return Checkpoint(folder=Path(f"images-{images}"), description={"images": images, "val_loss": val_loss})


def test_the_last_one_per_so_many_images_and_the_best_stay():
    losses = {10: 0.9, 20: 0.3, 30: None, 40: 0.5, 50: None, 60: 0.4, 70: None}
    checkpoints = [made(images, loss) for images, loss in losses.items()]

    def staying(**rules) -> list[int]:
        gone = {c.images for c in surplus(checkpoints, **rules)}
        return [images for images in losses if images not in gone]

    assert staying(last=2, every=0, best=False) == [60, 70]
    assert staying(last=2, every=0, best=True) == [20, 60, 70]
    assert staying(last=1, every=25, best=False) == [30, 50, 70]
    assert staying(last=9, every=0, best=False) == list(losses)


@given(st.sets(st.integers(1, 60), min_size=1), st.integers(1, 3), st.sampled_from([0, 7, 20]))
def test_removing_after_each_checkpoint_keeps_what_removing_at_the_end_would(
    images: set[int], last: int, every: int
):
    """A run that is pruned while it trains ends with what pruning it once leaves."""
    kept: list[Checkpoint] = []
    for count in sorted(images):
        kept.append(made(count, val_loss=(count * 37 % 11) / 11))
        gone = surplus(kept, last=last, every=every, best=True)
        kept = [c for c in kept if c not in gone]
    everything = [made(count, val_loss=(count * 37 % 11) / 11) for count in sorted(images)]
    gone = surplus(everything, last=last, every=every, best=True)
    assert kept == [c for c in everything if c not in gone]
