"""Peak memory of a build's parent process, over everything that it does itself, for many synthetic films."""

import contextlib
import hashlib
import io
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from shards_tool.assemble import finalise
from shards_tool.ledger import Ledger
from shards_tool.ledger_rows import Made, Piece, ShardFile
from shards_tool.plan import input_sha256, plan_samples, shard_tasks
from shards_tool.scan import Scanned
from shards_tool.schema import KEY_LENGTH, SPLITS
from shards_tool.settings import BuildSettings
from shards_tool.settle import settle
from shards_tool.shard import index_entry, record_text
from shards_tool.sources import Found, Root
from shards_tool.tables import write_quarantine
from shards_tool.tar import Member
from shards_tool.verify import verify

_BATCH = 10_000
_PATIENTS = 3
"""Films of a patient."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    seconds: float
    """Process time."""
    peak_mb: float
    """Resident memory at its highest so far."""


def memory_of_a_build(entries: int) -> list[Stage]:
    """Run the stages of a build in a fresh process: all but reading films and copying pictures."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(entries, theirs))
    process.start()
    theirs.close()
    stages = []
    with contextlib.suppress(EOFError):
        while True:
            stages.append(ours.recv())
    process.join()
    assert process.exitcode == 0, f"ended with exit code {process.exitcode}"
    return stages


def _run(entries: int, pipe: Connection) -> None:
    def stage(name: str, work: Callable[[], object]) -> None:
        before = time.process_time()
        work()
        seconds = time.process_time() - before
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        pipe.send(Stage(name=name, seconds=seconds, peak_mb=peak))

    settings = BuildSettings()
    recorded = settings.recorded()
    key = b"k" * 32
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        out = Path(folder)
        ledger = Ledger(out / "ledger.sqlite")
        root = Root(place=str(out), spool=out / "spool")
        stage("start", lambda: None)
        stage("note what scanning found", lambda: _scanned(ledger, entries))
        stage("plan", lambda: plan_samples(ledger, [], (root,), key, settings))
        stage("fingerprint of the input", lambda: input_sha256(ledger, recorded))
        stage("note what was made", lambda: _made(ledger))
        stage("duplicates and splits", lambda: settle(ledger, settings, key, None))
        stage("shards", lambda: _shards(ledger, out, settings, recorded))
        left_out: dict[str, int] = {}
        stage("quarantine table", lambda: left_out.update(write_quarantine(ledger.left_out(), out)))
        stage("tables and manifest", lambda: finalise(ledger, out, {"settings": recorded}, left_out))
        ledger.close()
        (out / "ledger.sqlite").unlink()
        stage("verify's parent", lambda: verify(out, workers=0, pictures=False))


def _digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def _scanned(ledger: Ledger, entries: int) -> None:
    """Nine of ten are films, the others in quarantine."""
    for start in range(0, entries, _BATCH):
        ledger.add_inputs(
            Scanned(
                found=Found(source=0, path=f"folder {number // 1000}/film {number}.dcm", size=1, mtime_ns=1),
                state="quarantine" if number % 10 == 9 else "film",
                reason="damaged" if number % 10 == 9 else "",
                digest=_digest(number),
                patient=_digest(number // _PATIENTS)[:KEY_LENGTH],
                study=_digest(number)[:KEY_LENGTH],
                view="PA",
            )
            for number in range(start, min(start + _BATCH, entries))
        )


def _made(ledger: Ledger) -> None:
    """Looks with bits as unequal as those of real films; one film in a hundred is a near copy of another."""
    rng = np.random.default_rng(0)
    bias = rng.beta(4, 4, 256)
    bias[-1] = 0
    total = ledger.list_films_to_make()
    last = np.packbits(rng.random(256) < bias)
    for number, films in enumerate(ledger.films_to_make(_BATCH)):
        looks = np.packbits(rng.random((len(films), 256)) < bias, axis=1)
        looks[::100] = last
        last = looks[1]
        ledger.add_made(
            Made(
                digest=film.digest,
                mask_sha256=film.mask_sha256,
                view=film.view,
                pack=f"pack-{number:08d}.bin",
                image=Piece(offset=0, size=400_000, crc32=1),
                contour=Piece(offset=400_000, size=900, crc32=2),
                facts=json.dumps(_facts(film.digest, look.tobytes())),
            )
            for film, look in zip((item.film for item in films), looks, strict=True)
        )
    assert total == ledger.count_samples()


def _facts(digest: str, look: bytes) -> dict[str, object]:
    return {
        "original_height": 2500,
        "original_width": 2048,
        "bits_stored": 12,
        "photometric": "MONOCHROME2",
        "window": "linear",
        "repairs": [],
        "orientation": "",
        "burned_in": False,
        "box": [0, 115, 1280, 1164],
        "contour": "rect",
        "pixel_hash": digest,
        "perceptual_hash": look.hex(),
    }


def _shards(ledger: Ledger, out: Path, settings: BuildSettings, recorded: dict[str, object]) -> None:
    """What the parent does for each shard, with made-up places in the tars."""
    for split in SPLITS:
        (out / split).mkdir()
    members = [Member(name="", offset=512 * i, size=500, crc32=i) for i in range(3)]
    for task in shard_tasks(ledger, settings.shard_size, recorded):
        rows = [
            (index_entry(sample.record, task.number, members).tobytes(), record_text(sample.record))
            for sample in task.samples
        ]
        file = ShardFile(
            split=task.split,
            number=task.number,
            plan=task.plan,
            samples=len(rows),
            bytes=1,
            sha256="0" * 64,
        )
        ledger.add_shard(file, rows)
