"""The first run on a GPU: oracles, kernels against the floor, attention, and whole steps, in 8 minutes.

    python -m benchmarks.gpu [--json FILE]
    python -m benchmarks.gpu --dry       # every line on a CPU, on toy sizes, kernels in Triton's interpreter

Needs PyTorch, timm and triton; Hugging Face's ViTMAE and flash-attn are measured where they are installed.
Nothing is timed while an oracle is red. Steps are forward, backward and fused AdamW of ViT-L at 1280 pixels
in bf16, one channel; MFU is by model FLOPs (`xpt.flops`) over the data sheet's dense bf16 rate.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

if "--dry" in sys.argv:  # Triton reads it when it is imported
    os.environ["TRITON_INTERPRET"] = "1"
if importlib.util.find_spec("jaxtyping") is None:  # annotations only: any subscript will do

    class _Anything:
        def __class_getitem__(cls, shape: object) -> type:
            return cls

    stand_in = types.ModuleType("jaxtyping")
    stand_in.__getattr__ = lambda name: _Anything  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["jaxtyping"] = stand_in

from kernels import MaskedPatches, mask_and_gather, patch_loss, patchify
from kernels.backend import Backend as KernelBackend
from kernels.mask_gather import Draw
from xpt.config import Config, MaskConfig, ModelConfig
from xpt.flops import peak_flops, traffic, work
from xpt.models.attention import Backend, attention_function, attention_kernel
from xpt.models.mae import MAE, PIXEL_MEAN, PIXEL_STD

HAS_VITMAE = importlib.util.find_spec("transformers") is not None
BACKENDS: tuple[KernelBackend, ...] = ("triton", "torch")
TARGETS = {"mask_gather": 20e-6, "patch_loss": 80e-6}
"""Seconds at batch 32, 1280 pixels, 75% masked."""
REACHABLE_BANDWIDTH = 3.0e12
"""Bytes/s of an H100's memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is run: the paper's model, or a toy that takes the same paths."""

    side: int = 1280
    width: int = 1024
    depth: int = 24
    heads: int = 16
    decoder_width: int = 512
    decoder_depth: int = 8
    batch: int = 32
    step_batch: int = 16
    largest_batch: int = 1024
    repeats: int = 50
    step_repeats: int = 5

    def config(self, decoder: str, ratio: float, decoder_heads: int = 4) -> Config:
        model = ModelConfig(
            side=self.side,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            decoder=decoder,  # pyright: ignore[reportArgumentType]
            decoder_width=self.decoder_width,
            decoder_depth=self.decoder_depth,
            decoder_heads=decoder_heads,
        )
        return Config(mask=MaskConfig(ratio=ratio), model=model)


TOY = Sizes(
    side=64, width=64, depth=1, heads=2, decoder_width=128, decoder_depth=1, batch=2, step_batch=2,
    largest_batch=4, repeats=2, step_repeats=1,
)  # fmt: skip


class Bench:
    """A device, sizes, and the time left."""

    def __init__(self, device: torch.device, sizes: Sizes, minutes: float) -> None:
        self.device, self.sizes = device, sizes
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.end = time.monotonic() + 60 * minutes
        self.peak = peak_flops(device)
        # Larger than the last-level cache: written between two runs, so that a kernel finds nothing there.
        self.flush = torch.empty(2**28 if device.type == "cuda" else 2**20, dtype=torch.uint8, device=device)

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self.end

    def seconds(self, run: Callable[[], object], repeats: int, cold: bool = True) -> float:
        """Median time on the device."""
        run()
        found = []
        for _ in range(repeats):
            if cold:
                self.flush.zero_()
            if self.device.type == "cuda":
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                run()
                stop.record()
                torch.cuda.synchronize(self.device)
                found.append(start.elapsed_time(stop) / 1e3)
            else:
                before = time.perf_counter()
                run()
                found.append(time.perf_counter() - before)
        return statistics.median(found)

    def films(self, config: Config, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """image_BCHW, contour_BL (an ellipse), is_valid_BL, position_B."""
        generator = torch.Generator().manual_seed(0)
        side, grid = config.model.side, config.model.grid
        image = torch.randint(0, 256, (batch, 1, side, side), dtype=torch.uint8, generator=generator)
        line = torch.linspace(-1, 1, grid)
        contour = ((line[:, None] / 0.8) ** 2 + (line / 0.65) ** 2 < 1).float().flatten()
        valid = torch.ones(batch, grid**2, dtype=torch.bool)
        films = (image, contour.expand(batch, -1).contiguous(), valid, torch.arange(batch))
        return tuple(t.to(self.device) for t in films)  # pyright: ignore[reportReturnType]


def mask(
    films: tuple[Tensor, ...],
    config: Config,
    backend: KernelBackend,
    dtype: torch.dtype,
    draw: Draw = "stratified",
) -> MaskedPatches:
    return mask_and_gather(
        *films,
        seed=1,
        keep=config.kept,
        predict=config.predicted,
        patch=config.model.patch,
        keep_inside=0.05,
        keep_outside=0.15,
        draw=draw,
        mean=PIXEL_MEAN,
        std=PIXEL_STD,
        dtype=dtype,
        backend=backend,
    )


# Oracles


def oracles(bench: Bench) -> dict[str, float | bool]:
    """What must be true before anything is timed.

    Raises AssertionError where something is not.
    """
    found: dict[str, float | bool] = {}
    for decoder, ratio in (("self", 0.75), ("cross", 0.90)):
        config = bench.sizes.config(decoder, ratio)
        films = bench.films(config, 2)
        for draw in get_args(Draw):
            ours, reference = (mask(films, config, b, torch.float32, draw) for b in BACKENDS)
            same = all(torch.equal(a, b) for a, b in zip(ours, reference, strict=True))
            found[f"mask_gather, {draw}, {ratio:.0%}: the same bits as the reference"] = same
        for normalize in (False, True):
            error = _loss_error(bench, config, films, normalize)
            found[f"patch_loss, {ratio:.0%}, normalize {normalize}: error of the gradient"] = error
    for backend in attention_backends(bench):
        for width in (32, 64, 128):
            found[f"attention {backend}, heads of {width}: error"] = _attention_error(bench, backend, width)
    for name, value in found.items():
        assert value is True or (value is not False and value < 2e-2), f"oracle: {name}: {value}"
    return found


def _loss_error(bench: Bench, config: Config, films: tuple[Tensor, ...], normalize: bool) -> float:
    patch = config.model.patch
    ids_BM = mask(films, config, "torch", torch.float32).predicted_BM
    pred_BMP = torch.randn(*ids_BM.shape, patch**2, device=bench.device).requires_grad_()
    weight_BM = torch.full(ids_BM.shape, 1 / ids_BM.numel(), device=bench.device)
    loss, _ = patch_loss(
        pred_BMP, films[0], ids_BM, weight_BM, patch=patch, mean=PIXEL_MEAN, std=PIXEL_STD,
        normalize=normalize, backend="triton",
    )  # fmt: skip
    (found,) = torch.autograd.grad(loss, pred_BMP)
    exact = pred_BMP.detach().double().requires_grad_()
    target = patchify(films[0], patch).double().gather(1, ids_BM[..., None].expand(-1, -1, patch**2))
    target = (target / 255 - PIXEL_MEAN) / PIXEL_STD
    if normalize:
        target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
    (wanted,) = torch.autograd.grad(((exact - target) ** 2).mean(2).mul(weight_BM).sum(), exact)
    return _relative(found, wanted)


def _attention_error(bench: Bench, backend: Backend, width: int) -> float:
    q, k, v = (torch.randn(2, 65, 2, width, device=bench.device, dtype=bench.dtype) for _ in "qkv")
    found = attention_function(backend)(q, k, v)
    scores = torch.einsum("bnhe,bshe->bhns", q.double(), k.double()) / width**0.5
    return _relative(found, torch.einsum("bhns,bshe->bnhe", scores.softmax(-1), v.double()))


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def attention_backends(bench: Bench) -> list[Backend]:
    backends: list[Backend] = ["sdpa"]
    if bench.device.type == "cuda":
        try:
            attention_function("flash_attn")
            backends.append("flash_attn")
        except ValueError as error:
            print(f"without flash_attn: {error}")
    return backends


# Kernels and attention


def kernels(bench: Bench) -> list[dict[str, object]]:
    config = bench.sizes.config("self", 0.75)
    films, batch = bench.films(config, bench.sizes.batch), bench.sizes.batch
    floor = traffic(config, itemsize=bench.dtype.itemsize)
    masked = mask(films, config, "triton", bench.dtype)
    pred = torch.randn(batch, config.predicted, config.model.patch**2, device=bench.device).to(bench.dtype)
    pred.requires_grad_()
    weight_BM = torch.full(masked.predicted_BM.shape, 1 / masked.predicted_BM.numel(), device=bench.device)

    def loss(backend: KernelBackend) -> None:
        patch_loss(
            pred, films[0], masked.predicted_BM, weight_BM, patch=config.model.patch, mean=PIXEL_MEAN,
            std=PIXEL_STD, normalize=True, backend=backend,
        )[0].backward()  # fmt: skip
        pred.grad = None

    runs: dict[str, tuple[Callable[[KernelBackend], object], int]] = {
        "mask_gather": (lambda backend: mask(films, config, backend, bench.dtype), floor.mask_gather),
        "patch_loss": (loss, floor.patch_loss),
    }
    rows: list[dict[str, object]] = []
    for name, (run, moved) in runs.items():
        ours, plain = (
            bench.seconds(lambda b=backend, r=run: r(b), bench.sizes.repeats) for backend in BACKENDS
        )
        rows.append(
            {
                "kernel": name,
                "seconds": ours,
                "reference_seconds": plain,
                "floor_seconds": batch * moved / REACHABLE_BANDWIDTH,
                "target_seconds": TARGETS[name],
            }
        )
        print(
            f"{name}: {1e6 * ours:.1f} us (floor {1e6 * batch * moved / REACHABLE_BANDWIDTH:.1f}, target "
            f"{1e6 * TARGETS[name]:.0f}); in PyTorch {1e6 * plain:.1f} us"
        )
    return rows


def attention(bench: Bench) -> list[dict[str, object]]:
    """Forward and backward over all tokens, at the decoder's width."""
    sizes, rows = bench.sizes, []
    tokens, batch = (sizes.side // 16) ** 2 + 1, max(1, sizes.batch // 8)
    for backend in attention_backends(bench):
        for width in (32, 64, 128):
            heads = max(1, sizes.decoder_width // width)
            q, k, v = (
                torch.randn(
                    batch, tokens, heads, width, device=bench.device, dtype=bench.dtype
                ).requires_grad_()
                for _ in "qkv"
            )
            attend = attention_function(backend)
            seconds = bench.seconds(
                lambda a=attend, x=(q, k, v): torch.autograd.grad(a(*x).sum(), x), max(1, sizes.repeats // 5)
            )
            rate = 3 * 4 * batch * tokens**2 * heads * width / seconds
            kernel = attention_kernel(backend, width, bench.dtype, bench.device)
            rows.append({"kernel": kernel, "head": width, "seconds": seconds, "tflops": rate / 1e12})
            print(f"attention, heads of {width}: {rate / 1e12:.1f} TFLOP/s ({kernel})")
    return rows


# Steps


def steps(bench: Bench) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for ratio in (0.75, 0.90):
        for kind in ("vitmae", "self", "cross"):
            name = {"vitmae": "ViTMAE", "self": "self, heads of 128", "cross": "cross 25%"}[kind]
            if bench.is_late or (kind == "vitmae" and not HAS_VITMAE):
                why = "out of time" if bench.is_late else "transformers is not installed"
                print(f"{ratio:.0%} masked, {name}: not measured, {why}")
                continue
            rows.append({"ratio": ratio, "model": name} | _step(bench, kind, ratio))
            print(
                "{ratio:.0%} masked, {model}: {seconds:.3f} s for {batch} images, {rate:.1f} images/s, "
                "MFU {mfu:.1%}, peak {peak_gb:.1f} GB, largest batch {largest}".format(**rows[-1])
            )
    return rows


def _step(bench: Bench, kind: str, ratio: float) -> dict[str, object]:
    config = bench.sizes.config("self" if kind == "vitmae" else kind, ratio, 16 if kind == "vitmae" else 4)
    model = _model(kind, config).to(bench.device, bench.dtype)
    optimizer = torch.optim.AdamW(model.parameters(), fused=bench.device.type == "cuda")

    def run(films: tuple[Tensor, ...]) -> None:
        _loss(model, kind, films, bench.dtype).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    batch = bench.sizes.step_batch
    films = bench.films(config, batch)
    _reset_peak(bench)
    seconds = bench.seconds(lambda: run(films), bench.sizes.step_repeats, cold=False)
    peak = _peak_gb(bench)
    rate = batch / seconds
    return {
        "batch": batch,
        "seconds": seconds,
        "rate": rate,
        "mfu": rate * work(config).training / bench.peak,
        "peak_gb": peak,
        "largest": _largest(bench, lambda batch: run(bench.films(config, batch))),
    }


def _model(kind: str, config: Config) -> nn.Module:
    torch.manual_seed(0)
    if kind != "vitmae":
        return MAE(config)
    from benchmarks.vitmae import vitmae

    return vitmae(config)


def _loss(model: nn.Module, kind: str, films: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    if kind == "vitmae":
        return model(((films[0].float() / 255 - PIXEL_MEAN) / PIXEL_STD).to(dtype)).loss
    return model(*films, 0).loss


def _largest(bench: Bench, run: Callable[[int], None]) -> int:
    """The largest power of two that fits, up to `largest_batch` and the time."""
    fits, batch = 0, bench.sizes.step_batch
    while batch <= bench.sizes.largest_batch and not bench.is_late:
        try:
            run(batch)
        except torch.cuda.OutOfMemoryError:
            break
        fits, batch = batch, 2 * batch
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return fits


def _reset_peak(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)


def _peak_gb(bench: Bench) -> float:
    return torch.cuda.max_memory_allocated(bench.device) / 1e9 if bench.device.type == "cuda" else 0.0


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--dry", action="store_true", help="toy sizes on a CPU")
    parser.add_argument("--minutes", type=float, default=7.0, help="after which no new measurement begins")
    options = parser.parse_args(args)
    if not options.dry and not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: no GPU here; --dry runs every line on a CPU, on toy sizes")
    device = torch.device("cpu") if options.dry else torch.device("cuda", 0)
    bench = Bench(device, TOY if options.dry else Sizes(), options.minutes)
    name = "CPU, toy sizes: the numbers mean nothing" if options.dry else torch.cuda.get_device_name(device)
    print(f"{name}; torch {torch.__version__}; peak {bench.peak / 1e12:.1f} TFLOP/s")
    results: dict[str, object] = {"device": name, "torch": torch.__version__, "oracles": oracles(bench)}
    print("oracles: green")
    for part in (kernels, attention, steps):
        results[part.__name__] = part(bench)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
