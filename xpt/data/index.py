"""Open one split of a shard data set and check that its files fit together.

The table of samples is memory-mapped, so opening costs the same for a thousand films and for a
hundred million.
"""

import dataclasses
import hashlib
import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from shards_tool import schema
from xpt.files import sha256_of

_HOW_TO_MAKE = "make shards with: xpt-shards build SRC... --out DIR"
_HOW_TO_CHECK = "find what is damaged with: xpt-shards verify DIR; then build again or copy the files again"
# Names come from a file: nothing but a plain shard name may become a path.
_SHARD_NAME = re.compile(r"shard-\d{6,}\.tar")


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardSet:
    """One split: where its shards are and which samples they hold."""

    root: Path
    split: str
    side: int
    """Side of the stored square images in pixels."""
    manifest_hash: str
    """SHA-256 of the bytes of manifest.json: the identity of the data set."""
    shard_names: tuple[str, ...]
    shard_bytes: Int64[np.ndarray, "S"]
    shard_sizes: Int64[np.ndarray, "S"]
    """Samples per shard."""
    row_starts: Int64[np.ndarray, "S"]
    """First row of each shard in `rows`."""
    rows: np.ndarray
    """The memory-mapped index, one schema.INDEX_DTYPE record per sample."""

    def __len__(self) -> int:
        return len(self.rows)

    def shard_path(self, shard: int) -> Path:
        return self.root / self.split / self.shard_names[shard]


def manifest_of(root: Path) -> dict[str, Any]:
    """What the manifest of the data set in `root` says. Raises ValueError as `open_shards` does."""
    return _parse_manifest(_read_manifest(root), root / schema.MANIFEST)


def manifest_hash(root: Path) -> str:
    """SHA-256 of the bytes of the manifest: the identity of the data set. Raises as `open_shards` does."""
    return hashlib.sha256(_read_manifest(root)).hexdigest()


def filled_splits(root: Path) -> list[str]:
    """The splits of the data set in `root` that have films. Raises ValueError as `open_shards` does."""
    manifest = manifest_of(root)
    return [split for split in schema.SPLITS if manifest.get("splits", {}).get(split, {}).get("samples")]


def open_shards(root: Path, split: str, *, check_files: bool = True) -> ShardSet:
    """Open the split `split` of the data set in the folder `root`.

    `check_files` compares the index and every shard's size with the manifest: it reads the index once (76
    bytes per film) and asks for the size of each shard; where many processes open one data set, let one of
    them check. Raises ValueError that names the file, what is wrong with it and what to do.
    """
    manifest_bytes = _read_manifest(root)
    manifest = _parse_manifest(manifest_bytes, root / schema.MANIFEST)
    side, shards, index_sha256 = _split_of(manifest, split, root / schema.MANIFEST)
    rows = _map_index(root / split / schema.INDEX)
    shard_sizes = np.array([shard["samples"] for shard in shards], dtype=np.int64)
    if shard_sizes.sum() != len(rows):
        raise ValueError(
            f"{root / split / schema.INDEX}: got {len(rows)} samples, but {schema.MANIFEST} counts "
            f"{shard_sizes.sum()}; {_HOW_TO_CHECK}"
        )
    shard_set = ShardSet(
        root=root,
        split=split,
        side=side,
        manifest_hash=hashlib.sha256(manifest_bytes).hexdigest(),
        shard_names=tuple(shard["name"] for shard in shards),
        shard_bytes=np.array([shard["bytes"] for shard in shards], dtype=np.int64),
        shard_sizes=shard_sizes,
        row_starts=np.cumsum(shard_sizes) - shard_sizes,
        rows=rows,
    )
    if check_files:
        _check_index(shard_set, index_sha256)
        _check_sizes(shard_set)
    return shard_set


def open_splits(root: Path, split: str) -> dict[str, ShardSet]:
    """The split `split`, or, with "all", every one that has films, by name; raises as `open_shards` does."""
    return {name: open_shards(root, name) for name in (filled_splits(root) if split == "all" else [split])}


def expect_random_reads(shards: ShardSet) -> None:
    """Tell the system that rows will be read here and there: it need not read on around each, which in a
    large index costs a millisecond per film, and more where files are far."""
    pages = shards.rows.base
    if isinstance(pages, mmap.mmap):
        pages.madvise(mmap.MADV_RANDOM)


def select_rows(shards: ShardSet, is_kept_N: Bool[np.ndarray, "N"]) -> ShardSet:
    """The same split as if it had only the films that are kept, at least one."""
    assert is_kept_N.any() and len(is_kept_N) == len(shards)
    sizes_S = np.add.reduceat(is_kept_N, shards.row_starts, dtype=np.int64)
    filled = np.flatnonzero(sizes_S)
    return dataclasses.replace(
        shards,
        shard_names=tuple(shards.shard_names[shard] for shard in filled),
        shard_bytes=shards.shard_bytes[filled],
        shard_sizes=sizes_S[filled],
        row_starts=np.cumsum(sizes_S[filled]) - sizes_S[filled],
        rows=shards.rows[is_kept_N],
    )


def _read_manifest(root: Path) -> bytes:
    if not root.is_dir():
        raise ValueError(f"shard folder {root}: no such folder; {_HOW_TO_MAKE}")
    if not any(root.iterdir()):
        raise ValueError(f"shard folder {root}: the folder is empty; {_HOW_TO_MAKE}")
    try:
        return (root / schema.MANIFEST).read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"shard folder {root}: got no {schema.MANIFEST}, so this is no shard folder or its build did not "
            f"finish; give the same build command again to finish it, or {_HOW_TO_MAKE}"
        ) from None


def _parse_manifest(manifest_bytes: bytes, path: Path) -> dict[str, Any]:
    try:
        manifest = schema.parse_json(manifest_bytes, schema.MOST_MANIFEST_BYTES)
    except ValueError as error:
        raise ValueError(f"{path}: damaged, not JSON ({error}); {_HOW_TO_CHECK}") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != schema.FORMAT_VERSION:
        raise ValueError(
            f"{path}: got format version {version}, wanted {schema.FORMAT_VERSION}; "
            f"build the shards again with this version of xpt-shards"
        )
    return manifest


def _split_of(manifest: dict[str, Any], split: str, path: Path) -> tuple[int, list[dict[str, Any]], str]:
    """Side in pixels, shards, and the SHA-256 of the index. Everything read here is checked here."""
    try:
        side = manifest["settings"]["side"]
        splits = manifest["splits"]
        filled = [name for name, content in splits.items() if content["samples"]]
        shards = splits[split]["shards"] if split in filled else []
        index_sha256 = manifest["tables"].get(f"{split}/{schema.INDEX}", "")
        wrong = [
            shard
            for shard in shards
            if not (
                _SHARD_NAME.fullmatch(shard["name"])
                and _is_count(shard["samples"])
                and _is_count(shard["bytes"])
            )
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged, {error!r}; {_HOW_TO_CHECK}") from None
    if not _is_count(side) or wrong:
        raise ValueError(f"{path}: damaged, got side {side!r}, shards {wrong[:1]}; {_HOW_TO_CHECK}")
    if not shards:
        raise ValueError(
            f"{path}: got no samples in split {split!r}, only in {filled}; choose another split, or build "
            f"with more films or larger --fractions"
        )
    return side, shards, index_sha256


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 < value < 2**48


def _map_index(path: Path) -> np.ndarray:
    try:
        rows = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file, but the manifest counts it; {_HOW_TO_CHECK}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read, {error.strerror}; mend the file system") from error
    except Exception as error:  # numpy reads the header with Python's parser, which raises many kinds
        raise ValueError(f"{path}: damaged, {error}; {_HOW_TO_CHECK}") from None
    if rows.dtype != np.dtype(schema.INDEX_DTYPE) or rows.ndim != 1:
        raise ValueError(
            f"{path}: got {rows.ndim}-D records of {rows.dtype}, wanted those of format version "
            f"{schema.FORMAT_VERSION}; {_HOW_TO_CHECK}"
        )
    return rows


def _check_index(shard_set: ShardSet, sha256: str) -> None:
    """The index is the one that was written, and cut into shards where the manifest says."""
    path = shard_set.root / shard_set.split / schema.INDEX
    firsts = shard_set.rows[shard_set.row_starts]
    lasts = shard_set.rows[shard_set.row_starts + shard_set.shard_sizes - 1]
    for shard, name in enumerate(shard_set.shard_names):
        if not schema.shard_name(firsts["shard"][shard]) == schema.shard_name(lasts["shard"][shard]) == name:
            raise ValueError(
                f"{path}: rows of {name} are not where {schema.MANIFEST} counts them; {_HOW_TO_CHECK}"
            )
    found = sha256_of(path)
    if found != sha256:
        raise ValueError(f"{path}: changed, got SHA-256 {found}, wanted {sha256}; {_HOW_TO_CHECK}")


def _check_sizes(shard_set: ShardSet) -> None:
    for shard, expected in enumerate(shard_set.shard_bytes.tolist()):
        path = shard_set.shard_path(shard)
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file, but the manifest counts it; {_HOW_TO_CHECK}") from None
        if found != expected:
            state = "truncated" if found < expected else "changed"
            raise ValueError(f"{path}: {state}, got {found} bytes, wanted {expected}; {_HOW_TO_CHECK}")
        last = shard_set.rows[shard_set.row_starts[shard] + shard_set.shard_sizes[shard] - 1]
        end = int(last["json_offset"]) + int(last["json_size"])
        if end > found:
            raise ValueError(
                f"{path}: the index places a sample up to byte {end}, the file has {found}; {_HOW_TO_CHECK}"
            )
