"""Raw archive to shard data set: scan, make the films, settle their places, write shards, finalise."""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards_tool.assemble import finalise, summary_of, write_shards
from shards_tool.contour import MaskFolder, contour_finder, model_sha256
from shards_tool.ledger import Ledger
from shards_tool.make import make_films
from shards_tool.output import (
    BUILD_FOLDER,
    LEDGER,
    check_output_folder,
    finished_manifest,
    open_ledger,
    refuse_other_settings,
    software,
    stopping_cleanly,
)
from shards_tool.pack import FilmMaker
from shards_tool.plan import input_sha256, plan_samples, scan_inputs, shard_tasks, share_of, what_was_found
from shards_tool.privacy import default_key_file, load_key, pseudonym
from shards_tool.scan import Scanner
from shards_tool.schema import SPLITS
from shards_tool.settings import BuildSettings, BuildSummary, PartSummary
from shards_tool.settle import Known, read_known, settle
from shards_tool.shard import ShardWriter
from shards_tool.sources import SPOOL, Found, Root, Source, source_of, walk
from shards_tool.tables import write_quarantine
from shards_tool.workers import cpu_count

log = logging.getLogger(__name__)

_PART = "part-{number:03d}-of-{count:03d}"
"""Folder of one share of a job array, inside BUILD_FOLDER."""
_IS_DONE = "part is done"


def build(
    sources: Sequence[str | Path],
    out: Path,
    settings: BuildSettings | None = None,
    *,
    meta: Sequence[Path] = (),
    exclude_from: Sequence[Path] = (),
    key_file: Path | None = None,
    workers: int | None = None,
    merge: bool = False,
) -> BuildSummary:
    """Build a data set from folders and files, or go on with one that was interrupted.

    Args:
        meta: tables of labels and reports.
        exclude_from: data sets, or lists of hashes, whose films are left out.
        key_file: secret for the pseudonyms; None takes `OUT.key` beside the output folder, made if absent.
        workers: processes; 0 works in this one, None takes one per CPU.
        merge: take the films that `build_part` has made.

    Raises:
        ValueError: something about the request is wrong: a source, table, key, setting, or an output
            folder that holds something else.
        BuildStoppedError: the disk is full, a folder cannot be written, or a source went away.
    """
    request = _request(sources, out, settings, meta, exclude_from, key_file, workers)
    with stopping_cleanly():
        summary = _build(request, merge=merge)
    _say_what_is_odd(summary, request.settings)
    return summary


def build_part(
    sources: Sequence[str | Path],
    out: Path,
    settings: BuildSettings | None = None,
    *,
    part: tuple[int, int],
    meta: Sequence[Path] = (),
    exclude_from: Sequence[Path] = (),
    key_file: Path | None = None,
    workers: int | None = None,
) -> PartSummary:
    """Read one share of the films, on one machine of several; `build(merge=True)` then makes the data set.

    Args:
        part: (i, n), i from 1 to n. Which share a file is in depends on its path below the source alone.

    Raises:
        ValueError, BuildStoppedError: as `build`; and where there is no key file, because the machines
            have to agree on one.
    """
    number, count = part
    if not 1 <= number <= count:
        raise ValueError(f"--part {number}/{count}: wanted I/N with I from 1 to N")
    if not (key_file or default_key_file(out)).exists():
        raise ValueError(
            f"--part needs a key file that all parts share; make one with: "
            f"(umask 077; openssl rand -hex 32 > {key_file or default_key_file(out)})"
        )
    name = f"{BUILD_FOLDER}/{_PART.format(number=number, count=count)}"
    request = _request(sources, out, settings, meta, exclude_from, key_file, workers, folder=name)
    with stopping_cleanly():
        return _build_part(request, name, number, count)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What was asked for, checked."""

    sources: list[Source]
    out: Path
    settings: BuildSettings
    recorded: dict[str, object]
    contour_model: str
    """SHA-256 of its file, or ""."""
    meta: Sequence[Path]
    known: Known | None
    key: bytes
    masks: Path | None
    not_input: list[Path]
    workers: int

    @property
    def roots(self) -> tuple[Root, ...]:
        return tuple(source.root for source in self.sources)

    def found(self) -> Iterator[Found]:
        return walk(self.sources, self.not_input)

    def scanner(self) -> Scanner:
        return Scanner(roots=self.roots, key=self.key, masks=self.masks, rules=self.settings.film_rules())


def _request(
    sources: Sequence[str | Path],
    out: Path,
    settings: BuildSettings | None,
    meta: Sequence[Path],
    exclude_from: Sequence[Path],
    key_file: Path | None,
    workers: int | None,
    *,
    folder: str = BUILD_FOLDER,
) -> _Request:
    """Check what was asked for; archives are unpacked below `folder`, which is that of this process alone."""
    settings = settings if settings is not None else BuildSettings()
    if not sources:
        raise ValueError("no sources: give the folders or files to build from")
    finder = contour_finder(settings.contour)
    masks = finder.folder if isinstance(finder, MaskFolder) else None
    known = read_known(exclude_from) if exclude_from else None
    with stopping_cleanly():
        check_output_folder(out)
        opened = [source_of(source, out.absolute() / folder / SPOOL) for source in sources]
        key = load_key(key_file, out)
    not_input = [out, key_file if key_file is not None else default_key_file(out)]
    if masks is not None:
        not_input.append(masks)
        log.info("files under %s are taken as masks, not as films", masks)
    fingerprints = {
        "key_fingerprint": pseudonym(key, "fingerprint", ""),
        "exclude_from": known.fingerprint() if known is not None else "",
        "contour_model": model_sha256(finder),
    }
    return _Request(
        sources=opened,
        out=out,
        settings=settings,
        recorded=settings.recorded() | fingerprints,
        contour_model=fingerprints["contour_model"],
        meta=meta,
        known=known,
        key=key,
        masks=masks,
        not_input=not_input,
        workers=workers if workers is not None else cpu_count(),
    )


def _build(request: _Request, *, merge: bool) -> BuildSummary:
    out, settings = request.out, request.settings
    with open_ledger(out, out / BUILD_FOLDER, request.recorded) as ledger:
        _take_parts(ledger, request, wanted=merge)
        scan_inputs(ledger, request.found(), request.scanner(), request.workers)
        placed = plan_samples(ledger, request.meta, request.roots, request.key, request.settings)
        if ledger.count_samples() == 0:
            raise ValueError(f"no films found: {what_was_found(ledger)}")
        if settings.splits == "published" and not placed:
            raise ValueError(
                "--splits published: the tables of --meta put none of the films into a split; docs/shards.md "
                "says which tables do, and how a table names its films"
            )
        asked = input_sha256(ledger, request.recorded)
        if (manifest := finished_manifest(out)) is not None:
            return _already_complete(out, manifest, asked)
        make_films(ledger, _film_maker(request), BUILD_FOLDER, request.workers)
        settle(ledger, settings, request.key, request.known)
        if (samples := ledger.count_samples()) == 0:
            raise ValueError(f"no film could be read: {what_was_found(ledger)}")
        writer = ShardWriter(out=out, pieces=out, format=settings.format)
        tasks = shard_tasks(ledger, settings.shard_size, request.recorded)
        write_shards(ledger, writer, tasks, samples=samples, workers=request.workers)
        inputs = sum(ledger.count_inputs().values())
        manifest = {"settings": request.recorded, "software": software(), "input_sha256": asked}
        summary = finalise(ledger, out, manifest, write_quarantine(ledger.left_out(), out))
        assert summary.inputs == inputs
    shutil.rmtree(out / BUILD_FOLDER)
    return summary


def _build_part(request: _Request, name: str, number: int, count: int) -> PartSummary:
    if finished_manifest(request.out) is not None:
        raise ValueError(f"--out {request.out} is a finished data set; give another folder")
    with open_ledger(request.out, request.out / name, request.recorded) as ledger:
        share = (found for found in request.found() if share_of(found, count) == number)
        scan_inputs(ledger, share, request.scanner(), request.workers)
        plan_samples(ledger, request.meta, request.roots, request.key, request.settings)
        make_films(ledger, _film_maker(request), name, request.workers)
        ledger.set_settings({_IS_DONE: True})
        return PartSummary(inputs=sum(ledger.count_inputs().values()), films=ledger.count_samples())


def _film_maker(request: _Request) -> FilmMaker:
    return FilmMaker(
        roots=request.roots,
        out=request.out,
        key=request.key,
        side=request.settings.side,
        format=request.settings.format,
        quality=request.settings.quality,
        contour=request.settings.contour,
        contour_model=request.contour_model,
        rules=request.settings.film_rules(),
    )


def _take_parts(ledger: Ledger, request: _Request, *, wanted: bool) -> None:
    """Add what the parts of a job array have made to the ledger of the whole."""
    folders = sorted((request.out / BUILD_FOLDER).glob("part-*-of-*"))
    if not wanted:
        if folders and not finished_manifest(request.out):
            raise ValueError(f"--out {request.out} holds parts of a job array: give merge instead of build")
        return
    if not folders:
        if finished_manifest(request.out) is None:
            raise ValueError(f"--out {request.out} holds no parts to merge: build them with --part I/N first")
        return
    count = int(folders[0].name.rpartition("-")[2])
    expected = [_PART.format(number=number, count=count) for number in range(1, count + 1)]
    if odd := {folder.name for folder in folders} - set(expected):
        raise ValueError(f"--out {request.out} holds parts of another job array: {', '.join(sorted(odd))}")
    for name in expected:
        path = request.out / BUILD_FOLDER / name / LEDGER
        if not path.exists():
            raise ValueError(f"{name} is missing in {request.out / BUILD_FOLDER}: run it, then merge")
        with contextlib.closing(Ledger(path)) as part:
            known = part.settings()
        refuse_other_settings(request.out, known, request.recorded | {"software": software()})
        if not known.get(_IS_DONE):
            raise ValueError(f"{name} is not finished: run it again to go on, then merge")
        ledger.take(path)


def _say_what_is_odd(summary: BuildSummary, settings: BuildSettings) -> None:
    if settings.contour != "rect" and (without := summary.contours.get("rect", 0)):
        log.warning("%d of %d films have no mask and got the rectangle", without, summary.samples)
    if unsure := summary.contours.get("mean", 0):
        log.warning(
            "%d of %d films got the mean chest, theirs was not found: look at xpt-shards preview --worst",
            unsure,
            summary.samples,
        )
    is_drawn = settings.splits == "drawn"
    why = "there are few patients; another --salt divides them anew" if is_drawn else "the tables name none"
    for split, fraction in zip(SPLITS, settings.fractions, strict=True):
        if (fraction > 0 or not is_drawn) and summary.splits[split] == 0:
            log.warning("no film is in %s: %s", split, why)


def _already_complete(out: Path, manifest: dict, asked: str) -> BuildSummary:
    if manifest["input_sha256"] != asked:
        raise ValueError(
            f"--out {out} is a finished data set of other input: files, tables or masks have changed since; "
            "give another folder"
        )
    log.info("%s is complete already; nothing to do", out)
    return summary_of(manifest)
