"""Files whose bytes change."""

import random
from collections.abc import Iterator
from pathlib import Path


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` with one fault of those that disks and copies make, or of an ill-meaning hand."""
    at = rng.randrange(len(data))
    length = min(len(data) - at, rng.choice([1, 2, 8, 64, 512]))
    before, after = data[:at], data[at + length :]
    match rng.randrange(6):
        case 0:  # one bit
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1:
            return before + rng.randbytes(length) + after
        case 2:
            return before + bytes(length) + after
        case 3:
            return before  # cut short
        case 4:
            return before + after
        case _:
            return before + rng.choice([b"9", b"-", b"\xff", b'"', b"{", b"0" * 40]) + data[at:]


def faults(files: list[Path], cases: int, seed: int) -> Iterator[tuple[Path, bytes]]:
    """`cases` times one of `files` with another fault in it; it is whole again afterwards."""
    rng = random.Random(seed)
    whole = {path: path.read_bytes() for path in files}
    for _ in range(cases):
        path = rng.choice(files)
        changed = whole[path]
        while changed == whole[path]:
            changed = mutated(changed, rng)
        path.write_bytes(changed)
        yield path, changed
        path.write_bytes(whole[path])
