"""Pictures of training batches: shift and crop, colour, hue and blur of rgb, and a sensor's errors of depth."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ppt_kit.augment.numbers import around_zero, noise
from ppt_kit.augment.resample import image_places, interpolate, pick
from ppt_kit.randomness import uniform
from ppt_kit.schema import AugmentConfig

DRQ_SHIFT = 4 / 84  # of the height
GREY = (0.299, 0.587, 0.114)  # luma weights of ITU-R BT.601
IMAGE_NUMBERS = (
    "brightness", "contrast", "saturation", "hue", "blur", "sigma",
    "shift_y", "shift_x", "crop", "crop_y", "crop_x",
)  # fmt: skip


def change_rgb(image: torch.Tensor, seeds: torch.Tensor, *, camera: str, options: AugmentConfig) -> torch.Tensor:
    """(B, To, H, W, 3) uint8 in and out: shift and crop, then colour, then blur; rounded once, at the end."""
    u, crops, picked = _image_numbers(seeds, camera), options.crop_ratio < 1, image
    colors, shift = bool(options.brightness or options.contrast or options.saturation), shift_of(image, options)
    if shift or crops:
        rows, columns = image_places(image, u, crop_ratio=options.crop_ratio, shift_px=shift)
    if shift and not crops:
        picked = pick(image, rows.low, columns.low)
    if not (crops or colors or options.hue or options.blur_sigma):
        return picked
    planes = picked.permute(4, 0, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    if crops:
        planes = interpolate(planes, rows, columns)
    if colors:
        planes = _color(planes, image, u=u, options=options).clamp_(0, 255)
    if options.hue:
        planes = turn_hue(planes, around_zero(u["hue"], options.hue))
    if options.blur_sigma:
        sigma = torch.where(u["blur"] < options.blur_probability, u["sigma"] * options.blur_sigma, 0.0)
        planes = blur(planes, sigma, radius=math.ceil(3 * options.blur_sigma))
    return planes.round_().permute(1, 2, 3, 4, 0).to(torch.uint8, memory_format=torch.contiguous_format)


def change_depth(depth: torch.Tensor, seeds: torch.Tensor, *, camera: str, options: AugmentConfig) -> torch.Tensor:
    """(B, To, H, W, 1) float32 m: the camera's shift and crop (nearest pixel), then errors; 0 = no reading stays 0."""
    shift = shift_of(depth, options)
    if shift or options.crop_ratio < 1:
        u = _image_numbers(seeds, camera)
        rows, columns = image_places(depth, u, crop_ratio=options.crop_ratio, shift_px=shift)
        depth = pick(depth, rows.nearest(), columns.nearest())
    if not (options.depth_scale or options.depth_shift_m or options.depth_noise_m or options.depth_dropout):
        return depth
    depth, errors = depth.squeeze(-1), uniform(seeds, (2,), stream=f"augment.depth.{camera}")
    read, pixels = depth > 0, tuple(depth.shape[1:])
    depth = depth * _wide(1 + around_zero(errors[:, 0], options.depth_scale))
    depth.add_(_wide(around_zero(errors[:, 1], options.depth_shift_m)))
    if options.depth_noise_m:
        depth.add_(noise(seeds, pixels, stream=f"augment.depth.{camera}.noise"), alpha=options.depth_noise_m)
    if options.depth_dropout:
        read &= uniform(seeds, pixels, stream=f"augment.depth.{camera}.dropout") >= options.depth_dropout
    return depth.clamp_(min=0).masked_fill_(~read, 0)[..., None]


def shift_of(image: torch.Tensor, options: AugmentConfig) -> int:
    """Largest shift of pictures (B, To, H, W, c), in pixels: as asked, or the share of the height that DrQ found best.

    DrQ: Kostrikov et al. 2021, 4 of 84 pixels.
    """
    return round(image.shape[2] * DRQ_SHIFT) if options.shift_px is None else options.shift_px


def turn_hue(planes: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """(3, B, To, H, W) in [0, any] with the hue of HSV turned by `turn` (B,) whole turns."""
    red, green, blue = planes
    value = planes.amax(0)
    chroma = value - planes.amin(0)
    scale = 1 / chroma.clamp(min=1e-6)
    hue = torch.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale)
    hue = torch.where(value == red, (green - blue) * scale, hue)
    hue = hue.add_(_wide(6 * turn)).remainder_(6)
    for plane, shade in zip(planes, ((hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_())):
        plane.copy_(value - chroma * (1 - shade.clamp_(0, 1)))
    return planes


def blur(planes: torch.Tensor, sigma: torch.Tensor, *, radius: int) -> torch.Tensor:
    """(3, B, To, H, W) under a Gaussian of `sigma` (B,) pixels, cut at `radius`; edges repeated."""
    steps = torch.arange(radius + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (steps / sigma.clamp(min=1e-3)[:, None]) ** 2)
    weights = weights / (2 * weights.sum(1, keepdim=True) - 1)
    for dim, pad in ((3, (0, 0, radius, radius)), (4, (radius, radius, 0, 0))):
        size = planes.shape[dim]
        padded = F.pad(planes.flatten(1, 2), pad, mode="replicate").unflatten(1, planes.shape[1:3])
        # a sum of shifted pictures, not a convolution: the result of those changes with the batch's size
        planes = planes * _wide(weights[:, 0])
        for step in range(1, radius + 1):
            pair = padded.narrow(dim, radius - step, size) + padded.narrow(dim, radius + step, size)
            planes.add_(pair.mul_(_wide(weights[:, step])))
    return planes


def _color(
    planes: torch.Tensor, image: torch.Tensor, *, u: dict[str, torch.Tensor], options: AugmentConfig
) -> torch.Tensor:
    """Brightness b, contrast c and saturation s in one line: x -> s (c (b x - b m) + b m) + (1 - s) grey of the same.

    Args:
        planes: (3, B, To, H, W) float32, changed in place.
        image: (B, To, H, W, 3) uint8, the whole window: m is its mean grey.
        u: the camera's numbers.
    """
    largest = {name: getattr(options, name) for name in ("brightness", "contrast", "saturation")}
    b, c, s = (1 + around_zero(u[name], bound) for name, bound in largest.items())
    offset = torch.zeros_like(b)
    if options.contrast:
        # whole numbers add up to the same in any order: a float mean would change with the batch's size
        total = image.flatten(1, 2).sum(1, dtype=torch.int32).sum(1, dtype=torch.int64).float()
        mean = _grey(*total.unbind(1)) / math.prod(image.shape[1:4])
        offset = (1 - c) * b * mean
    if options.saturation:
        grey = _grey(*planes).mul_(_wide((1 - s) * c * b)).add_(_wide(offset))
        return planes.mul_(_wide(s * c * b)).add_(grey)
    return planes.mul_(_wide(c * b)).add_(_wide(offset))


def _grey(red: torch.Tensor, green: torch.Tensor, blue: torch.Tensor) -> torch.Tensor:
    return red * GREY[0] + green * GREY[1] + blue * GREY[2]


def _image_numbers(seeds: torch.Tensor, camera: str) -> dict[str, torch.Tensor]:
    """One number (B,) in (0, 1) for each use: an option that is switched on does not change another's."""
    return dict(zip(IMAGE_NUMBERS, uniform(seeds, (len(IMAGE_NUMBERS),), stream=f"augment.image.{camera}").unbind(1)))


def _wide(per_sample: torch.Tensor) -> torch.Tensor:
    """(B,) to what multiplies (B, To, H, W) and (3, B, To, H, W)."""
    return per_sample.view(-1, 1, 1, 1)
