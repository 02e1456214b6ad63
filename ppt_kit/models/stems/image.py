"""Pictures of colour or depth: where their keypoints are, one token a frame and camera."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from ppt_kit.errors import UserError
from ppt_kit.models.part import Sizes
from ppt_kit.models.stems.gather import NUM_OCTAVES, Latents, waves
from ppt_kit.models.stems.options import switch, whole
from ppt_kit.models.stems.stem import Stem

# of a picture as the network sees it: larger ones are averaged down by a whole factor
MOST_PIXELS = 128
LEAST_PIXELS = 8
# of GroupNorm (Wu and He 2018), whose statistics are each picture's own
GROUPS = 8
# of a map before the softmax, in standard deviations: a flat one passes hardly a gradient, and a spot was found after
# 60 steps instead of 180
SHARPNESS = 3.0
# of depth: wavelengths of 2, 1 and 0.5 m
DEPTH_OCTAVES = 3
PLANES = {"rgb": 3, "depth": 2 + 2 * DEPTH_OCTAVES}


class CnnStem(Stem):
    """rgb {camera: (B, To, H, W, 3) uint8} or depth {camera: (B, To, H, W, 1) float32 m} -> (B, num_latents, width).

    A few convolutions with GroupNorm, then the expected place of each of their maps (spatial softmax: Levine et al.
    2016, Finn et al. 2016; in imitation: robomimic, Mandlekar et al. 2021). A window of two 128 x 128 frames takes 4 ms
    of one CPU core in training.

    Args:
        channels: of the convolutions.
        keypoints: maps whose place is taken.
        shared: one network for all cameras; else one each.
    """

    takes_missing = True

    def __init__(self, sizes: Sizes, *, channels: int = 32, keypoints: int = 32, shared: bool = False):
        super().__init__()
        check_pictures(sizes, kind="cnn")
        if sizes.encoded:
            raise UserError(
                f"policy.stems.{sizes.modality}.kind=cnn reads pictures, and policy.encoders.{sizes.modality} gives "
                f"feature maps in their place. Set policy.stems.{sizes.modality}.kind=maps."
            )
        for name, size in sizes.spec.cameras(sizes.modality).items():
            if min(size) < LEAST_PIXELS:
                raise UserError(
                    f"policy.stems.{sizes.modality}.kind=cnn: the camera {name} has {size[0]} x {size[1]} pixels, "
                    f"and it takes {LEAST_PIXELS} at least."
                )
        option = f"policy.stems.{sizes.modality}.options.channels"
        if whole(sizes, "channels", channels, low=GROUPS, high=1024) % GROUPS:
            raise UserError(f"{option}={channels}: takes a multiple of {GROUPS}.")
        whole(sizes, "keypoints", keypoints, high=1024)
        switch(sizes, "shared", shared)
        self.cameras, self.shared = list(sizes.spec.cameras(sizes.modality)), shared
        self.nets = nn.ModuleList(
            _Keypoints(sizes, channels=channels, keypoints=keypoints) for _ in self.cameras[: 1 if shared else None]
        )
        self.camera = nn.Parameter(torch.randn(len(self.cameras), sizes.width) * 0.02)
        self.gather = Latents(sizes)

    def forward(
        self,
        readings: Mapping[str, torch.Tensor],
        seeds: torch.Tensor,
        missing: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """`missing`: camera -> (B,) bool, true where the camera gave nothing."""
        tokens = [self.nets[0 if self.shared else n](readings[name]) for n, name in enumerate(self.cameras)]
        return self.gather(torch.stack(tokens, dim=2) + self.camera, missing=lost_frames(missing, self.cameras))


class _Keypoints(nn.Module):
    """Pictures of one camera (B, To, H, W, c) -> (B, To, width)."""

    def __init__(self, sizes: Sizes, *, channels: int, keypoints: int):
        super().__init__()
        self.is_depth = sizes.modality == "depth"
        # a pixel of the maps is 4 of the picture, and looks at 40
        self.maps = nn.Sequential(
            nn.Conv2d(PLANES[sizes.modality], channels, 8, stride=4, padding=2),
            nn.GroupNorm(GROUPS, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(GROUPS, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=2, dilation=2),
            nn.GroupNorm(GROUPS, channels),
            nn.ReLU(),
            # no bias: a softmax does not see it
            nn.Conv2d(channels, keypoints, 1, bias=False),
        )
        self.sharpness = nn.Parameter(torch.full((keypoints, 1), SHARPNESS))
        numbers = 2 * (1 + 2 * NUM_OCTAVES) + self.is_depth
        self.project = nn.Sequential(
            nn.Linear(keypoints * numbers, sizes.width), nn.GELU(), nn.Linear(sizes.width, sizes.width)
        )

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        frames, dtype = pictures.flatten(0, 1), next(self.project.parameters()).dtype
        planes = depth_planes(frames) if self.is_depth else rgb_planes(frames)
        # float32 from here on: bfloat16 holds a place to a third of a pixel
        maps = self.maps(planes.to(dtype)).float().flatten(2)
        weights = (F.layer_norm(maps, maps.shape[2:]) * self.sharpness.float()).softmax(dim=-1)
        height, width = (size // 4 for size in planes.shape[2:])
        places = weights @ grid(height, width, device=frames.device)
        numbers = [places, waves(places)]
        if self.is_depth:
            # how far each keypoint is, of what was read there
            near = F.interpolate(planes[:, :2], (height, width), mode="area").flatten(2)
            numbers.append((weights @ near[:, 1:2].mT) / (weights @ near[:, :1].mT).clamp(min=1e-3))
        return self.project(torch.cat(numbers, dim=-1).flatten(1).to(dtype)).unflatten(0, pictures.shape[:2])


def check_pictures(sizes: Sizes, *, kind: str) -> None:
    """Raises UserError when a stem of pictures is asked to read something else."""
    if sizes.modality not in PLANES:
        raise UserError(f"policy.stems.{sizes.modality}.kind={kind}: it makes tokens of rgb and depth.")


def lost_frames(missing: Mapping[str, torch.Tensor] | None, cameras: list[str]) -> torch.Tensor | None:
    """{camera: (B,) bool} -> (B, 1, cameras) for `Latents`."""
    return None if missing is None else torch.stack([missing[name] for name in cameras], dim=-1)[:, None]


def rgb_planes(frames: torch.Tensor) -> torch.Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H', W') float32 in [-1, 1], at most MOST_PIXELS high."""
    return _averaged(frames.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0))


def depth_planes(frames: torch.Tensor) -> torch.Tensor:
    """(N, H, W, 1) float32 m -> (N, 2 + 2 * DEPTH_OCTAVES, H', W') float32: whether it was read, nearness, waves.

    Nearness is 1 / (1 + m): the sky of a simulator is a hundred metres off. Where nothing was read (0, or no number)
    all planes are 0.
    """
    depth = frames.permute(0, 3, 1, 2)
    read = (depth > 0) & depth.isfinite()
    metres = torch.where(read, depth, 0.0)
    angles = waves(metres[..., None], octaves=DEPTH_OCTAVES).movedim(-1, 1).squeeze(2)
    return _averaged(torch.cat([torch.ones_like(metres), 1 / (1 + metres), angles], dim=1) * read)


def grid(height: int, width: int, *, device: torch.device) -> torch.Tensor:
    """(height * width, 2) float32: where each cell is, row by row: x and y in [-1, 1], the picture's middle at 0."""
    rows, columns = ((torch.arange(size, device=device) + 0.5) * (2 / size) - 1 for size in (height, width))
    return torch.stack([columns.repeat(height), rows.repeat_interleave(width)], dim=-1)


def _averaged(planes: torch.Tensor) -> torch.Tensor:
    factor = -(-min(planes.shape[2:]) // MOST_PIXELS)
    return F.avg_pool2d(planes, factor) if factor > 1 else planes
