"""A turn and a shift of the world's frame, one for each sample, and what they make of points and orientations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass
class Motion:
    """x -> R x + offset, one for each sample.

    Attributes:
        quaternion: (B, 4) wxyz, w > 0 below half a turn.
        matrix: (B, 3, 3), R.
        offset: (B, 3) m.
    """

    quaternion: torch.Tensor
    matrix: torch.Tensor
    offset: torch.Tensor

    @classmethod
    def turn(cls, angles: torch.Tensor, *, shift: torch.Tensor, center: torch.Tensor) -> Motion:
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

    # the methods below are named as the parts in schema.PART_WIDTHS: `world` looks them up by that name

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
        product = [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ]
        return torch.stack(product, dim=-1)

    def quaternion_xyzw(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, 4) orientations."""
        return self.quaternion_wxyz(x.roll(1, -1)).roll(-1, -1)

    def rotation_vector(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, 3) orientations as axis times angle (rad).

        Angles go past half a turn rather than jump to the other side.
        """
        half = torch.linalg.vector_norm(x, dim=-1, keepdim=True) / 2
        axis_sine = x * (torch.sinc(half / math.pi) / 2)
        turned = self.quaternion_wxyz(torch.cat([half.cos(), axis_sine], -1))
        sine = torch.linalg.vector_norm(turned[..., 1:], dim=-1, keepdim=True)
        angle = 2 * torch.atan2(sine, turned[..., :1])
        return turned[..., 1:] * torch.where(sine > 1e-7, angle / sine.clamp(min=1e-7), 2.0)
