"""`xpt-shards`: raw archive to shards, and looking at what came out."""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from shards_tool.boxes import write_boxes
from shards_tool.build import build, build_part
from shards_tool.contour.command import LINES, write_contours
from shards_tool.originals import Originals
from shards_tool.preview import write_contact_sheet
from shards_tool.privacy import default_key_file, load_key
from shards_tool.reindex import rebuild_index
from shards_tool.schema import QUARANTINE
from shards_tool.settings import BuildSettings, BuildStoppedError, BuildSummary
from shards_tool.split import split_again
from shards_tool.stats import shortened, stats_of, write_page
from shards_tool.verify import Verdict, verify
from shards_tool.workers import cpu_count


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Draw an archive of synthetic chest films: DICOM files, reports, labels, and the truth about them."""

    out: tyro.conf.Positional[Path]
    """Folder to write."""
    patients: int = 40
    seed: int = 0
    side: int = 1440
    """Typical longest side in pixels; films vary by a tenth around it."""
    workers: int | None = None
    """Processes; by default one per CPU."""

    def run(self) -> int:
        from shards_tool.phantom import write_archive

        workers = self.workers if self.workers is not None else cpu_count()
        made = write_archive(
            self.out, patients=self.patients, seed=self.seed, side=self.side, workers=workers
        )
        _say(
            f"{made.films} films of {made.patients} patients in {self.out}, {made.kept} of them there before"
        )
        _say("labels: " + ", ".join(f"{count} {label}" for label, count in made.labels.items()))
        return 0


@dataclass(frozen=True, kw_only=True)
class Build:
    """Turn folders of DICOM, PNG and JPEG into shards. Run again to go on where a build was stopped."""

    sources: tyro.conf.Positional[tuple[str, ...]]
    """Folders, files, zip and tar archives, globs, lists of files (CSV or Parquet with a column file),
    DICOMDIR files, fsspec URLs."""
    out: Path
    """Folder of the data set."""
    settings: tyro.conf.OmitArgPrefixes[BuildSettings] = field(default_factory=BuildSettings)
    meta: tuple[Path, ...] = ()
    """CSV, TSV, JSON or JSONL tables with a column file, and any of patient, study, view, sex, age, labels,
    label:NAME, report_en, report_zh, split; or what public data sets bring: docs/shards.md lists them."""
    key_file: Path | None = None
    """Secret for the pseudonyms; by default OUT.key beside the output folder, made if absent."""
    exclude_from: tuple[Path, ...] = ()
    """Data sets, or texts with a pixel_hash or perceptual_hash in each line: their films are left out."""
    workers: int | None = None
    """Processes; by default one per CPU, 0 for none besides this one."""
    part: str | None = None
    """I/N: only read the films of share I of N; `xpt-shards merge` makes a data set of all shares."""

    def run(self) -> int:
        if self.part is None:
            return _build(self, merge=False)
        done = build_part(
            self.sources,
            self.out,
            self.settings,
            part=_share(self.part),
            meta=self.meta,
            exclude_from=self.exclude_from,
            key_file=self.key_file,
            workers=self.workers,
        )
        _say(f"part {self.part}: {done.films} films of {done.inputs} files")
        return 0


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Make the data set of which `build --part` has read the films; give the other options as there."""

    sources: tyro.conf.Positional[tuple[str, ...]]
    """Folders, files, zip and tar archives, globs, lists of files (CSV or Parquet with a column file),
    DICOMDIR files, fsspec URLs."""
    out: Path
    """Folder of the data set."""
    settings: tyro.conf.OmitArgPrefixes[BuildSettings] = field(default_factory=BuildSettings)
    meta: tuple[Path, ...] = ()
    """Tables of labels, reports and splits."""
    key_file: Path | None = None
    """Secret for the pseudonyms."""
    exclude_from: tuple[Path, ...] = ()
    """Data sets or lists of hashes whose films are left out."""
    workers: int | None = None
    """Processes; by default one per CPU, 0 for none besides this one."""

    def run(self) -> int:
        return _build(self, merge=True)


def _build(request: Build | Merge, *, merge: bool) -> int:
    summary = build(
        request.sources,
        request.out,
        request.settings,
        meta=request.meta,
        exclude_from=request.exclude_from,
        key_file=request.key_file,
        workers=request.workers,
        merge=merge,
    )
    _print_summary(summary, request.out)
    return 0


def _share(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit()):
        raise ValueError(f"--part {text}: wanted I/N, e.g. 3/16")
    return int(number), int(count)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Copy a data set into other splits: by patient and duplicate group, labels spread evenly."""

    folder: tyro.conf.Positional[Path]
    out: Path
    """Folder of the new data set."""
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of samples in train, val and test."""
    salt: str = ""
    """Another salt gives another division."""
    workers: int | None = None
    """Processes; by default one per CPU."""

    def run(self) -> int:
        summary = split_again(
            self.folder, self.out, fractions=self.fractions, salt=self.salt, workers=self.workers
        )
        _print_summary(summary, self.out)
        return 0


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check every byte, picture, record and count of a data set; exit status 1 if anything is wrong."""

    folder: tyro.conf.Positional[Path]
    workers: int | None = None
    """Processes; by default one per CPU."""
    pictures: bool = True
    """Decode every picture; --no-pictures is faster and checks bytes, records and counts only."""

    def run(self) -> int:
        verdict = verify(self.folder, workers=self.workers, pictures=self.pictures)
        _print_verdict(verdict)
        return 1 if verdict.faults else 0


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Make a contact sheet of films with their contours."""

    folder: tyro.conf.Positional[Path]
    out: Path
    """PNG to write."""
    count: int = 24
    columns: int = 6
    split: Literal["train", "val", "test"] | None = None
    """By default all of them."""
    worst: bool = False
    """The films with the least certain contours, the worst first, instead of films from all over."""
    keys: tuple[str, ...] = ()
    """These films, as a run's log or `skipped.jsonl` names them, instead of films from all over."""
    before: tuple[str, ...] = ()
    """Sources of the build: each film is then shown as its file has it, too, without any windowing."""
    key_file: Path | None = None
    """With --before: the secret of the build's pseudonyms; by default FOLDER.key."""

    def run(self) -> int:
        before = None
        if self.before:
            key_file = self.key_file or default_key_file(self.folder)
            before = Originals(sources=self.before, key=load_key(key_file, self.folder))
        write_contact_sheet(
            self.folder,
            self.out,
            count=self.count,
            columns=self.columns,
            split=self.split,
            before=before,
            worst=self.worst,
            keys=self.keys,
        )
        _say(f"wrote {self.out}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Contours:
    """Find the chest in films: a mask STEM.png for each, and a line in contours.jsonl.

    Exit status 1 where a file has no picture in it.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """DICOM, PNG and JPEG files, and folders of them."""
    out: Path
    """Folder to write: 255 lung, 128 chest, 0 outside."""
    contour: str = "network"
    """network, onnx:FILE, masks:DIR, rect or none, as for build."""

    def run(self) -> int:
        summary = write_contours(self.files, self.out, self.contour)
        methods = ", ".join(f"{count} {method or 'unreadable'}" for method, count in summary.methods.items())
        _say(f"{summary.files} files: {methods}; see {self.out / LINES}")
        return 1 if "" in summary.methods else 0


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Count what is in a data set: sizes, views, ages, labels, windows, contours, and what was left out."""

    folder: tyro.conf.Positional[Path]
    out: Path | None = None
    """HTML page to write, or a folder for it."""

    def run(self) -> int:
        sections = stats_of(self.folder)
        console = Console()
        for section in sections:
            if section.counts:
                table = Table(section.title, "")
                table.columns[1].justify = "right"
                for text, count in shortened(section).items():
                    table.add_row(Text(text), str(count))
                console.print(table, section.note)
        if self.out is not None:
            _say(f"wrote {write_page(self.folder, sections, self.out)}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Index:
    """Write index.npy and the .idx files anew from the shards, where they were lost or damaged."""

    folder: tyro.conf.Positional[Path]
    workers: int | None = None
    """Processes; by default one per CPU."""

    def run(self) -> int:
        rebuilt = rebuild_index(self.folder, workers=self.workers)
        for name in rebuilt:
            _say(f"wrote {name}")
        if not rebuilt:
            _say("all index files were right")
        return 0


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Bring boxes around findings from a table of the archive onto the stored pictures."""

    folder: tyro.conf.Positional[Path]
    """The data set."""
    archive: Path
    """Folder of the source films, by which the table names them."""
    table: Path
    """The phantoms' truth.jsonl, NIH's BBox_List_2017.csv, RSNA's stage_2_train_labels.csv."""
    out: Path
    """Parquet file to write: key, finding, top, left, bottom, right."""
    key_file: Path | None = None
    """That of the build; by default beside the data set."""

    def run(self) -> int:
        path = self.key_file or default_key_file(self.folder)
        key = load_key(path, self.folder)
        written, left_out = write_boxes(self.folder, self.archive, self.table, key, self.out)
        _say(f"{written} boxes in {self.out}; {left_out} left out")
        return 0


Command = (
    Annotated[Phantom, tyro.conf.subcommand("phantom")]
    | Annotated[Build, tyro.conf.subcommand("build")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Split, tyro.conf.subcommand("split")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Preview, tyro.conf.subcommand("preview")]
    | Annotated[Contours, tyro.conf.subcommand("contour")]
    | Annotated[Stats, tyro.conf.subcommand("stats")]
    | Annotated[Index, tyro.conf.subcommand("index")]
    | Annotated[Boxes, tyro.conf.subcommand("boxes")]
)


def main(args: list[str] | None = None) -> None:
    """Entry point of the console script; ends the process with the command's exit status."""
    command = tyro.cli(Command, args=args, prog="xpt-shards", description=__doc__)
    handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("shards_tool").setLevel(logging.INFO)
    try:
        status = command.run()
    except (ValueError, OSError, BuildStoppedError) as error:
        _say(Text.assemble(("error:", "bold red"), f" {error}"), is_error=True)
        status = 2
    except KeyboardInterrupt:
        _say("stopped; run the same command to go on", is_error=True)
        status = 130
    sys.exit(status)


def _say(line: str | Text, *, is_error: bool = False) -> None:
    """Print a line as it is: a path may hold what Rich takes for markup, and is not to be cut in two."""
    Console(stderr=is_error, emoji=False).print(line, highlight=False, markup=False, soft_wrap=True)


def _print_summary(summary: BuildSummary, out: Path) -> None:
    splits = ", ".join(f"{count} {split}" for split, count in summary.splits.items())
    _say(f"{summary.inputs} files: {summary.samples} films ({splits}) in {out}")
    contours = ", ".join(f"{count} {method}" for method, count in summary.contours.items())
    _say(f"contours: {contours}")
    if summary.quarantined:
        _say(f"{summary.quarantined} in quarantine, with reasons in {out / QUARANTINE}")
    if summary.excluded or summary.duplicates:
        _say(f"{summary.excluded} excluded by rule, {summary.duplicates} duplicates, all named there")


def _print_verdict(verdict: Verdict) -> None:
    table = Table("split", "shards", "samples", "MB", "faults")
    for split, row in verdict.splits.items():
        table.add_row(
            split, str(row["shards"]), str(row["samples"]), f"{row['bytes'] / 1e6:.1f}", str(row["faults"])
        )
    Console().print(table)
    for fault in verdict.faults:
        line = " ".join(part for part in (fault.where, fault.key) if part) + f": {fault.what}"
        _say(line)
    _say("no faults" if not verdict.faults else f"{len(verdict.faults)} faults")
