"""Write the report of one study with a fine-tuned model.

    xpt-report IMAGE.dcm --run RUN --lang zh

IMAGE is a DICOM, PNG or JPEG file, read as `xpt-shards build` reads it; several are films of one study.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from xpt.data.film import read_study
from xpt.models.report_decoder import Memory
from xpt.tasks.best import load_writer
from xpt.text.normalise import Language


@dataclass(frozen=True, kw_only=True)
class Options:
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Films of one study, a frontal one first."""
    run: Path
    """Run folder of xpt-finetune --task report."""
    lang: Language = "en"
    """Language of the report, one that the model learned."""


def main() -> None:
    try:
        report = write_report(tyro.cli(Options, description=__doc__))
    except (ValueError, OSError) as error:
        raise SystemExit(f"xpt-report: {error}") from error
    sys.stdout.write(report + "\n")


@torch.no_grad()
def write_report(options: Options) -> str:
    """Raises ValueError for films that cannot be read, too many of them, or a language not learned."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = load_writer(options.run, device)
    learned, views = trained.config.report.languages, trained.config.report.views
    if options.lang not in learned:
        raise ValueError(f"--lang {options.lang}: {options.run} learned {', '.join(learned)} only")
    if not 1 <= len(options.images) <= views:
        raise ValueError(
            f"got {len(options.images)} films, wanted 1 to {views}, as many as {options.run} learned from"
        )
    encoder = trained.config.model
    image_VCHW, is_valid_VL = read_study(
        options.images, side=encoder.side, patch=encoder.patch, crop_to=trained.config.data.crop_to
    )
    there_V = torch.arange(len(image_VCHW), device=device)
    memory: Memory = trained.model.remember(image_VCHW.to(device), is_valid_VL.to(device), there_V, 1)
    (report,) = trained.writer.reports(trained.model, memory, options.lang)
    return report


if __name__ == "__main__":
    main()
