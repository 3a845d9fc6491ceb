"""How much memory a training step needs, before it is tried.

Bytes per rank, with P parameters of which T are trained, n ranks that share, s bytes per value (2 in bf16,
4 in fp32), G = 4 T / n one rank's share of float32 gradients, b the `reduce_bucket_size` and f the
`stage3_prefetch_bucket_size` of DeepSpeed's JSON, at most T and P. ZeRO (Rajbhandari et al., arXiv
1910.02054) divides by n what its stage names. The optimizer is 3 G all the time (AdamW's float32 master
weights and two moments; 0 where offloaded); the rest has its peak at one of three moments:

    end of the forward pass     activations
        ZeRO 1, 2               weights s P; where gradients accumulate, 4 T (1) or G (2)
        ZeRO 3                  weights s P / n, gathered s min(P, max_live); gradients G; buffers s (b + f)
    end of the backward pass
        ZeRO 1                  weights s P; gradients 4 T; buffers 4 b
        ZeRO 2                  weights s P; gradients G, 2 G where they accumulate, less what the last bucket
                                holds; buffers 2 s b, 3 s b with overlap_comm
        ZeRO 3                  as before; buffers 2 s b
    update                      a fused AdamW makes no copies of its own
        ZeRO 1, 2               weights s P; gradients 2 G (G in bf16)
        ZeRO 3                  weights s P / n; gradients 2 G; buffers s b

Under ZeRO 1 in bf16 DeepSpeed has another optimizer, which keeps bf16 gradients and their float32 sum, 6 T,
all the time and reduces them in pieces of 500 million. A GPU gives a bucket its whole size at once, also
where the model is smaller. This is what DeepSpeed 0.19.8 was seen to do (`benchmarks/memory.py`); it is more
than the sums of the paper, and where few ranks share, copies are larger than the model.

What blocks keep for the backward pass is counted in `xpt/models/costs.py`. One that is recomputed keeps its
input alone, and one block at a time is whole. A frozen encoder keeps nothing. What this leaves out (the CUDA
context, the allocator's slack, NCCL's buffers) is 1 to 3 GB on a GPU; on a CPU the libraries are 0.8 GB.
"""

from dataclasses import dataclass, field
from typing import Any

from xpt.config import Config, EncoderConfig, Recompute
from xpt.models.costs import decoder_blocks, encoder_blocks, self_block
from xpt.models.recompute import kept_values, recomputation

BYTES = {"bf16": 2, "fp32": 4}
GB = 1e9
FLOAT32 = 4
BUCKET = 500_000_000
"""DeepSpeed's default size of buckets, values."""
PREFETCH = 50_000_000
MOST_LIVE = 1_000_000_000
"""DeepSpeed's default for what of a model under ZeRO 3 stays gathered, values."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Bytes per rank at one moment of a step."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    """What DeepSpeed copies for a while."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of one rank."""

    moments: dict[str, Moment]
    """`forward`, `backward` and `update`, each where it is fullest."""
    host: int = field(default=0)
    """Bytes of host memory per rank that offloading takes."""

    @property
    def fullest(self) -> str:
        return max(self.moments, key=lambda name: self.moments[name].total)

    @property
    def total(self) -> int:
        return self.moments[self.fullest].total

    def line(self) -> str:
        moment = self.moments[self.fullest]
        parts = ("weights", "gradients", "optimizer", "activations", "buffers")
        said = ", ".join(f"{name} {getattr(moment, name) / GB:.2f}" for name in parts)
        return f"memory per rank, estimated: {self.total / GB:.2f} GB in the step's {self.fullest} ({said})"


def encoder_activations(model: EncoderConfig, *, tokens: int, images: int, bytes_per_value: int) -> int:
    """Bytes that the blocks of `model` keep for the backward pass of `images` images of `tokens` tokens."""
    block = self_block(tokens, width=model.width, heads=model.heads, mlp_ratio=model.mlp_ratio)
    choices: list[Recompute] = [model.activation_checkpointing] * model.depth
    blocks = kept_values([block] * model.depth, choices)
    return images * bytes_per_value * (blocks + tokens * model.width)


def pretraining_activations(config: Config, images: int) -> int:
    """Bytes that the masked autoencoder of a `resolved` configuration keeps for `images` images."""
    model = config.model
    visible, predicted = config.kept + 1, config.predicted
    values = model.patch**2
    around = (
        visible * (2 * model.width + values)  # the last norm, the patches
        + predicted * (2 * model.decoder_width + 2 * values)  # the head, and the gradient of the loss
    )
    blocks = kept_values([*encoder_blocks(config), *decoder_blocks(config)], recomputation(config))
    return images * BYTES[config.train.precision] * (blocks + around)


def pretraining_memory(
    config: Config, *, parameters: int, zero: dict[str, Any], ranks: int, on_gpu: bool
) -> Memory:
    """Of one rank, for a `resolved` configuration.

    Args:
        zero: the `zero_optimization` of DeepSpeed's JSON.
    """
    train = config.train
    images = train.micro_batch_size(ranks)
    return step_memory(
        activations=pretraining_activations(config, images),
        parameters=parameters,
        trained=parameters,
        precision=train.precision,
        zero=zero,
        ranks=ranks,
        accumulates=train.accumulation(ranks) > 1,
        on_gpu=on_gpu,
    )


def training_memory(
    model: EncoderConfig,
    *,
    tokens: int,
    parameters: int,
    trained: int,
    micro_batch: int,
    precision: str,
    zero: dict[str, Any],
    ranks: int,
    accumulates: bool,
    on_gpu: bool,
    is_frozen: bool = False,
) -> Memory:
    """Of one rank, for a model that is the encoder and little more.

    Args:
        tokens: of one image, the class token included.
        zero: the `zero_optimization` of DeepSpeed's JSON.
    """
    activations = encoder_activations(
        model,
        tokens=tokens,
        images=micro_batch,
        bytes_per_value=BYTES[precision],
    )
    return step_memory(
        activations=0 if is_frozen else activations,
        parameters=parameters,
        trained=trained,
        precision=precision,
        zero=zero,
        ranks=ranks,
        accumulates=accumulates,
        on_gpu=on_gpu,
    )


def step_memory(
    *,
    activations: int,
    parameters: int,
    trained: int,
    precision: str,
    zero: dict[str, Any],
    ranks: int,
    accumulates: bool,
    on_gpu: bool,
) -> Memory:
    """The sums of the module's table, with so many bytes of activations at the end of the forward pass."""
    stage, size = zero["stage"], BYTES[precision]
    share, whole = FLOAT32 * trained // ranks, FLOAT32 * trained
    is_offloaded, params_are_offloaded = (
        (zero.get(f"offload_{what}") or {}).get("device", "none") != "none" for what in ("optimizer", "param")
    )
    optimizer = 0 if is_offloaded else 3 * share
    bucket = zero.get("reduce_bucket_size", BUCKET)
    filled = min(bucket, trained)
    bucket = bucket if on_gpu else filled  # pages that were never written take no room on a CPU

    def moment(weights: int, gradients: int, activations: int, buffers: int) -> Moment:
        return Moment(
            weights=weights,
            gradients=gradients,
            optimizer=optimizer,
            activations=activations,
            buffers=buffers,
        )

    weights = size * parameters
    if stage == 3:
        resting = 0 if params_are_offloaded else weights // ranks
        live = resting + size * min(parameters, zero.get("stage3_max_live_parameters", MOST_LIVE))
        fetched = size * min(parameters, zero.get("stage3_prefetch_bucket_size", PREFETCH))
        kept = 0 if is_offloaded else share
        flat = 0 if is_offloaded else share
        moments = {
            "forward": moment(live, kept, activations, size * bucket + fetched),
            "backward": moment(live, kept, 0, size * (bucket + filled)),
            "update": moment(resting, kept + flat, 0, size * bucket),
        }
    elif stage == 1 and precision == "bf16":
        kept = 6 * trained
        moments = {
            "forward": moment(weights, kept, activations, 0),
            "backward": moment(weights, kept, 0, 6 * min(BUCKET, trained)),
            "update": moment(weights, kept, 0, 0),
        }
    elif stage == 1:
        moments = {
            "forward": moment(weights, whole if accumulates else 0, activations, 0),
            "backward": moment(weights, whole, 0, FLOAT32 * filled),
            "update": moment(weights, 2 * share, 0, 0),
        }
    else:
        kept = 0 if is_offloaded else share
        buckets = min(2 * bucket, max(bucket, trained)) if zero.get("overlap_comm") else bucket
        arriving = 0 if is_offloaded else FLOAT32 * (trained - filled) // ranks
        copies = 2 if precision == "fp32" else 1
        moments = {
            "forward": moment(weights, kept if accumulates else 0, activations, 0),
            "backward": moment(
                weights, arriving + (kept if accumulates else 0), 0, size * (buckets + filled)
            ),
            "update": moment(weights, copies * kept, 0, 0),
        }
    host = (4 * share if is_offloaded else 0) + (weights // ranks if params_are_offloaded else 0)
    return Memory(moments=moments, host=host)
