"""Raw archive to shard data set: scan, plan, write, finalise."""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import logging
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from shards_tool.contour import MaskFolder, contour_finder
from shards_tool.files import remove_temporary_files, write_whole
from shards_tool.ledger import Ledger
from shards_tool.plan import plan_samples, plan_sha256, scan_inputs, shard_tasks, what_was_found
from shards_tool.privacy import default_key_file, load_key, pseudonym
from shards_tool.progress import progress_bar
from shards_tool.scan import Scanner, source_root, walk
from shards_tool.schema import FORMAT_VERSION, INDEX, MANIFEST, QUARANTINE, SAMPLES, SPLITS, shard_name
from shards_tool.settings import BuildSettings, BuildStoppedError, BuildSummary
from shards_tool.shard import ShardTask, ShardWriter
from shards_tool.tables import file_sha256, write_index, write_quarantine, write_samples
from shards_tool.workers import Died, cpu_count, run_tasks

log = logging.getLogger(__name__)

BUILD_FOLDER = ".build"
"""Inside the output folder while a build is under way."""
_LEDGER = "ledger.sqlite"
_SOFTWARE = (
    "xpt",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "pydicom",
    "python-gdcm",
    "pylibjpeg-openjpeg",
)
_MAX_DEATHS = 2
"""Workers that may die at one film: the first may be someone's kill, the second is the film."""


def build(
    sources: Sequence[Path],
    out: Path,
    settings: BuildSettings | None = None,
    *,
    meta: Sequence[Path] = (),
    key_file: Path | None = None,
    workers: int | None = None,
) -> BuildSummary:
    """Build a data set from folders and files, or go on with one that was interrupted.

    Args:
        meta: tables of labels and reports.
        key_file: secret for the pseudonyms; None takes `OUT.key` beside the output folder, made if absent.
        workers: processes; 0 works in this one, None takes one per CPU.

    Raises:
        ValueError: something about the request is wrong: a source, table, key, setting, or an output
            folder that holds something else.
        BuildStoppedError: the disk is full, a folder cannot be written, or a source went away.
    """
    settings = settings if settings is not None else BuildSettings()
    workers = workers if workers is not None else cpu_count()
    try:
        summary = _build([Path(source) for source in sources], out, settings, meta, key_file, workers)
    except (OSError, sqlite3.OperationalError) as error:
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BuildStoppedError(
            f"stopped: {reason}{where}. Finished shards are kept; mend that and run the same command to go on"
        ) from error
    _say_what_is_odd(summary, settings)
    return summary


def _build(
    sources: list[Path],
    out: Path,
    settings: BuildSettings,
    meta: Sequence[Path],
    key_file: Path | None,
    workers: int,
) -> BuildSummary:
    if not sources:
        raise ValueError("no sources: give the folders or files to build from")
    finder = contour_finder(settings.contour)
    masks = finder.folder if isinstance(finder, MaskFolder) else None
    for source in sources:
        if not source.exists():
            raise ValueError(f"no such source: {source}")
    _check_output_folder(out)
    key = load_key(key_file, out)
    recorded = settings.recorded() | {"key_fingerprint": pseudonym(key, "fingerprint", "")}
    roots = tuple(source_root(source).resolve() for source in sources)
    exclude = [out, key_file if key_file is not None else default_key_file(out)]
    if masks is not None:
        exclude.append(masks)
        log.info("files under %s are taken as masks, not as films", masks)
    with _open_ledger(out, recorded) as ledger:
        scan_inputs(ledger, walk(sources, exclude), Scanner(roots=roots, key=key, masks=masks), workers)
        plan_samples(ledger, settings, meta, roots, key)
        plan = plan_sha256(ledger, settings, recorded)
        if (manifest := _finished_manifest(out)) is not None:
            return _already_complete(out, manifest, plan)
        writer = ShardWriter(
            roots=roots,
            out=out,
            key=key,
            side=settings.side,
            format=settings.format,
            quality=settings.quality,
            contour=settings.contour,
        )
        _write_shards(ledger, writer, shard_tasks(ledger, settings, recorded), workers)
        if not any(ledger.shards(split) for split in SPLITS):
            raise ValueError(f"no film could be read: {what_was_found(ledger)}")
        summary = _finalise(ledger, out, recorded, plan)
    shutil.rmtree(out / BUILD_FOLDER)
    return summary


def _say_what_is_odd(summary: BuildSummary, settings: BuildSettings) -> None:
    if settings.contour != "rect" and (without := summary.contours.get("rect", 0)):
        log.warning("%d of %d films have no mask and got the rectangle", without, summary.samples)
    for split, fraction in zip(SPLITS, settings.fractions, strict=True):
        if fraction > 0 and summary.splits[split] == 0:
            log.warning("no film is in %s: there are few patients; another --salt divides them anew", split)


# Output folder and ledger


def _check_output_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    is_ours = (out / MANIFEST).exists() or (out / BUILD_FOLDER).exists()
    if out.is_dir() and not is_ours and any(out.iterdir()):
        raise ValueError(f"--out {out} holds files that are no data set; give an empty or new folder")


def _finished_manifest(out: Path) -> dict | None:
    path = out / MANIFEST
    return json.loads(path.read_bytes()) if path.exists() else None


@contextlib.contextmanager
def _open_ledger(out: Path, recorded: dict[str, object]) -> Iterator[Ledger]:
    """The ledger of a build of these settings, under a lock."""
    finished = _finished_manifest(out)
    if finished is not None:
        _refuse_other_settings(out, finished["settings"], recorded)
    folder = out / BUILD_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock, contextlib.ExitStack() as stack:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another build is writing to {out}") from error
        except OSError as error:  # some network file systems have no locks
            log.warning("no file locks at %s (%s): let only one build write there", out, error.strerror)
        if finished is not None:  # whatever this run finds, the data set is complete without it
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        ledger = stack.enter_context(contextlib.closing(Ledger(folder / _LEDGER)))
        current = recorded | {"software": _software()}
        if known := ledger.settings():
            _refuse_other_settings(out, known, current)
        ledger.set_settings(current)
        try:
            yield ledger
        except ValueError:
            if not any(ledger.shards(split) for split in SPLITS):
                # Nothing was made, so the next attempt may ask for something else.
                stack.callback(_discard, out)
            raise


def _discard(out: Path) -> None:
    shutil.rmtree(out / BUILD_FOLDER, ignore_errors=True)
    for folder in (*(out / split for split in SPLITS), out):
        with contextlib.suppress(OSError):  # not there, or not empty and so not ours
            folder.rmdir()


def _refuse_other_settings(out: Path, known: dict[str, object], wanted: dict[str, object]) -> None:
    differing = [name for name in wanted if known.get(name) != wanted[name]]
    if differing:
        fields = "; ".join(f"{name}: {known.get(name)!r} there, {wanted[name]!r} now" for name in differing)
        raise ValueError(f"--out {out} belongs to a build with other settings ({fields}); give another one")


def _software() -> dict[str, str]:
    """The versions that may change the bytes of the output."""
    return {name: importlib.metadata.version(name) for name in _SOFTWARE}


# Write


def _write_shards(ledger: Ledger, writer: ShardWriter, tasks: Iterable[ShardTask], workers: int) -> None:
    for split in SPLITS:
        (writer.out / split).mkdir(exist_ok=True)
        remove_temporary_files(writer.out / split)
    todo = _unfinished(ledger, writer.out, tasks)
    deaths: Counter[str] = Counter()
    failed = 0
    with progress_bar("shards", total=ledger.count_samples()) as bar:
        while True:
            again: list[ShardTask] = []
            for task, result in run_tasks(writer, todo, workers=workers, on_step=bar.advance):
                if isinstance(result, Died):
                    deaths[result.item] += 1
                    log.warning("a worker died at film %s (exit code %d)", result.item, result.exit_code)
                    if not result.item and deaths[""] >= _MAX_DEATHS:
                        raise BuildStoppedError(
                            "workers die before their first film; is there enough memory?"
                        )
                    crashed = {key for key, count in deaths.items() if count >= _MAX_DEATHS}
                    again.append(dataclasses.replace(task, crashed=task.crashed | crashed))
                    continue
                ledger.add_shard(result.file, result.rows, result.failures)
                failed += len(result.failures)
                bar.note(f"{failed} in quarantine" if failed else "")
            if not again:
                return
            todo = iter(again)


def _unfinished(ledger: Ledger, out: Path, tasks: Iterable[ShardTask]) -> Iterator[ShardTask]:
    """The shards that are not there yet; those of an older plan are forgotten."""
    kept = 0
    numbers: Counter[str] = Counter()
    for task in tasks:
        numbers[task.split] += 1
        known = ledger.shard(task.split, task.number)
        path = out / task.split / shard_name(task.number)
        size = path.stat().st_size if path.exists() else 0
        if known is not None and known.plan == task.plan and known.bytes == size:
            kept += 1
            continue
        ledger.forget_shard(task.split, task.number)
        yield task
    for split in SPLITS:
        ledger.forget_shards_from(split, numbers[split])
    if kept:
        log.info("going on with an interrupted build: %d shards were finished already", kept)


# Finalise


def _finalise(ledger: Ledger, out: Path, recorded: dict[str, object], plan: str) -> BuildSummary:
    """Write the tables, and the manifest last: a folder with a manifest is complete."""
    splits = {}
    contours: Counter[str] = Counter()
    for split in SPLITS:
        shards = ledger.shards(split)
        _remove_strays(out / split, {shard_name(shard.number) for shard in shards})
        write_index(ledger, out, split)
        patients = set()
        for shard in shards:
            records = [json.loads(record) for _, record in ledger.rows(split, shard.number)]
            patients.update(record["patient"] for record in records)
            contours.update(record["contour"] for record in records)
        splits[split] = {
            "samples": sum(shard.samples for shard in shards),
            "patients": len(patients),
            "shards": [
                {
                    "name": shard_name(shard.number),
                    "samples": shard.samples,
                    "bytes": shard.bytes,
                    "sha256": shard.sha256,
                }
                for shard in shards
            ],
        }
    write_samples(ledger, out)
    quarantined = write_quarantine(ledger.left_out(), out)
    states = ledger.count_inputs()
    counts = {
        "inputs": sum(states.values()),
        "samples": sum(split["samples"] for split in splits.values()),
        "quarantined": quarantined,
        "ignored": states.get("ignored", 0),
    }
    assert counts["inputs"] == counts["samples"] + counts["quarantined"] + counts["ignored"]
    tables = [SAMPLES, QUARANTINE, *(f"{split}/{INDEX}" for split in SPLITS)]
    manifest = {
        "format_version": FORMAT_VERSION,
        "settings": recorded,
        "software": _software(),
        "plan_sha256": plan,
        "counts": counts,
        "contours": dict(sorted(contours.items())),
        "splits": splits,
        "tables": {name: file_sha256(out / name) for name in tables},
    }
    write_whole(out / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n")
    return _summary(manifest)


def _remove_strays(folder: Path, names: set[str]) -> None:
    """Shards that an interrupted build of an older plan left behind."""
    for path in folder.glob("shard-*"):
        if path.with_suffix(".tar").name not in names:
            path.unlink()


def _already_complete(out: Path, manifest: dict, plan: str) -> BuildSummary:
    if manifest["plan_sha256"] != plan:
        raise ValueError(
            f"--out {out} is a finished data set of other input: files, tables or masks have changed since; "
            "give another folder"
        )
    log.info("%s is complete already; nothing to do", out)
    return _summary(manifest)


def _summary(manifest: dict) -> BuildSummary:
    return BuildSummary(
        **manifest["counts"],
        splits={split: manifest["splits"][split]["samples"] for split in SPLITS},
        contours=manifest["contours"],
    )
