"""Settings of a pretraining run: frozen dataclasses, and presets that return a whole one.

Durations are in images, so that they mean the same on one GPU and on a thousand; `TrainConfig`
turns them into steps in one place.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

OPERATIONAL = {"operational": True}
"""Marks a field that may differ when a run is resumed: it changes where or how fast, never what."""

Recompute = Literal["none", "elementwise", "blocks"]


def check(ok: bool, name: str, got: object, wanted: str) -> None:
    if not ok:
        raise ValueError(f"config field {name}: got {got!r}, wanted {wanted}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and how it becomes batches."""

    path: str = field(default="", metadata=OPERATIONAL)
    """Folder made by `xpt-shards build`; empty: the environment variable XPT_DATA."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Smallest and largest share of the frame's area that the random square crop keeps. 0.5 to 1 suits
    chest films better than the 0.2 to 1 of natural images (arXiv 2210.12843)."""
    crop_to: Literal["frame", "chest"] = "frame"
    """What crops are taken from, in training, and what is shown whole, in validation: the `frame` as stored,
    or the square around its `chest` contour, which puts more pixels on the lungs and every chest in the same
    place. Films without a contour are shown whole."""
    flip: float = 0.0
    """Probability of mirroring left and right. 0 by default: side carries meaning in a chest film."""
    window_shards: int = 32
    """Shards whose samples are mixed with each other at a time: more mix better, fewer read more locally."""
    threads: int = field(default=4, metadata=OPERATIONAL)
    """Threads that decode, per rank."""
    readers: int = field(default=4, metadata=OPERATIONAL)
    """Threads that read files, per rank."""
    prefetch: int = field(default=2, metadata=OPERATIONAL)
    """Micro-batches being decoded ahead of the one in use; as many again are being read."""
    max_bad_share: float = field(default=0.01, metadata=OPERATIONAL)
    """Share of films read that may be replaced as damaged before training stops; the first 1,000 films
    are judged as if 1,000 had been read."""
    max_bad_run: int = field(default=16, metadata=OPERATIONAL)
    """Damaged films in a row for one place in a batch before training stops."""
    read_patience: float = field(default=300.0, metadata=OPERATIONAL)
    """Seconds that a failing read is tried again, before the film counts as damaged (where the rest of the
    data set can be read) or training stops (where it cannot)."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        check(0 < low <= high <= 1, "data.crop_scale", self.crop_scale, "0 < smallest <= largest <= 1")
        for name in ("flip", "max_bad_share"):
            check(0 <= getattr(self, name) <= 1, f"data.{name}", getattr(self, name), "a share in [0, 1]")
        for name in ("window_shards", "threads", "readers", "prefetch", "max_bad_run"):
            check(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "at least 1")
        check(self.read_patience >= 0, "data.read_patience", self.read_patience, "0 or more seconds")

    @property
    def augments(self) -> bool:
        """False where every training window is the full frame, not mirrored."""
        return self.crop_scale != (1.0, 1.0) or self.flip > 0


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Which patches the encoder sees. The paper masks the chest more than what surrounds it."""

    strategy: Literal["contour", "rect", "random"] = "contour"
    """`contour`: each image's own; `rect`: one rectangle, as the paper's released code; `random`: MAE's."""
    region: Literal["chest", "lung", "both"] = "chest"
    """What counts as inside under `contour`: the chest (both lungs' hull), the lung fields alone, or `both`:
    lung fully and the rest of the chest by half, which the draw `weighted` turns into a rate between."""
    draw: Literal["stratified", "weighted"] = "stratified"
    """`stratified`: exact counts inside and outside; `weighted`: one draw with soft borders."""
    ratio: float = 0.90
    """Share of all patches that is masked; the number kept is the same for every image."""
    keep_inside: float = 0.05
    """Keep rate inside the region; only its ratio to `keep_outside` matters, `ratio` sets the total."""
    keep_outside: float = 0.15
    """Keep rate outside the region."""

    def __post_init__(self) -> None:
        check(0 < self.ratio < 1, "mask.ratio", self.ratio, "a share in (0, 1)")
        for name in ("keep_inside", "keep_outside"):
            rate = getattr(self, name)
            check(0 < rate <= 1, f"mask.{name}", rate, "a rate in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A Vision Transformer."""

    side: int = 1280
    """Side of the square input, pixels."""
    patch: int = 16
    """Side of a patch, pixels."""
    width: int = 1024
    """Encoder width."""
    depth: int = 24
    """Encoder blocks."""
    heads: int = 16
    """Encoder attention heads."""
    mlp_ratio: float = 4.0
    """Hidden width of each MLP over the block's width."""
    attention: Literal["sdpa", "flash_attn"] = "sdpa"
    """PyTorch's scaled_dot_product_attention, or the flash-attn package (an error where it is missing)."""
    activation_checkpointing: Recompute = field(default="none", metadata=OPERATIONAL)
    """What is recomputed in the backward pass: norms and GELUs (`elementwise`: three eighths less memory for
    activations, a few per cent more time), or whole blocks (a tenth of it, a third more time)."""

    def __post_init__(self) -> None:
        check(self.patch >= 1, "model.patch", self.patch, "at least 1")
        check(
            self.side > 0 and self.side % self.patch == 0,
            "model.side",
            self.side,
            f"a multiple of model.patch ({self.patch} pixels)",
        )
        check(self.depth >= 1, "model.depth", self.depth, "at least 1")
        _check_width("model.width", self.width, "model.heads", self.heads)

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.side // self.patch

    @property
    def tokens(self) -> int:
        """Patches of an image."""
        return self.grid**2


def _check_width(name: str, width: int, heads_name: str, heads: int) -> None:
    check(heads >= 1 and width % heads == 0, heads_name, heads, f"a divisor of the width {width}")
    check(width % 4 == 0, name, width, "a multiple of 4 (2-D sin-cos positions)")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(EncoderConfig):
    """A Vision Transformer encoder on the visible patches and one of two decoders."""

    decoder: Literal["self", "cross"] = "self"
    """`self`: MAE's, over all tokens; `cross`: masked queries attend to visible tokens (CrossMAE)."""
    decoder_width: int = 512
    """Decoder width."""
    decoder_depth: int = 8
    """Decoder blocks."""
    decoder_heads: int = 4
    """Decoder heads; 4 of 128 cost less than MAE's 16 of 32 at equal FLOPs."""
    predicted_share: float | None = None
    """Share of the masked patches that is predicted; None: 1 for `self`, 0.25 for `cross`."""
    norm_targets: bool = True
    """Predict each patch normalised by its own mean and deviation (MAE, section 3)."""
    feature_maps: bool = False
    """`cross` only: each decoder block attends to its own learned mixture of all encoder blocks' outputs
    (CrossMAE, section 3.3) instead of the last one's."""
    activation_gb: float = field(default=0.0, metadata=OPERATIONAL)
    """GB (10^9 bytes) that the blocks' activations of a micro-batch may take: as little as that needs is
    recomputed in the backward pass. 0: what `activation_checkpointing` says."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.activation_gb >= 0, "model.activation_gb", self.activation_gb, "0 or more")
        check(
            self.decoder == "cross" or not self.feature_maps,
            "model.feature_maps",
            self.feature_maps,
            "False for the decoder self, which takes the last block's output only",
        )
        check(self.decoder_depth >= 1, "model.decoder_depth", self.decoder_depth, "at least 1")
        _check_width("model.decoder_width", self.decoder_width, "model.decoder_heads", self.decoder_heads)
        if self.predicted_share is not None:
            check(
                0 < self.predicted_share <= 1,
                "model.predicted_share",
                self.predicted_share,
                "a share in (0, 1]",
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation and what is written when. Every duration is a number of images of the whole job."""

    images: int = 100_000_000
    """Length of the run."""
    batch: int = 256
    """Images per optimizer step of the whole job; at most `images`."""
    micro_batch: int = 8
    """Images per forward pass and rank; the rest of a batch is accumulated."""
    base_lr: float = 1.5e-4
    """Learning rate per 256 images of batch (the linear rule of MAE)."""
    min_lr: float = 0.0
    """Base learning rate at the end of the cosine."""
    warmup_images: int = 5_000_000
    """Linear warm-up."""
    weight_decay: float = 0.05
    """AdamW's, on matrices only: biases, norms and tokens have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0: no clipping."""
    max_skipped: int = 8
    """Pretraining only: steps in a row that are skipped because their gradient is not finite before the run
    goes back to the weights of its last checkpoint, and on past the films since then."""
    seed: int = 0
    """Of the initialisation, the sample order, crops and masks."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 on a GPU, fp32 on a CPU."""
    log_images: int = field(default=4_096, metadata=OPERATIONAL)
    """Between two lines of metrics; also how often ranks compare notes (non-finite loss, checkpoints that are
    complete)."""
    eval_images: int = field(default=1_000_000, metadata=OPERATIONAL)
    """Between two validations; one more comes after the last step. In pretraining, where they have pictures,
    another one comes before the first step, and 0, or more than `images`, means never."""
    eval_films: int = field(default=1024, metadata=OPERATIONAL)
    """Validation films, the first of the split."""
    probe_films: int = field(default=1024, metadata=OPERATIONAL)
    """Pretraining only: films of the training and of the validation split, the first ones, by whose labels
    each validation probes the frozen features; 0: never, nor where the shards have no labels."""
    checkpoint_images: int = field(default=1_000_000, metadata=OPERATIONAL)
    """Between two checkpoints; one is also written at the end."""
    checkpoint_minutes: float = field(default=30.0, metadata=OPERATIONAL)
    """Longest time between two checkpoints."""
    hang_minutes: float = field(default=30.0, metadata=OPERATIONAL)
    """Longest time that a step, a validation, a checkpoint or a collective may take. Half-way each rank
    writes to RUN/stacks what its threads are doing; then the job ends, and can go on as after any crash."""
    keep_checkpoints: int = field(default=2, metadata=OPERATIONAL)
    """How many of the newest checkpoints stay on disk, in pretraining beside the one of the lowest validation
    loss (fine-tuning keeps the best weights in RUN/best.pt)."""
    keep_every_images: int = field(default=0, metadata=OPERATIONAL)
    """Beside those, one checkpoint per this many images stays for good; 0: none."""

    def __post_init__(self) -> None:
        counts = ("images", "batch", "micro_batch", "log_images", "eval_films", "checkpoint_images")
        for name in (*counts, "keep_checkpoints", "max_skipped"):
            check(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        for name in ("base_lr", "checkpoint_minutes", "hang_minutes"):
            check(getattr(self, name) > 0, f"train.{name}", getattr(self, name), "more than 0")
        for name in (
            "min_lr",
            "warmup_images",
            "weight_decay",
            "clip_norm",
            "eval_images",
            "probe_films",
            "keep_every_images",
        ):
            check(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "0 or more")
        check(0 <= self.seed < 2**63, "train.seed", self.seed, "a number in [0, 2^63)")

    @property
    def global_batch(self) -> int:
        """Images per optimizer step: `batch`, or the whole run where that is shorter."""
        return min(self.batch, self.images)

    @property
    def steps(self) -> int:
        """Optimizer steps of the run, the last batch complete."""
        return -(-self.images // self.global_batch)

    def every(self, images: int) -> int:
        """Steps in a duration of `images`, at least one."""
        return max(1, images // self.global_batch)

    def accumulation(self, world_size: int) -> int:
        """Forward passes per optimizer step and rank.

        Raises ValueError where the ranks do not divide the batch, or the micro-batch does not divide
        what one rank has of it.
        """
        per_rank, rest = divmod(self.global_batch, world_size)
        if rest or not per_rank:
            raise ValueError(
                f"train.batch: {self.global_batch} images per step cannot be shared equally by {world_size} "
                f"ranks. Set --train.batch to a multiple of {world_size}, or change the number of ranks."
            )
        micro = min(self.micro_batch, per_rank)
        if per_rank % micro:
            fitting = max(m for m in range(1, micro + 1) if per_rank % m == 0)
            raise ValueError(
                f"train.micro_batch: {self.micro_batch} does not divide the {per_rank} images per step of "
                f"each of {world_size} ranks. Set --train.micro_batch {fitting}, or change --train.batch."
            )
        return per_rank // micro

    def micro_batch_size(self, world_size: int) -> int:
        """Images of one forward pass on one rank: `micro_batch`, or fewer where the batch is smaller."""
        return self.global_batch // (world_size * self.accumulation(world_size))


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every kind of run has."""

    preset: str = "vit_l_1280"
    """Which function of that name the other flags override."""
    # Not `run`: torchrun takes the flag for an abbreviation of its own `--run-path`.
    run_dir: str = field(default="", metadata=OPERATIONAL)
    """Run folder; empty: runs/PRESET, in fine-tuning runs/PRESET-TASK-INIT. Starting the same command again
    goes on from its last checkpoint."""
    ds_config: str = field(default="", metadata=OPERATIONAL)
    """DeepSpeed JSON: ZeRO, offload and communication only; empty: ZeRO stage 1."""
    allow_config_change: bool = field(default=False, metadata=OPERATIONAL)
    """Resume although fields of the configuration differ from those of the checkpoint."""
    data: DataConfig = field(default_factory=DataConfig)
    model: EncoderConfig = field(default_factory=EncoderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """A whole pretraining run."""

    mask: MaskConfig = field(default_factory=MaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        check(
            1 <= self.kept <= self.model.tokens - 1,
            "mask.ratio",
            self.mask.ratio,
            f"one that keeps between 1 and {self.model.tokens - 1} of {self.model.tokens} patches",
        )

    @property
    def kept(self) -> int:
        """K: visible patches per image."""
        return round(self.model.tokens * (1 - self.mask.ratio))

    @property
    def predicted(self) -> int:
        """M: predicted patches per image."""
        share = self.model.predicted_share
        if share is None:
            share = {"self": 1.0, "cross": 0.25}[self.model.decoder]
        return max(1, round((self.model.tokens - self.kept) * share))


def demo() -> Config:
    """A small model at 224 pixels that learns from a few hundred chests in minutes on two CPU cores.

    Crops to the chest: so few films do not show what moves about in a frame. Small batches: on so little data
    the number of steps counts, not that of images. Targets are plain grey values, so that the pictures show
    what the model knows and nothing that was lent to it.
    """
    return Config(
        preset="demo",
        data=DataConfig(crop_to="chest", crop_scale=(0.8, 1.0), threads=1, readers=1),
        mask=MaskConfig(ratio=0.75),
        model=ModelConfig(
            side=224,
            width=128,
            depth=4,
            heads=2,
            decoder_width=128,
            decoder_depth=2,
            decoder_heads=2,
            norm_targets=False,
        ),
        train=TrainConfig(
            images=14_400,
            batch=8,
            base_lr=0.064,
            warmup_images=800,
            log_images=400,
            eval_images=3_600,
            eval_films=16,
            checkpoint_images=3_600,
        ),
    )


def vit_b_512() -> Config:
    """ViT-B at 512 pixels, 1,024 tokens: a day on one GPU for a first look at an archive."""
    return Config(
        preset="vit_b_512",
        model=ModelConfig(side=512, width=768, depth=12, heads=12),
        train=TrainConfig(images=20_000_000, batch=1024, micro_batch=128, warmup_images=1_000_000),
    )


def vit_l_1280() -> Config:
    """ViT-L at 1280 pixels, 6,400 tokens: the model of the paper, as the paper describes it."""
    return Config(
        preset="vit_l_1280",
        train=TrainConfig(images=100_000_000, batch=1024, micro_batch=8, warmup_images=5_000_000),
    )


PRESETS: dict[str, Callable[[], Config]] = {f.__name__: f for f in (demo, vit_b_512, vit_l_1280)}


def differing_fields(config: RunConfig, theirs: dict[str, Any]) -> list[str]:
    """Lines that say how `config` and another, as JSON has it, differ in fields that change the result."""
    ours = as_json(config)
    ours_flat, theirs_flat = dict(_flatten(ours)), dict(_flatten(theirs))
    names = [*ours_flat, *(name for name in theirs_flat if name not in ours_flat)]
    operational = set(_operational_fields(type(config)))
    return [
        f"{name}: {theirs_flat.get(name)!r} in the checkpoint, {ours_flat.get(name)!r} now"
        for name in names
        if name not in operational and ours_flat.get(name) != theirs_flat.get(name)
    ]


def as_json(config: RunConfig) -> dict[str, Any]:
    """The configuration with the types that JSON gives back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _operational_fields(section: type, prefix: str = "") -> Iterator[str]:
    for f in dataclasses.fields(section):
        if dataclasses.is_dataclass(f.type):
            assert isinstance(f.type, type)
            yield from _operational_fields(f.type, f"{prefix}{f.name}.")
        elif f.metadata.get("operational"):
            yield prefix + f.name
