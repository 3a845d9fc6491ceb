"""How fast films become shards, against a plain loop; how fast shards are checked; memory at many entries.

    python -m benchmarks.shards [--json FILE]
    python -m benchmarks.shards --entries 1000000     # the memory of the parent process, a few minutes

The plain loop is what one writes without this tool: pydicom with its modality LUT and VOI LUT, Pillow
for PNG, JPEG and resizing, webdataset's ShardWriter. Both read the same files, make the same letterboxed
pictures and contour, and write one shard. Times are process times of one core, medians over rounds that
take turns. Nothing is timed before both have made the same pictures.

On two cores, times are seconds on the clock, which need two quiet cores. Both ways run over half of the films
and over all of them, and what counts is the difference: what half of the films takes once everything is
running. So the start of processes, a second or two that no archive of a real size notices, cancels out.
Each of two workers takes 32 films at a time, so that this needs 128 films, or a multiple, to be even.
"""

import contextlib
import dataclasses
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pydicom
import tyro
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    generate_uid,
)
from rich.console import Console
from rich.table import Table

from benchmarks.shards_memory import memory_of_a_build
from shards_tool.build import build
from shards_tool.contour import find_rect
from shards_tool.film import FilmRules
from shards_tool.letterbox import content_box, letterbox, letterbox_contour
from shards_tool.make import PACK_FILMS
from shards_tool.pack import as_8_bits, encode_jpeg
from shards_tool.reading import read_film
from shards_tool.settings import BuildSettings
from shards_tool.verify import verify

HEIGHT, WIDTH, SIDE, QUALITY = 2500, 2048, 1280, 95
KINDS = ("DICOM, uncompressed", "DICOM, JPEG 2000", "PNG", "JPEG")
_EVEN = 4 * PACK_FILMS
"""Films of which half is a whole number of packs for each of two workers."""
MAX_DIFFERENCE = 1.0
"""Mean grey levels between the two pictures: the plain loop rounds to 8 bits before it resizes."""


@dataclass(frozen=True, kw_only=True)
class Options:
    films: int = 128
    """Of each kind; of JPEG 2000, which takes ten times as long, a quarter. Two cores are measured where
    there are 128 or a multiple."""
    rounds: int = 3
    entries: int = 0
    """Also measure the parent's memory over a build of so many synthetic films, without their pictures."""
    json: Path | None = None
    """File to write the results to."""


def main(args: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=args, description=__doc__)
    cv2.setNumThreads(1)
    console = Console(width=None if sys.stdout.isatty() else 120)
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        results["films"] = _films(root, options, console)
        results["verify"] = _verify(root, options, console)
    if options.entries:
        results["memory"] = _memory(options.entries, console)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


# Films to shards


def _films(root: Path, options: Options, console: Console) -> dict[str, dict[str, float | None]]:
    folders = {kind: root / "films" / str(number) for number, kind in enumerate(KINDS)}
    counts = {kind: max(1, options.films // 4) if "2000" in kind else options.films for kind in KINDS}
    sources = {kind: _write_films(folder, kind, counts[kind]) for kind, folder in folders.items()}
    worst = max(_difference(root, kind, source) for kind, source in sources.items())
    assert worst <= MAX_DIFFERENCE, f"the pictures differ by {worst:.2f} grey levels"
    console.print(f"oracle: both loops make the same pictures (mean difference at most {worst:.2f} of 255)")
    _plain_loop_over([], root)  # imports are not timed
    columns = (
        "plain loop",
        "alone",
        "build",
        "films/s and core",
        "speed-up",
        "build / alone",
        "on two cores",
    )
    table = Table("source", *columns)
    results = {}
    for kind, source in sources.items():
        ways: dict[str, Callable[[], object]] = {
            "plain": lambda source=source: _plain_loop(source, root),
            "alone": lambda source=source: _alone(source),
            "build": lambda source=source: _build(source, root),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                times[name].append(_process_time(way) / counts[kind])
        plain, alone, ours = (statistics.median(times[name]) for name in ("plain", "alone", "build"))
        two_cores = None if counts[kind] % _EVEN else _on_two_cores(source, root, options.rounds)
        results[kind] = {"plain_s": plain, "alone_s": alone, "build_s": ours, "two_cores": two_cores}
        cells = [f"{1e3 * seconds:.0f} ms" for seconds in (plain, alone, ours)]
        ratios = [
            "-" if ratio is None else f"{ratio:.2f}" for ratio in (plain / ours, ours / alone, two_cores)
        ]
        table.add_row(kind, *cells, f"{1 / ours:.1f}", *ratios)
    console.print(table)
    return results


def _on_two_cores(source: Path, root: Path, rounds: int) -> float:
    """Time of two plain loops, each over half of the films, over that of a build with two workers."""
    paths = sorted(source.iterdir())
    few = source.with_name(f"{source.name} half")
    few.mkdir()
    for path in paths[::2]:
        (few / path.name).hardlink_to(path)
    ratios = []
    with ProcessPoolExecutor(2) as pool:

        def plain(paths: list[Path]) -> None:
            list(pool.map(_plain_loop_over, [paths[::2], paths[1::2]], [root] * 2))

        plain(paths[:2])  # imports are not timed
        for _ in range(rounds):
            plain_s = _seconds(lambda: plain(paths)) - _seconds(lambda: plain(paths[::2]))
            ours_s = _seconds(lambda: _build(source, root, workers=2)) - _seconds(
                lambda: _build(few, root, workers=2)
            )
            if min(plain_s, ours_s) <= 0:
                raise RuntimeError("all films took less time than half of them: other work is on these cores")
            ratios.append(plain_s / ours_s)
    return statistics.median(ratios)


def _seconds(work: Callable[[], object]) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def _process_time(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def _write_films(folder: Path, kind: str, count: int) -> Path:
    """Films of 12 bits with a body's soft shapes, edges and detector noise."""
    folder.mkdir(parents=True)
    for seed in range(count):
        rng = np.random.default_rng(seed)
        film = np.full((HEIGHT, WIDTH), 1800, np.float32)
        for size, height in ((6, 600), (24, 200), (96, 60), (400, 20)):
            coarse = rng.normal(0, height, (size, size)).astype(np.float32)
            film += cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        film += rng.normal(0, 8, film.shape).astype(np.float32)
        pixels = np.clip(film, 0, 4095).astype(np.uint16)
        if kind in ("PNG", "JPEG"):
            path = folder / f"{seed}.{kind.lower()}"
            assert cv2.imwrite(str(path), cv2.convertScaleAbs(pixels, alpha=255 / 4095))
        else:
            syntax = JPEG2000Lossless if "2000" in kind else ExplicitVRLittleEndian
            _write_dicom(folder / f"{seed}.dcm", pixels, syntax)
    return folder


def _write_dicom(path: Path, pixels: np.ndarray, syntax: str) -> None:
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[path.stem])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality, dataset.PatientID, dataset.ViewPosition = "CR", path.stem, "PA"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = pixels.tobytes()
    if syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)


def _plain_picture(path: Path) -> Image.Image:
    """The film as 8-bit grey, as one reads it without this tool."""
    if path.suffix != ".dcm":
        return Image.open(path).convert("L")
    dataset = pydicom.dcmread(path)
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float32)
    low, high = 0.0, float(2**dataset.BitsStored - 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        values = high - values
    return Image.fromarray(np.clip((values - low) / (high - low) * 255, 0, 255).astype(np.uint8))


def _plain_sample(path: Path) -> tuple[bytes, bytes]:
    picture = _plain_picture(path)
    box = content_box(picture.height, picture.width, SIDE)
    canvas = Image.new("L", (SIDE, SIDE))
    canvas.paste(picture.resize((box.width, box.height), Image.Resampling.BOX), (box.left, box.top))
    image, contour = io.BytesIO(), io.BytesIO()
    canvas.save(image, "JPEG", quality=QUALITY)
    mask = letterbox_contour(
        find_rect(np.asarray(picture), PurePosixPath()).mask_hw, *np.asarray(picture).shape, SIDE
    )
    Image.fromarray(mask).save(contour, "PNG")
    return image.getvalue(), contour.getvalue()


def _plain_loop(source: Path, root: Path) -> None:
    _plain_loop_over(sorted(source.iterdir()), root)


def _plain_loop_over(paths: list[Path], root: Path) -> None:
    # Here, because it imports torch, for seconds, which the workers of a build would do with this module.
    from webdataset.writer import ShardWriter as PlainShardWriter

    with (
        tempfile.TemporaryDirectory(dir=root) as out,
        contextlib.redirect_stdout(io.StringIO()),
        PlainShardWriter(f"{out}/shard-%06d.tar", maxcount=512) as writer,
    ):
        for path in paths:
            image, contour = _plain_sample(path)
            record = {"key": path.stem}
            writer.write({"__key__": path.stem, "jpg": image, "contour.png": contour, "json": record})


def _our_sample(path: Path) -> tuple[bytes, bytes]:
    """What cannot be left out: read, decode, resize, encode, image and contour."""
    film = read_film(path.read_bytes(), FilmRules())
    canvas_HW, _ = letterbox(film.pixels_HW, SIDE)
    contour_HW = letterbox_contour(
        find_rect(film.pixels_HW, PurePosixPath()).mask_hw, *film.pixels_HW.shape, SIDE
    )
    return encode_jpeg(as_8_bits(canvas_HW), QUALITY), cv2.imencode(".png", contour_HW)[1].tobytes()


def _alone(source: Path) -> None:
    for path in sorted(source.iterdir()):
        _our_sample(path)


def _build(source: Path, root: Path, workers: int = 0) -> None:
    with tempfile.TemporaryDirectory(dir=root) as out, _without_progress():
        key_file = Path(out) / "key"
        key_file.write_text("0" * 64)
        build([source], Path(out) / "data", _settings(), key_file=key_file, workers=workers)


def _settings() -> BuildSettings:
    return BuildSettings(side=SIDE, quality=QUALITY, fractions=(1, 0, 0), contour="rect")


@contextlib.contextmanager
def _without_progress() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _difference(root: Path, kind: str, source: Path) -> float:
    """Mean grey levels between a film of both loops, inside the content."""
    path = min(source.iterdir())
    plain, ours = (
        cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_GRAYSCALE)
        for code in (_plain_sample(path)[0], _our_sample(path)[0])
    )
    assert plain is not None and ours is not None
    return float(np.abs(plain.astype(float) - ours).mean())


# Checking shards


def _verify(root: Path, options: Options, console: Console) -> dict[str, float]:
    data = root / "lossless"
    key_file = root / "key"
    key_file.write_text("0" * 64)
    settings = dataclasses.replace(_settings(), format="png16")
    with _without_progress():
        build([root / "films" / str(i) for i in range(3)], data, settings, key_file=key_file, workers=0)
        size = sum(path.stat().st_size for path in data.glob("*/*.tar"))
        assert verify(data, workers=0).faults == []
        ways: dict[str, Callable[[], object]] = {
            "checksums": lambda: verify(data, workers=0, pictures=False),
            "pictures": lambda: verify(data, workers=0),
        }
        rates = {
            name: size / 1e6 / statistics.median(_process_time(way) for _ in range(options.rounds))
            for name, way in ways.items()
        }
    console.print(
        f"verify: {rates['checksums']:.0f} MB/s on checksums, {rates['pictures']:.0f} MB/s with decoding, "
        f"per core, of {size / 1e6:.0f} MB"
    )
    return rates


# Memory


def _memory(entries: int, console: Console) -> dict[str, float]:
    stages = memory_of_a_build(entries)
    table = Table("stage", "seconds", "peak MB so far")
    for stage in stages:
        table.add_row(stage.name, f"{stage.seconds:.0f}", f"{stage.peak_mb:.0f}")
    console.print(f"the parent process of a build of {entries:,} films, without their pictures:", table)
    return {stage.name: stage.peak_mb for stage in stages}


if __name__ == "__main__":
    main()
