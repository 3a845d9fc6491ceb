import stat
from pathlib import Path

import pytest

from shards_tool.privacy import load_key, pseudonym, split_of

KEY = b"0123456789abcdef" * 4
FRACTIONS = (0.7, 0.2, 0.1)


def test_pseudonyms_depend_on_key_kind_and_value():
    names = {
        pseudonym(key, kind, value)
        for key in (KEY, KEY[::-1])
        for kind in ("patient", "study")
        for value in ("1", "2")
    }
    assert len(names) == 8 and all(len(name) == 16 for name in names)
    assert pseudonym(KEY, "patient", "1") == pseudonym(KEY, "patient", "1")


def test_splits_follow_the_fractions_and_the_salt():
    patients = [pseudonym(KEY, "patient", str(i)) for i in range(4000)]
    splits = [split_of(KEY, "", patient, FRACTIONS) for patient in patients]
    shares = [splits.count(split) / 4000 for split in ("train", "val", "test")]
    assert shares == pytest.approx(FRACTIONS, abs=0.03)
    assert [split_of(KEY, "other", patient, FRACTIONS) for patient in patients] != splits
    assert {split_of(KEY, "", patient, (1.0, 0.0, 0.0)) for patient in patients} == {"train"}
    assert {split_of(KEY, "", patient, (0.0, 1.0, 0.0)) for patient in patients} == {"val"}


def test_a_key_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path):
    out = tmp_path / "data"
    key = load_key(None, out)
    path = tmp_path / "data.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(None, out) == key == path.read_bytes().strip() and len(key) == 64


def test_a_key_inside_the_data_set_is_refused(tmp_path: Path):
    out = tmp_path / "data"
    (out / "sub").mkdir(parents=True)
    (out / "sub" / "key").write_bytes(KEY)
    (tmp_path / "link").symlink_to(out / "sub")
    for path in (out / "sub" / "key", tmp_path / "link" / "key"):
        with pytest.raises(ValueError, match="inside the output folder"):
            load_key(path, out)


def test_a_missing_or_short_key_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no key file .*openssl"):
        load_key(tmp_path / "key", tmp_path / "data")
    (tmp_path / "key").write_bytes(b"secret")
    with pytest.raises(ValueError, match="6 characters, at least 32"):
        load_key(tmp_path / "key", tmp_path / "data")
