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
from xpt.tasks.generation import GenerationConfig
from xpt.text.normalise import Language


@dataclass(frozen=True, kw_only=True)
class Options:
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Films of one study, a frontal one first."""
    run: Path
    """Run folder of xpt-finetune --task report."""
    lang: Language = "en"
    """Language of the report, one that the model learned."""
    draws: int = 0
    """So many more reports, drawn at random, one per line: where they differ, the model is not sure."""
    temperature: float = 1.0
    """Of the draws: below 1 they keep to what is likely."""
    top_p: float = 0.9
    """Each token of a draw is one of the likeliest that make up this share."""
    seed: int = 0
    """Another seed, other draws."""


def main() -> None:
    try:
        reports = write_reports(tyro.cli(Options, description=__doc__))
    except (ValueError, OSError) as error:
        raise SystemExit(f"xpt-report: {error}") from error
    sys.stdout.write("".join(report + "\n" for report in reports))


@torch.no_grad()
def write_reports(options: Options) -> list[str]:
    """The likeliest report, then the draws.

    Raises ValueError for films that cannot be read, too many of them, or a language not learned.
    """
    drawing = GenerationConfig(temperature=options.temperature, top_p=options.top_p, seed=options.seed)
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
    reports = trained.writer.reports(trained.model, memory, options.lang)
    if options.draws:
        many = memory.repeat(options.draws)
        reports += trained.writer.draws(trained.model, many, options.lang, drawing)
    return reports


if __name__ == "__main__":
    main()
