"""Augmentation of training batches, on their device and a batch at a time; the keys are `augment` in the configuration.

Every random number is a function of the sample's noise_seed, so of (seed, step, window): neither the process nor the
rest of the batch changes it. What is drawn once for a sample holds for all frames of its window, so that motion between
frames stays motion; sensor noise (of pixels and points) is drawn for every frame. Each camera has its own numbers, and
the colour and depth of one camera are shifted and cropped alike, so that their pixels still meet.

Turning or shifting the world is a change of its frame: everything moves with it, the robot's base and the cameras too.
Clouds and the poses in states and actions get new numbers; images, depth and joint angles stay as they are.
Statistics of the normaliser are those of the data as recorded: moved poses can leave [-1, 1] a little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from ppt_kit.checks import moves_world, part_names
from ppt_kit.errors import UserError
from ppt_kit.randomness import normal, uniform
from ppt_kit.schema import PART_WIDTHS, AugmentConfig

GREY = (0.299, 0.587, 0.114)  # luma weights of ITU-R BT.601
HEIGHT_CHANNELS = (4, 5, 7)  # clouds whose last column is the height, z
NOISE_CUT = 4.0  # standard deviations: no noise lies farther out
IMAGE_NUMBERS = (
    "brightness", "contrast", "saturation", "hue", "blur", "sigma",
    "shift_y", "shift_x", "crop", "crop_y", "crop_x",
)  # fmt: skip

Layouts = Mapping[str, Mapping[str, Mapping[str, tuple[int, int]]]]


class Augmenter:
    """Changes batches as `augment` in the configuration says.

    Args:
        cfg: `augment` of a checked configuration.
        modalities: what the batches' obs hold.
        layouts: {domain: {"state" | "action": {key: (first column, one past the last)}}}, keys as dataset.state_keys.
        domains: names, in the order of the batch's "domain".
        point_channels: as dataset.point_channels.
    Attributes:
        is_on: false when nothing is asked for; calling gives the batch itself then.
    Raises:
        UserError: an option without its modality, or parts that do not fit a state or an action.
    """

    def __init__(
        self, cfg: Any, *, modalities: Sequence[str], layouts: Layouts, domains: Sequence[str], point_channels: int
    ):
        # plain attributes: reading them from a DictConfig costs more than drawing the numbers
        self.cfg: AugmentConfig = cfg if isinstance(cfg, AugmentConfig) else OmegaConf.to_object(cfg)  # type: ignore[assignment]
        self._moves = moves_world(self.cfg)
        self._colors = bool(self.cfg.brightness or self.cfg.contrast or self.cfg.saturation)
        self._crops = self.cfg.crop_ratio < 1
        self._has_height = point_channels in HEIGHT_CHANNELS
        self.is_on = bool(_needed(self.cfg))
        for option, takers in _needed(self.cfg).items():
            if not set(takers) & set(modalities):
                raise UserError(
                    f"augment.{option} changes {' and '.join(takers)}, but the policy's batches hold {', '.join(modalities)} only. "
                    f"Leave augment.{option} out, or train on {takers[0]}."
                )
        self._largest = torch.tensor([[math.radians(angle) for angle in self.cfg.rotation_deg], self.cfg.translation_m])
        self._center = torch.tensor(self.cfg.rotation_center)
        self._parts: dict[str, list[_Part]] = {"state": [], "action": []}
        if self._moves:
            self._parts["action"] = _action_parts(self.cfg.action_parts, layouts, domains)
            if "state" in modalities:
                self._parts["state"] = _state_parts(self.cfg.state_parts, layouts, domains)

    @torch.no_grad()
    def __call__(self, batch: dict) -> dict:
        """The batch of dataset.py's contract with "noise_seed" (B,), changed; what is not changed is the same tensor."""
        if not self.is_on:
            return batch
        seeds, obs = batch["noise_seed"], dict(batch["obs"])
        out = {**batch, "obs": obs}
        motion = self._motion(seeds) if self._moves else None
        if motion is not None:
            out["action"] = _move_parts(batch["action"], self._parts["action"], motion, batch["domain"])
            if "state" in obs:
                obs["state"] = _move_parts(obs["state"], self._parts["state"], motion, batch["domain"])
        if "pointcloud" in obs:
            obs["pointcloud"] = self._cloud(obs["pointcloud"], seeds, motion)
        for kind, change in (("rgb", self._rgb), ("depth", self._depth)):
            if kind in obs:
                obs[kind] = {camera: change(image, seeds, camera) for camera, image in obs[kind].items()}
        return out

    # ---------------------------------------------------------------- images

    def _rgb(self, image: torch.Tensor, seeds: torch.Tensor, camera: str) -> torch.Tensor:
        """(B, To, H, W, 3) uint8 in and out: shift and crop, then colour, then blur; rounded once, at the end."""
        cfg, u, picked = self.cfg, _image_numbers(seeds, camera), image
        if cfg.shift_px or self._crops:
            rows, columns = self._places(image, u)
        if cfg.shift_px and not self._crops:
            picked = _pick(image, rows.low, columns.low)
        if not (self._crops or self._colors or cfg.hue or cfg.blur_sigma):
            return picked
        planes = picked.permute(4, 0, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
        if self._crops:
            planes = _interpolate_columns(_interpolate_rows(planes, rows), columns)
        if self._colors:
            planes = self._color(planes, image, u).clamp_(0, 255)
        if cfg.hue:
            planes = _turn_hue(planes, _around_zero(u["hue"], cfg.hue))
        if cfg.blur_sigma:
            sigma = torch.where(u["blur"] < cfg.blur_probability, u["sigma"] * cfg.blur_sigma, 0.0)
            planes = _blur(planes, sigma, radius=math.ceil(3 * cfg.blur_sigma))
        return planes.round_().permute(1, 2, 3, 4, 0).to(torch.uint8, memory_format=torch.contiguous_format)

    def _color(self, planes: torch.Tensor, image: torch.Tensor, u: dict[str, torch.Tensor]) -> torch.Tensor:
        """Brightness b, contrast c and saturation s in one line: x -> s (c (b x - b m) + b m) + (1 - s) grey of the same.

        Args:
            planes: (3, B, To, H, W) float32, changed in place.
            image: (B, To, H, W, 3) uint8, the whole window: m is its mean grey.
        """
        b, c, s = (
            1 + _around_zero(u[name], largest)
            for name, largest in (
                ("brightness", self.cfg.brightness), ("contrast", self.cfg.contrast), ("saturation", self.cfg.saturation),
            )
        )  # fmt: skip
        offset = torch.zeros_like(b)
        if self.cfg.contrast:
            # whole numbers add up to the same in any order: a float mean would change with the batch's size
            total = image.flatten(1, 2).sum(1, dtype=torch.int32).sum(1, dtype=torch.int64).float()
            mean = _grey(*total.unbind(1)) / math.prod(image.shape[1:4])
            offset = (1 - c) * b * mean
        if self.cfg.saturation:
            grey = _grey(*planes).mul_(_wide((1 - s) * c * b)).add_(_wide(offset))
            return planes.mul_(_wide(s * c * b)).add_(grey)
        return planes.mul_(_wide(c * b)).add_(_wide(offset))

    def _depth(self, depth: torch.Tensor, seeds: torch.Tensor, camera: str) -> torch.Tensor:
        """(B, To, H, W, 1) float32 m: the camera's shift and crop (nearest pixel), then errors; 0 = no reading stays 0."""
        cfg, u = self.cfg, _image_numbers(seeds, camera)
        if cfg.shift_px or self._crops:
            rows, columns = self._places(depth, u)
            depth = _pick(depth, rows.nearest(), columns.nearest())
        if not (cfg.depth_scale or cfg.depth_shift_m or cfg.depth_noise_m or cfg.depth_dropout):
            return depth
        depth, errors = depth.squeeze(-1), uniform(seeds, (2,), stream=f"augment.depth.{camera}")
        read, pixels = depth > 0, tuple(depth.shape[1:])
        depth = depth * _wide(1 + _around_zero(errors[:, 0], cfg.depth_scale))
        depth.add_(_wide(_around_zero(errors[:, 1], cfg.depth_shift_m)))
        if cfg.depth_noise_m:
            depth.add_(_noise(seeds, pixels, stream=f"augment.depth.{camera}.noise"), alpha=cfg.depth_noise_m)
        if cfg.depth_dropout:
            read &= uniform(seeds, pixels, stream=f"augment.depth.{camera}.dropout") >= cfg.depth_dropout
        return depth.clamp_(min=0).masked_fill_(~read, 0)[..., None]

    def _places(self, image: torch.Tensor, u: dict[str, torch.Tensor]) -> tuple[_Places, _Places]:
        """Where each row and each column of the (B, To, H, W, C) result comes from."""
        cfg, kept = self.cfg, 1 - (1 - self.cfg.crop_ratio) * u["crop"]
        return tuple(
            _places(size, kept=kept, place=u[f"crop_{axis}"], shift=_whole(u[f"shift_{axis}"], cfg.shift_px))
            for axis, size in (("y", image.shape[2]), ("x", image.shape[3]))
        )  # type: ignore[return-value]

    # ---------------------------------------------------------------- clouds and the world

    def _cloud(self, cloud: torch.Tensor, seeds: torch.Tensor, motion: _Motion | None) -> torch.Tensor:
        """(B, To, P, C): move, jitter, drop; the height last, so that it is the z that is there."""
        cfg, points = self.cfg, tuple(cloud.shape[1:3])
        if motion is None and not cfg.cloud_jitter_m and not cfg.cloud_dropout:
            return cloud
        xyz = cloud[..., :3]
        if motion is not None:
            xyz = motion.position(xyz.flatten(1, 2)).view_as(xyz)
        if cfg.cloud_jitter_m:
            xyz = xyz + cfg.cloud_jitter_m * _noise(seeds, (*points, 3), stream="augment.cloud.jitter")
        others = cloud[..., 3:-1] if self._has_height else cloud[..., 3:]
        cloud = torch.cat([xyz, others, xyz[..., 2:]] if self._has_height else [xyz, others], dim=-1)
        if cfg.cloud_dropout:
            drawn = uniform(seeds, (2, *points), stream="augment.cloud.dropout")
            source = _copies_of_kept(drawn[:, 0], drawn[:, 1], share=cfg.cloud_dropout)
            cloud = cloud.gather(2, source[..., None].expand_as(cloud))
        return cloud

    def _motion(self, seeds: torch.Tensor) -> _Motion:
        if self._center.device != seeds.device:  # once: a copy at every step would make the host wait for the device
            self._largest, self._center = self._largest.to(seeds.device), self._center.to(seeds.device)
            for part in (*self._parts["state"], *self._parts["action"]):
                part.domains = part.domains.to(seeds.device)
        angles, shift = _around_zero(uniform(seeds, (2, 3), stream="augment.world"), self._largest).unbind(1)
        return _Motion.turn(angles, shift=shift, center=self._center)


# -------------------------------------------------------------------- which options, which columns


def _needed(cfg: AugmentConfig) -> dict[str, tuple[str, ...]]:
    """{option that is on: the modalities it changes, one of which must be there}."""
    asked: dict[tuple[str, ...], dict[str, Any]] = {
        ("rgb",): {
            "brightness": cfg.brightness,
            "contrast": cfg.contrast,
            "saturation": cfg.saturation,
            "hue": cfg.hue,
            "blur_sigma": cfg.blur_sigma,
        },
        ("rgb", "depth"): {"shift_px": cfg.shift_px, "crop_ratio": cfg.crop_ratio < 1},
        ("depth",): {
            "depth_shift_m": cfg.depth_shift_m,
            "depth_scale": cfg.depth_scale,
            "depth_noise_m": cfg.depth_noise_m,
            "depth_dropout": cfg.depth_dropout,
        },
        # images do not show how the world was turned: without a cloud the policy could not know
        ("pointcloud",): {
            "cloud_jitter_m": cfg.cloud_jitter_m,
            "cloud_dropout": cfg.cloud_dropout,
            "rotation_deg": any(cfg.rotation_deg),
            "translation_m": any(cfg.translation_m),
        },
    }
    return {option: takers for takers, options in asked.items() for option, value in options.items() if value}


@dataclass
class _Part:
    """Columns that follow the world, in the domains that have them there."""

    kind: str
    start: int
    domains: torch.Tensor  # (number of domains,) bool

    def of(self, values: torch.Tensor) -> torch.Tensor:
        return values[..., self.start : self.start + PART_WIDTHS[self.kind]]


def _action_parts(action_parts: Any, layouts: Layouts, domains: Sequence[str]) -> list[_Part]:
    found: dict[tuple[str, int], list[bool]] = {}
    for number, domain in enumerate(domains):
        given = action_parts[domain] if isinstance(action_parts, dict) else action_parts
        width = max(stop for _, stop in layouts[domain]["action"].values())
        columns = _columns(part_names(given), 0, width, option="action_parts", what=f"the action of {domain}")
        _note(found, columns, number, len(domains))
    return [_Part(kind, start, torch.tensor(has)) for (kind, start), has in found.items()]


def _state_parts(state_parts: dict, layouts: Layouts, domains: Sequence[str]) -> list[_Part]:
    found: dict[tuple[str, int], list[bool]] = {}
    for number, domain in enumerate(domains):
        for name, (start, stop) in layouts[domain]["state"].items():
            if name not in state_parts:
                known = {key: state_parts.get(key, "none") for key in layouts[domain]["state"]}
                typed = ", ".join(f"{key}: {parts}" for key, parts in known.items())
                raise UserError(
                    f"augment.rotation_deg or augment.translation_m moves the world, but augment.state_parts says nothing of the state key {name}. "
                    f'Type "augment.state_parts={{{typed}}}", with the parts of those that are poses: {", ".join(PART_WIDTHS)}.'
                )
            parts, option = part_names(state_parts[name]), f"state_parts.{name}"
            columns = _columns(parts, start, stop, option=option, what=f"{name} of {domain}")
            _note(found, columns, number, len(domains))
    return [_Part(kind, start, torch.tensor(has)) for (kind, start), has in found.items()]


def _columns(parts: list[str], start: int, stop: int, *, option: str, what: str) -> list[tuple[str, int]]:
    """(kind, first column) of the parts that lie behind each other from `start` to `stop`; a last none takes the rest."""
    found, at = [], start
    for kind in parts:
        if kind != "none":
            found.append((kind, at))
        at += PART_WIDTHS[kind]
    if parts[-1] == "none":
        at = max(at - 1, stop)
    if at != stop:
        raise UserError(
            f"augment.{option}=[{','.join(parts)}] are {at - start} numbers, but {what} has {stop - start}. "
            "Name them all, in order; a last none stands for every number behind that is no pose."
        )
    return found


def _note(found: dict[tuple[str, int], list[bool]], columns: list[tuple[str, int]], domain: int, count: int) -> None:
    for column in columns:
        found.setdefault(column, [False] * count)[domain] = True


# -------------------------------------------------------------------- moving the world


@dataclass
class _Motion:
    """x -> R x + offset, one for each sample."""

    quaternion: torch.Tensor  # (B, 4) wxyz, w > 0 below half a turn
    matrix: torch.Tensor  # (B, 3, 3)
    offset: torch.Tensor  # (B, 3) m

    @classmethod
    def turn(cls, angles: torch.Tensor, *, shift: torch.Tensor, center: torch.Tensor) -> _Motion:
        """R = Rz Ry Rx about `center` (3,) m, by angles (B, 3) rad about x, y, z; then shifted by `shift` (B, 3) m."""
        (cx, cy, cz), (sx, sy, sz) = (angles / 2).cos().unbind(-1), (angles / 2).sin().unbind(-1)
        w, x = cx * cy * cz + sx * sy * sz, sx * cy * cz - cx * sy * sz
        y, z = cx * sy * cz + sx * cy * sz, cx * cy * sz - sx * sy * cz
        rows = [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ]  # fmt: skip
        motion = cls(torch.stack([w, x, y, z], -1), torch.stack(rows, -1).view(-1, 3, 3), shift)
        motion.offset = center + shift - motion.displacement(center.expand_as(shift)[:, None])[:, 0]
        return motion

    def position(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, 3) points."""
        return self.displacement(x) + self.offset[:, None]

    def displacement(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, 3) differences: steps of a hand, or small turns as axis times angle."""
        # three products and two sums, never a matmul: TF32 and bf16 autocast would move a point by millimetres
        a, b, c = self.matrix[:, None].unbind(-1)
        return x[..., 0:1] * a + x[..., 1:2] * b + x[..., 2:3] * c

    def quaternion_wxyz(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, 4) orientations; the sign is not normalised, so that a window's quaternions stay continuous."""
        aw, ax, ay, az = self.quaternion[:, None].unbind(-1)
        bw, bx, by, bz = x.unbind(-1)
        return torch.stack(
            [
                aw * bw - ax * bx - ay * by - az * bz,
                aw * bx + ax * bw + ay * bz - az * by,
                aw * by - ax * bz + ay * bw + az * bx,
                aw * bz + ax * by - ay * bx + az * bw,
            ],
            dim=-1,
        )

    def quaternion_xyzw(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, 4) orientations."""
        return self.quaternion_wxyz(x.roll(1, -1)).roll(-1, -1)

    def rotation_vector(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, 3) orientations as axis times angle (rad); angles go past half a turn rather than jump to the other side."""
        half = torch.linalg.vector_norm(x, dim=-1, keepdim=True) / 2
        axis_sine = x * (torch.sinc(half / math.pi) / 2)
        turned = self.quaternion_wxyz(torch.cat([half.cos(), axis_sine], -1))
        sine = torch.linalg.vector_norm(turned[..., 1:], dim=-1, keepdim=True)
        angle = 2 * torch.atan2(sine, turned[..., :1])
        return turned[..., 1:] * torch.where(sine > 1e-7, angle / sine.clamp(min=1e-7), 2.0)


def _move_parts(values: torch.Tensor, parts: list[_Part], motion: _Motion, domain: torch.Tensor) -> torch.Tensor:
    """(B, T, D) with each part moved in the domains that have it; padding stays zero."""
    if not parts:
        return values
    out = values.clone()
    for part in parts:
        moved, mine = getattr(motion, part.kind)(part.of(values)), part.domains[domain]
        part.of(out).copy_(torch.where(mine[:, None, None], moved, part.of(out)))
    return out


def _copies_of_kept(drawn: torch.Tensor, choice: torch.Tensor, *, share: float) -> torch.Tensor:
    """(B, To, P) int64: which point of the frame each one becomes: itself, or a kept one where drawn < share."""
    keep = (drawn >= share) | (drawn == drawn.amax(-1, keepdim=True))  # at least one point of a frame stays
    kept_first = keep.int().argsort(dim=-1, descending=True, stable=True)
    count = keep.sum(-1, keepdim=True)
    chosen = (choice * count).long().minimum(count - 1)
    return torch.where(keep, torch.arange(keep.shape[-1], device=keep.device), kept_first.gather(-1, chosen))


# -------------------------------------------------------------------- pictures


@dataclass
class _Places:
    """Where each of n rows (or columns) comes from: (1 - weight) * [low] + weight * [high]."""

    low: torch.Tensor  # (B, n) int64
    high: torch.Tensor  # (B, n) int64
    weight: torch.Tensor  # (B, n) float32

    def nearest(self) -> torch.Tensor:
        return torch.where(self.weight < 0.5, self.low, self.high)


def _places(size: int, *, kept: torch.Tensor, place: torch.Tensor, shift: torch.Tensor) -> _Places:
    """A crop of the share `kept` (B,) at `place` (B,) in [0, 1], resized to `size`, of the image shifted by `shift` (B,) pixels."""
    index = torch.arange(size, device=kept.device)
    start = place * size * (1 - kept)
    exact = (start[:, None] + (index + 0.5) * kept[:, None] - 0.5).clamp_(0, size - 1)
    low = exact.long()
    high = (low + 1).clamp_(max=size - 1)
    first, second = ((at + shift[:, None]).clamp_(0, size - 1) for at in (low, high))
    return _Places(first, second, exact - low)


def _pick(image: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(B, To, H, W, C) pixels at rows (B, H) and columns (B, W), in the image's own type."""
    frames = torch.arange(image.shape[0] * image.shape[1], device=image.device).view(*image.shape[:2], 1, 1)
    at = (frames * image.shape[2] + rows[:, None, :, None]) * image.shape[3] + columns[:, None, None, :]
    return image.flatten(0, 3).index_select(0, at.flatten()).view_as(image)


def _interpolate_rows(planes: torch.Tensor, rows: _Places) -> torch.Tensor:
    """(3, B, To, H, W), linear along H."""
    lines, weight = planes.flatten(0, 3), rows.weight[:, None, :, None]
    images = torch.arange(0, len(lines), planes.shape[3], device=planes.device).view(*planes.shape[:3], 1)
    low, high = (
        # whole rows are copied: three times as fast as gathering each pixel along H
        lines.index_select(0, (images + at[:, None]).flatten()).view_as(planes)
        for at in (rows.low, rows.high)
    )
    return high.sub_(low).mul_(weight).add_(low)


def _interpolate_columns(planes: torch.Tensor, columns: _Places) -> torch.Tensor:
    """(3, B, To, H, W), linear along W."""
    low, high = (planes.gather(4, at[:, None, None].expand_as(planes)) for at in (columns.low, columns.high))
    return high.sub_(low).mul_(columns.weight[:, None, None]).add_(low)


def _turn_hue(planes: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
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


def _blur(planes: torch.Tensor, sigma: torch.Tensor, *, radius: int) -> torch.Tensor:
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


def _grey(red: torch.Tensor, green: torch.Tensor, blue: torch.Tensor) -> torch.Tensor:
    return red * GREY[0] + green * GREY[1] + blue * GREY[2]


# -------------------------------------------------------------------- numbers


def _image_numbers(seeds: torch.Tensor, camera: str) -> dict[str, torch.Tensor]:
    """One number (B,) in (0, 1) for each use: an option that is switched on does not change another's."""
    return dict(zip(IMAGE_NUMBERS, uniform(seeds, (len(IMAGE_NUMBERS),), stream=f"augment.image.{camera}").unbind(1)))


def _noise(seeds: torch.Tensor, shape: tuple[int, ...], *, stream: str) -> torch.Tensor:
    return normal(seeds, shape, stream=stream).clamp_(-NOISE_CUT, NOISE_CUT)


def _around_zero(u: torch.Tensor, largest: Any) -> torch.Tensor:
    """Numbers in (0, 1) to numbers in ± largest."""
    return (2 * u - 1) * largest


def _whole(u: torch.Tensor, largest: int) -> torch.Tensor:
    """Numbers in (0, 1) to whole numbers in -largest … largest, each as likely."""
    return (u * (2 * largest + 1)).long().clamp_(max=2 * largest) - largest


def _wide(per_sample: torch.Tensor) -> torch.Tensor:
    """(B,) to what multiplies (B, To, H, W) and (3, B, To, H, W)."""
    return per_sample.view(-1, 1, 1, 1)
