"""The network that `shards_tool/contour/train.py` trains: a small U-Net with a head for the pose.

B films, S pixels on a side (256). Most of its layers work on 1/16 and 1/32 of the side, where they are cheap
and see the whole chest; the maps have 1/2 of the side, because a chest's lower corners are thin. Skips are
added, not concatenated, which halves the decoder's work; batch norms are folded into the convolutions when
it is exported.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 256
"""Pixels on a side of the letterboxed film that the network sees."""
MAP_SCALE = 2
"""The maps have half of the side."""
STEM = 8
"""Channels at 1/2 of the side."""
WIDTHS = (24, 48, 96, 128)
"""Channels at 1/4, 1/8, 1/16 and 1/32 of the side."""
BLOCKS = (0, 1, 2, 3)
"""Residual convolutions at 1/4, 1/8, 1/16 and 1/32."""
POSES = 5
"""Logits of the four quarter turns (`posture.ORIENTATIONS`), and of being a negative."""


class ContourNet(nn.Module):
    """0.92 million parameters, 0.20 GMAC a film."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(1, STEM, stride=2)
        pairs = list(itertools.pairwise((STEM, *WIDTHS)))
        self.down = nn.ModuleList(
            nn.Sequential(_conv(a, b, stride=2), *(_Residual(b) for _ in range(blocks)))
            for (a, b), blocks in zip(pairs, BLOCKS, strict=True)
        )
        self.narrow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in reversed(pairs))
        self.up = nn.ModuleList(_conv(a, a) for a, _ in reversed(pairs))
        self.regions = nn.Conv2d(STEM, 2, 1)
        self.pose = nn.Linear(WIDTHS[-1], POSES)

    def forward(self, film_B1SS: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of lung and chest [B, 2, S/2, S/2], and of the pose [B, POSES]."""
        x = self.stem(film_B1SS - 0.5)
        skips = []
        for stage in self.down:
            skips.append(x)
            x = stage(x)
        pose = self.pose(x.mean((2, 3)))
        for narrow, up, skip in zip(self.narrow, self.up, reversed(skips), strict=True):
            x = up(F.interpolate(narrow(x), scale_factor=2, mode="nearest") + skip)
        return self.regions(x), pose


class Exported(nn.Module):
    """With the signature of `--contour onnx:FILE`: probabilities by name."""

    def __init__(self, net: ContourNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, film: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        regions, pose = self.net(film)
        lung, chest = torch.sigmoid(regions).split(1, dim=1)
        turn, negative = pose.split([POSES - 1, 1], dim=1)
        return lung, chest, torch.cat([turn.softmax(1), torch.sigmoid(negative)], dim=1)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def _conv(inner: int, outer: int, *, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer), nn.ReLU(inplace=True))
