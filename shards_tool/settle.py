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
    everyone = np.arange(count)
    same = components(count, _equal_pairs(films.pixels))
    near = components(count, _both(_as_pairs(same), near_pairs(films.looks)))
    kept_for = {"keep": everyone, "link": _chosen(same, films.asked), "drop": _chosen(near, films.asked)}[
        settings.duplicates
    ]
    patients, unit = _units(ledger, films, near)
    strictest = _strictest(films.asked, unit, len(patients))
    is_apart = ~_MAY_JOIN[films.asked[kept_for], strictest[unit]]
    for i in np.flatnonzero(is_apart).tolist():
        wish, other = STRICTNESS[films.asked[kept_for[i]]], STRICTNESS[strictest[unit[i]]]
        reason = (
            f"would be in {wish}, but its patient, or one who shares a picture with them, is in {other} "
            "by the tables"
        )
        ledger.drop_sample(films.key(i), "excluded", reason)
    is_copy = (kept_for != everyone) & ~is_apart
    for i in np.flatnonzero(is_copy).tolist():
        how = "same pixels as" if same[i] == same[kept_for[i]] else "nearly the same picture as"
        ledger.drop_sample(films.key(i), "duplicate", f"{how} {films.key(kept_for[i])}")
    kept = np.flatnonzero((kept_for == everyone) & ~is_apart)
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
    linked = int((of_group[near[kept]] > 1).sum())
    if is_copy.any() or linked:
        log.info("duplicates: %d films left out, %d kept in groups of one split each", is_copy.sum(), linked)
    if is_apart.any():
        log.warning("%d films left out: their patients are in a stricter split by the tables", is_apart.sum())


_MAY_JOIN = np.array([[may_join(asked, other) for other in STRICTNESS] for asked in STRICTNESS])


def _units(ledger: Ledger, films: _Films, near: Ints) -> tuple[npt.NDArray[np.bytes_], Ints]:
    """All patients, and of each film the first of those with whom its patient has to be in one split."""
    twins = [(key.encode(), patient.encode()) for key, patient in ledger.twins()]
    film_of = np.searchsorted(films.keys, np.array([key for key, _ in twins], films.keys.dtype))
    others = np.array([patient for _, patient in twins], films.patients.dtype)
    patients, number = np.unique(np.concatenate([films.patients, others]), return_inverse=True)
    of_film, of_twin = np.split(number, [len(films.keys)])
    links = [np.stack([of_film[near], of_film], axis=1), np.stack([of_film[film_of], of_twin], axis=1)]
    return patients, components(len(patients), links)[of_film]


def _chosen(component: Ints, asked: Ints) -> Ints:
    """For each film, which of its component stays: the first by key of those in the strictest split."""
    order = np.lexsort((-asked, component))
    roots, first = np.unique(component[order], return_index=True)
    chosen = np.empty_like(component)
    chosen[roots] = order[first]
    return chosen[component]


def _strictest(asked: Ints, unit: Ints, count: int) -> Ints:
    """The strictest wish among the films of each of `count` units."""
    most = np.zeros(count, np.int64)
    np.maximum.at(most, unit, asked)
    return most


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
