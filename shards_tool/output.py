"""The output folder of a build: whose it is, its ledger and lock, and how work in it stops."""

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from shards_tool.ledger import Ledger
from shards_tool.remote import was_url
from shards_tool.schema import MANIFEST, SPLITS
from shards_tool.settings import BuildStoppedError

log = logging.getLogger(__name__)

BUILD_FOLDER = ".build"
"""Inside the output folder while a build is under way."""
LEDGER = "ledger.sqlite"
_SOFTWARE = (
    "xpt",
    "numpy",
    "opencv-python-headless",
    "onnxruntime",
    "pillow",
    "pydicom",
    "python-gdcm",
    "pylibjpeg-openjpeg",
)


@contextlib.contextmanager
def stopping_cleanly() -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BuildStoppedError(
            f"stopped: {reason}{where}. What is finished is kept; mend that and run the same command to go on"
        ) from error


def check_output_folder(out: Path) -> None:
    if was_url(out):
        raise ValueError(
            f"--out {out}: a data set is written to a local folder, where files appear whole or not at all; "
            "build it there, and copy it to the object store when it is finished"
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    is_ours = (out / MANIFEST).exists() or (out / BUILD_FOLDER).exists()
    if out.is_dir() and not is_ours and any(out.iterdir()):
        raise ValueError(f"--out {out} holds files that are no data set; give an empty or new folder")


def finished_manifest(out: Path) -> dict | None:
    path = out / MANIFEST
    return json.loads(path.read_bytes()) if path.exists() else None


@contextlib.contextmanager
def open_ledger(out: Path, folder: Path, recorded: dict[str, object]) -> Iterator[Ledger]:
    """The ledger of a build of these settings, under a lock."""
    finished = finished_manifest(out)
    if finished is not None:
        refuse_other_settings(out, finished["settings"], recorded)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock, contextlib.ExitStack() as stack:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another build is writing to {folder}") from error
        except OSError as error:  # some network file systems have no locks
            log.warning("no file locks at %s (%s): let only one build write there", out, error.strerror)
        if finished is not None:  # whatever this run finds, the data set is complete without it
            stack.callback(shutil.rmtree, out / BUILD_FOLDER, ignore_errors=True)
        ledger = stack.enter_context(contextlib.closing(Ledger(folder / LEDGER)))
        current = recorded | {"software": software()}
        if known := ledger.settings():
            refuse_other_settings(out, known, current)
        ledger.set_settings(current)
        try:
            yield ledger
        except ValueError:
            if folder == out / BUILD_FOLDER and not ledger.has_work() and not list(folder.glob("part-*")):
                # Nothing was made, so the next attempt may ask for something else.
                stack.callback(_discard, out)
            raise


def _discard(out: Path) -> None:
    shutil.rmtree(out / BUILD_FOLDER, ignore_errors=True)
    for folder in (*(out / split for split in SPLITS), out):
        with contextlib.suppress(OSError):  # not there, or not empty and so not ours
            folder.rmdir()


def refuse_other_settings(out: Path, known: dict[str, object], wanted: dict[str, object]) -> None:
    differing = [name for name in wanted if known.get(name) != wanted[name]]
    if differing:
        fields = "; ".join(f"{name}: {known.get(name)!r} there, {wanted[name]!r} now" for name in differing)
        raise ValueError(f"--out {out} belongs to a build with other settings ({fields}); give another one")


def software() -> dict[str, str]:
    """The versions that may change the bytes of the output."""
    return {name: importlib.metadata.version(name) for name in _SOFTWARE}
