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

from shards_tool.build import build
from shards_tool.preview import write_contact_sheet
from shards_tool.schema import QUARANTINE
from shards_tool.settings import BuildSettings, BuildStoppedError, BuildSummary
from shards_tool.verify import Verdict, verify
from shards_tool.workers import cpu_count


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Draw an archive of synthetic chest films: DICOM files, reports, labels, and the truth about them."""

    out: tyro.conf.Positional[Path]
    """Folder to write."""
    patients: int = 40
    seed: int = 0
    workers: int | None = None
    """Processes; by default one per CPU."""

    def run(self) -> int:
        from shards_tool.phantom import write_archive

        workers = self.workers if self.workers is not None else cpu_count()
        write_archive(self.out, patients=self.patients, seed=self.seed, workers=workers)
        return 0


@dataclass(frozen=True, kw_only=True)
class Build:
    """Turn folders of DICOM, PNG and JPEG into shards. Run again to go on where a build was stopped."""

    sources: tyro.conf.Positional[tuple[Path, ...]]
    """Folders and files."""
    out: Path
    """Folder of the data set."""
    settings: tyro.conf.OmitArgPrefixes[BuildSettings] = field(default_factory=BuildSettings)
    meta: tuple[Path, ...] = ()
    """CSV, TSV, JSON or JSONL tables with a column file, and any of patient, study, view, sex, age, labels,
    label:NAME, report_en, report_zh."""
    key_file: Path | None = None
    """Secret for the pseudonyms; by default OUT.key beside the output folder, made if absent."""
    workers: int | None = None
    """Processes; by default one per CPU, 0 for none besides this one."""

    def run(self) -> int:
        summary = build(
            self.sources,
            self.out,
            self.settings,
            meta=self.meta,
            key_file=self.key_file,
            workers=self.workers,
        )
        _print_summary(summary, self.out)
        return 0


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check every byte, picture, record and count of a data set; exit status 1 if anything is wrong."""

    folder: tyro.conf.Positional[Path]
    workers: int | None = None
    """Processes; by default one per CPU."""

    def run(self) -> int:
        verdict = verify(self.folder, workers=self.workers)
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

    def run(self) -> int:
        write_contact_sheet(self.folder, self.out, count=self.count, columns=self.columns, split=self.split)
        Console().print(f"wrote {self.out}")
        return 0


Command = (
    Annotated[Phantom, tyro.conf.subcommand("phantom")]
    | Annotated[Build, tyro.conf.subcommand("build")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Preview, tyro.conf.subcommand("preview")]
)


def main(args: list[str] | None = None) -> None:
    """Entry point of the console script; ends the process with the command's exit status."""
    command = tyro.cli(Command, args=args, prog="xpt-shards", description=__doc__)
    console = Console(stderr=True)
    handler = RichHandler(console=console, show_time=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("shards_tool").setLevel(logging.INFO)
    try:
        status = command.run()
    except (ValueError, BuildStoppedError) as error:
        console.print(f"[bold red]error:[/] {error}", highlight=False)
        status = 2
    except KeyboardInterrupt:
        console.print("stopped; run the same command to go on")
        status = 130
    sys.exit(status)


def _print_summary(summary: BuildSummary, out: Path) -> None:
    console = Console()
    splits = ", ".join(f"{count} {split}" for split, count in summary.splits.items())
    console.print(f"{summary.inputs} files: {summary.samples} films ({splits}) in {out}", highlight=False)
    contours = ", ".join(f"{count} {method}" for method, count in summary.contours.items())
    console.print(f"contours: {contours}", highlight=False)
    if summary.quarantined:
        table = out / QUARANTINE
        console.print(f"{summary.quarantined} in quarantine, with reasons in {table}", highlight=False)
    if summary.ignored:
        console.print(f"{summary.ignored} ignored as plainly no images", highlight=False)


def _print_verdict(verdict: Verdict) -> None:
    console = Console()
    table = Table("split", "shards", "samples", "MB", "faults")
    for split, row in verdict.splits.items():
        table.add_row(
            split, str(row["shards"]), str(row["samples"]), f"{row['bytes'] / 1e6:.1f}", str(row["faults"])
        )
    console.print(table)
    for fault in verdict.faults:
        line = " ".join(part for part in (fault.where, fault.key) if part) + f": {fault.what}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print("no faults" if not verdict.faults else f"{len(verdict.faults)} faults", highlight=False)
