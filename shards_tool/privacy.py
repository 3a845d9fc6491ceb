"""Pseudonyms: keyed hashes, so that nobody without the key can test a guessed identity against a data set.

A plain hash of a patient number is no protection, because all numbers can be tried. HMAC-SHA256
(RFC 2104) under a secret that stays outside the data set is.
"""

import hashlib
import hmac
import logging
import secrets
from pathlib import Path

from shards_tool.files import write_whole
from shards_tool.schema import KEY_LENGTH, SPLITS

log = logging.getLogger(__name__)

MIN_KEY_CHARACTERS = 32
OLDEST_AGE = 90
"""Ages of 90 and more are stored as 90: HIPAA counts them as identifying (45 CFR 164.514(b)(2))."""


def load_key(key_file: Path | None, out: Path) -> bytes:
    """Read the secret of a build, or create `OUT.key` beside the output folder where none is named.

    Raises:
        ValueError: the key file is missing, too short, or inside the output folder.
    """
    path = key_file if key_file is not None else default_key_file(out)
    if path.resolve().is_relative_to(out.resolve()):
        raise ValueError(
            f"the key file {path} lies inside the output folder {out}: whoever gets the data set could undo "
            "its pseudonyms; put the key file elsewhere"
        )
    if key_file is None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, secrets.token_hex(32).encode() + b"\n", mode=0o600)
        log.warning("made a secret for the pseudonyms: %s (keep it, apart from the data set)", path)
    if not path.is_file():
        raise ValueError(f"no key file {path}; make one with: (umask 077; openssl rand -hex 32 > {path})")
    key = path.read_bytes().strip()
    if len(key) < MIN_KEY_CHARACTERS:
        raise ValueError(
            f"the key file {path} holds {len(key)} characters, at least {MIN_KEY_CHARACTERS} are needed; "
            f"make one with: (umask 077; openssl rand -hex 32 > {path})"
        )
    return key


def default_key_file(out: Path) -> Path:
    out = out.resolve()
    return out.with_name(f"{out.name}.key")


def keyed_hash(key: bytes, kind: str, value: str) -> str:
    """HMAC-SHA256 as 64 hexadecimal digits; `kind` keeps a patient and a study of one name apart."""
    return hmac.new(key, f"{kind}\0{value}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def pseudonym(key: bytes, kind: str, value: str) -> str:
    return keyed_hash(key, kind, value)[:KEY_LENGTH]


def split_of(key: bytes, salt: str, patient: str, fractions: tuple[float, float, float]) -> str:
    """The split of a patient (pseudonym): a function of key, salt and patient only.

    A patient therefore stays where they are when others join the archive.
    """
    draw = int(keyed_hash(key, f"split\0{salt}", patient)[:16], 16) / 2**64
    edge = 0.0
    for split, fraction in zip(SPLITS, fractions, strict=True):
        edge += fraction
        if draw < edge:
            return split
    # The fractions add up to 1 only within rounding: the last split that takes any gets the rest.
    return [split for split, fraction in zip(SPLITS, fractions, strict=True) if fraction > 0][-1]
