"""Once the films are made: failures, films of a test set and duplicates leave, the others get their split."""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards_tool.ledger import Ledger
from shards_tool.likeness import LOOK_BYTES, Looks, components, near_matches, near_pairs
from shards_tool.privacy import split_of
from shards_tool.published import STRICTNESS, TRAIN_VAL, may_join, without_test
from shards_tool.schema import KEY_LENGTH, SAMPLES, SPLITS
from shards_tool.settings import BuildSettings

log = logging.getLogger(__name__)

HASH_BYTES = 32
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Known:
    """Films that must not be in the data set, by pixel hash (of the same key) and by look."""

    pixels: npt.NDArray[np.bytes_]
    """S32, sorted."""
    looks: Looks

    def fingerprint(self) -> str:
        """The same for the same films, in whatever order."""
        looks = np.unique(self.looks, axis=0)
        return hashlib.sha256(self.pixels.tobytes() + looks.tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Films:
    """Of each sample, in the order of their keys."""

    keys: npt.NDArray[np.bytes_]
    patients: npt.NDArray[np.bytes_]
    asked: Ints
    """The split that the tables ask for, as its place in `STRICTNESS`."""
    pixels: npt.NDArray[np.void]
    looks: Looks

    def key(self, i: int) -> str:
        return bytes(self.keys[i]).decode()


def settle(ledger: Ledger, settings: BuildSettings, key: bytes, known: Known | None) -> None:
    """Give each sample its split and duplicate group, and leave out those that are in already.

    Patients who share a picture, be it of a film that is dropped, are kept in one split: they may be
    one person under two numbers. Where the tables ask for several splits for them, the strictest holds,
    and films that were to be in a laxer one leave.
    """
    ledger.drop_failures()
    if known is not None:
        _exclude(ledger, known)
    films = _read_films(ledger)
    count = len(films.keys)
    same = components(count, _equal_pairs(films.pixels))
    near = components(count, _both(_as_pairs(same), near_pairs(films.looks)))
    kept_for = {"keep": np.arange(count), "link": same, "drop": near}[settings.duplicates]
    for i in np.flatnonzero(kept_for != np.arange(count)).tolist():
        how = "same pixels as" if same[i] == same[kept_for[i]] else "nearly the same picture as"
        ledger.drop_sample(films.key(i), "duplicate", f"{how} {films.key(kept_for[i])}")
    patients, patient_of = np.unique(films.patients, return_inverse=True)
    joined = components(len(patients), [np.stack([patient_of[near], patient_of], axis=1)])
    unit = joined[patient_of]
    """Of each film, the first of the patients with whom it has to be in one split."""
    strictest = _most(films.asked, unit, len(patients))
    kept = np.flatnonzero(kept_for == np.arange(count))
    kept = _without_laxer(ledger, films, kept, _most(films.asked, kept_for, count), strictest[unit])
    of_group = np.bincount(near[kept], minlength=count)
    lowest = np.full(count, count)
    np.minimum.at(lowest, near[kept], kept)

    def split(patient: int) -> str:
        if (asked := STRICTNESS[strictest[patient]]) in SPLITS:
            return asked
        fractions = without_test(settings.fractions) if asked == TRAIN_VAL else settings.fractions
        return split_of(key, settings.salt, bytes(patients[patient]).decode(), fractions)

    splits = {patient: split(patient) for patient in np.unique(unit).tolist()}

    def places() -> Iterator[tuple[str, str, str]]:
        for i in kept.tolist():
            group = films.key(int(lowest[near[i]])) if of_group[near[i]] > 1 else ""
            yield splits[int(unit[i])], group, films.key(i)

    ledger.place_samples(places())
    ledger.commit()
    dropped = int(np.count_nonzero(kept_for != np.arange(count)))
    linked = int((of_group[near[kept]] > 1).sum())
    if dropped or linked:
        log.info("duplicates: %d films left out, %d kept in groups of one split each", dropped, linked)


def _most(asked: Ints, group: Ints, count: int) -> Ints:
    """The strictest wish in each of `count` groups."""
    most = np.zeros(count, np.int64)
    np.maximum.at(most, group, asked)
    return most


def _without_laxer(ledger: Ledger, films: _Films, kept: Ints, asked: Ints, strictest: Ints) -> Ints:
    """Leave out the films whose patient has to be in a stricter split than the tables ask for."""
    apart = [i for i in kept.tolist() if not may_join(STRICTNESS[asked[i]], STRICTNESS[strictest[i]])]
    for i in apart:
        wish, other = STRICTNESS[asked[i]], STRICTNESS[strictest[i]]
        reason = (
            f"in {wish} by the tables, but its patient, or one who shares a picture with them, is in {other}"
        )
        ledger.drop_sample(films.key(i), "excluded", reason)
    if apart:
        log.warning("%d films left out: the tables put their patients into two splits", len(apart))
    return np.setdiff1d(kept, apart)


def read_known(paths: Iterable[Path]) -> Known:
    """Hashes of the films that a data set must do without.

    Args:
        paths: folders of data sets, or texts with a pixel hash or perceptual hash in each line.

    Raises:
        ValueError: neither of both, or a line that is no such hash.
    """
    pixels, looks = [], []
    for path in paths:
        for pixel_hash, look in _hashes(path):
            pixels.append(pixel_hash)
            looks.append(look)
    return Known(
        pixels=np.unique(np.array(pixels, dtype=f"V{HASH_BYTES}").view(f"S{HASH_BYTES}")),
        looks=np.frombuffer(b"".join(looks), np.uint8).reshape(-1, LOOK_BYTES),
    )


def _hashes(path: Path) -> Iterator[tuple[bytes, bytes]]:
    if path.is_dir():
        try:
            file = pq.ParquetFile(path / SAMPLES)
            for batch in file.iter_batches(columns=["pixel_hash", "perceptual_hash"]):
                columns = (batch[name].to_pylist() for name in ("pixel_hash", "perceptual_hash"))
                for pixel_hash, look in zip(*columns, strict=True):
                    yield bytes.fromhex(pixel_hash), bytes.fromhex(look)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise ValueError(f"--exclude-from {path}: no data set of this program: {error}") from error
        return
    if not path.is_file():
        raise ValueError(f"--exclude-from {path}: no such file or folder")
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = bytes.fromhex(line.strip())
            except ValueError:
                value = b""
            if len(value) != HASH_BYTES:
                raise ValueError(
                    f"--exclude-from {path}, line {number}: wanted {2 * HASH_BYTES} hexadecimal digits, "
                    f"got {line.strip()[:80]!r}"
                )
            yield value, value  # which of the two it is does not matter: the other never matches by chance


def _exclude(ledger: Ledger, known: Known) -> None:
    films = _read_films(ledger)
    is_same = np.isin(films.pixels.view(f"S{HASH_BYTES}"), known.pixels)
    is_near = near_matches(films.looks, known.looks) >= 0
    for i in np.flatnonzero(is_same | is_near).tolist():
        how = "the same pixels as" if is_same[i] else "nearly the same picture as"
        ledger.drop_sample(films.key(i), "excluded", f"{how} a film of --exclude-from")
    log.info("%d films are among those of --exclude-from", int((is_same | is_near).sum()))


def _read_films(ledger: Ledger) -> _Films:
    count = ledger.count_samples()
    keys = np.empty(count, f"S{KEY_LENGTH}")
    patients = np.empty(count, f"S{KEY_LENGTH}")
    asked = np.empty(count, np.int64)
    pixels = np.empty((count, HASH_BYTES), np.uint8)
    looks = np.empty((count, LOOK_BYTES), np.uint8)
    for i, (key, patient, split, pixel_hash, look) in enumerate(ledger.likenesses()):
        keys[i], patients[i], asked[i] = key.encode(), patient.encode(), STRICTNESS.index(split)
        pixels[i] = np.frombuffer(bytes.fromhex(pixel_hash), np.uint8)
        looks[i] = np.frombuffer(bytes.fromhex(look), np.uint8)
    return _Films(
        keys=keys, patients=patients, asked=asked, pixels=pixels.view(f"V{HASH_BYTES}").ravel(), looks=looks
    )


def _equal_pairs(values: npt.NDArray[np.void]) -> Iterator[Ints]:
    _, first, inverse = np.unique(values.view(f"S{HASH_BYTES}"), return_index=True, return_inverse=True)
    yield np.stack([first[inverse], np.arange(len(values))], axis=1)


def _as_pairs(component: Ints) -> Ints:
    return np.stack([component, np.arange(len(component))], axis=1)


def _both(first: Ints, rest: Iterator[Ints]) -> Iterator[Ints]:
    yield first
    yield from rest
