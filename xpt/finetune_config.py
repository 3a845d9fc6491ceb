"""Settings of a fine-tuning run: frozen dataclasses and presets, as in `xpt/config.py`."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xpt.command_line import parse_run
from xpt.config import DataConfig, EncoderConfig, RunConfig, TrainConfig, check
from xpt.report_config import ReportConfig


@dataclass(frozen=True, kw_only=True)
class RecognitionConfig:
    """Which findings are learned, from which films, and how."""

    protocol: Literal["full", "linear", "attentive", "logistic", "knn"] = "full"
    """`full`: all weights; `linear`, `attentive`: a head on the frozen encoder; `logistic`, `knn`: fitted
    on features, without training steps."""
    label_map: Literal["nih14", "chexpert", "mimic", "rsna", "phantom", "free"] = "nih14"
    """Names that the shards' labels may have, and what is learned of them (`xpt/data/labels.py`)."""
    findings: tuple[str, ...] = ()
    """What is learned; empty: the label map's. Needed with `free`."""
    kind: Literal["auto", "multi_label", "multi_class"] = "auto"
    """Any number of findings per film, or exactly one; `auto`: the label map's."""
    other_labels: Literal["refuse", "ignore"] = "refuse"
    """What to do where the shards have labels that the map does not know."""
    uncertain: Literal["ignore", "ones", "zeros", "soft"] = "ignore"
    """What an uncertain label (-1) counts as; `soft`: a target of `uncertain_target` in training, ignored
    in evaluation."""
    uncertain_target: float = 0.7
    """The middle of the range of Pham et al. (arXiv 1911.06475) for uncertain labels."""
    missing: Literal["ignore", "zeros"] = "ignore"
    """What a finding that a film's labels do not name counts as."""
    fraction: float = 1.0
    """Share of the training patients whose labels are used; a smaller share is part of a larger one."""
    fraction_seed: int = 0
    """Another seed, other patients."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: positives and negatives of a finding (or all classes) weigh the same in sum."""
    pool: Literal["mean", "grid", "cls", "attentive"] = "mean"
    """What the head looks at: the mean of the patches that show film; the means of 7 x 7 cells side by side,
    which keeps apart where things are; the class token; or patches weighted by a learned query (always, under
    the protocol `attentive`)."""
    layer_decay: float = 0.65
    """Learning rate of each block over that of the block above it."""
    drop_path: float = 0.2
    """Probability of leaving out the last block, falling to 0 for the first (stochastic depth)."""
    mixup: float = 0.0
    """Parameter of the Beta distribution that weighs two mixed films of a micro-batch; 0: no mixing."""
    ema: float = 0.0
    """Decay per step of the running mean of the weights, which is then what is validated; 0: none."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly."""
    neighbours: int = 20
    """Of `knn`."""
    l2: float = 1.0
    """Weight penalty of `logistic`."""

    def __post_init__(self) -> None:
        for name in ("uncertain_target", "drop_path", "ema", "label_smoothing"):
            value = getattr(self, name)
            check(0 <= value < 1, f"recognition.{name}", value, "a number in [0, 1)")
        for name in ("fraction", "layer_decay"):
            value = getattr(self, name)
            check(0 < value <= 1, f"recognition.{name}", value, "a number in (0, 1]")
        check(self.mixup >= 0, "recognition.mixup", self.mixup, "0 or more")
        check(self.l2 > 0, "recognition.l2", self.l2, "more than 0")
        check(self.neighbours >= 1, "recognition.neighbours", self.neighbours, "at least 1")
        check(
            self.trains or self.pool != "attentive",
            "recognition.pool",
            self.pool,
            f"mean, grid or cls under the protocol {self.protocol}, which learns no query",
        )
        twice = {name for name in self.findings if self.findings.count(name) > 1}
        check(not twice, "recognition.findings", self.findings, "each finding once")
        check(
            self.label_map != "free" or bool(self.findings),
            "recognition.findings",
            self.findings,
            "the names of the findings, because recognition.label_map is free",
        )

    @property
    def trains(self) -> bool:
        """Whether there are training steps."""
        return self.protocol not in ("logistic", "knn")

    @property
    def is_frozen(self) -> bool:
        """Whether the encoder stays as it was loaded."""
        return self.protocol != "full"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """A whole fine-tuning run."""

    task: Literal["recognition", "report"] = "recognition"
    """What is learned: findings from labels, or reports from texts. Of the sections `recognition` and
    `report` only the task's own counts. For reports, what is counted in images is counted in studies."""
    init: str = ""
    """A pretraining run, or a file with a state dict, that the encoder starts from; empty: random weights."""
    data: DataConfig = field(default_factory=lambda: DataConfig(crop_scale=(0.8, 1.0)))
    train: TrainConfig = field(default_factory=lambda: FINETUNING)
    recognition: RecognitionConfig = field(default_factory=RecognitionConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        check(
            self.train.eval_images >= 1,
            "train.eval_images",
            self.train.eval_images,
            "at least 1 in fine-tuning, whose best weights validation chooses",
        )
        for name in ("max_skipped", "probe_films"):
            default = getattr(TrainConfig, name)
            check(
                getattr(self.train, name) == default,
                f"train.{name}",
                getattr(self.train, name),
                f"its default, {default}, in fine-tuning, which makes no use of it",
            )

    @property
    def tuning(self) -> RecognitionConfig | ReportConfig:
        """The section of the task."""
        return self.report if self.task == "report" else self.recognition


FINETUNING = TrainConfig(
    images=2_000_000,
    batch=256,
    micro_batch=8,
    base_lr=5e-4,
    warmup_images=100_000,
    betas=(0.9, 0.999),
    eval_images=50_000,
    eval_films=4_000,
    checkpoint_images=50_000,
)


def demo() -> FinetuneConfig:
    """The demo's encoder on the phantoms' findings: a minute on two CPU cores."""
    return FinetuneConfig(
        preset="demo",
        data=DataConfig(crop_to="chest", crop_scale=(0.8, 1.0), threads=1, readers=1),
        model=EncoderConfig(side=224, width=128, depth=4, heads=2),
        train=dataclasses.replace(
            FINETUNING,
            images=4_000,
            batch=8,
            micro_batch=8,
            base_lr=0.032,
            warmup_images=400,
            log_images=500,
            eval_images=1_000,
            checkpoint_images=2_000,
        ),
        recognition=RecognitionConfig(label_map="phantom", pool="grid", drop_path=0.0),
        report=ReportConfig(pool=2, vocabulary=1024, width=128, depth=2, heads=2, drop_path=0.0),
    )


def vit_b_512() -> FinetuneConfig:
    """ViT-B at 512 pixels."""
    train = dataclasses.replace(FINETUNING, micro_batch=32)
    return FinetuneConfig(
        preset="vit_b_512", model=EncoderConfig(side=512, width=768, depth=12, heads=12), train=train
    )


def vit_l_1280() -> FinetuneConfig:
    """ViT-L at 1280 pixels, 6,400 tokens; recomputes its blocks, so that small GPUs do."""
    train = dataclasses.replace(FINETUNING, micro_batch=4)
    return FinetuneConfig(model=EncoderConfig(activation_checkpointing="blocks"), train=train)


PRESETS: dict[str, Callable[[], FinetuneConfig]] = {f.__name__: f for f in (demo, vit_b_512, vit_l_1280)}


def parse(arguments: Sequence[str]) -> FinetuneConfig:
    """The configuration of a command line; raises as `xpt.command_line.parse_run` does."""
    config = parse_run(arguments, PRESETS, default="vit_l_1280")
    if config.run_dir:
        return config
    start = Path(config.init).stem if config.init else "scratch"
    return dataclasses.replace(config, run_dir=f"runs/{config.preset}-{config.task}-{start}")


def from_json(content: dict[str, Any]) -> FinetuneConfig:
    """The configuration that `xpt.config.as_json` wrote."""

    def section(kind: type, values: dict[str, Any]) -> Any:  # noqa: ANN401  one of the sections
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    sections = {
        "data": DataConfig,
        "model": EncoderConfig,
        "train": TrainConfig,
        "recognition": RecognitionConfig,
        "report": ReportConfig,
    }
    return FinetuneConfig(**{k: section(sections[k], v) if k in sections else v for k, v in content.items()})
