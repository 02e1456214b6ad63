"""The bowl and the microwave, of boxes: what a gripper can hold, and what a door closes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WALL = 0.02  # m: of the microwave
DOOR = 0.028  # m: thickness of its door
FEET = 0.012  # m
PANEL = 0.11  # m: width of the control panel, on the right of the door
MOST_OPEN = 2.1  # rad
NUM_SIDES = 16  # boxes of the bowl's wall


@dataclass(frozen=True)
class Bowl:
    """A bowl whose wall leans outwards by 45 degrees: a gripper that points forward and down fits over its rim.

    Attributes:
        rim, foot: radius at the top and at the bottom (m).
        height: (m).
        rgba: of its glaze.
    """

    rim: float = 0.08
    foot: float = 0.036
    height: float = 0.047
    rgba: str = "0.93 0.55 0.25 1"

    @property
    def slope(self) -> float:
        """Of the wall against the table (rad)."""
        return float(np.arctan2(self.height, self.rim - self.foot))


@dataclass(frozen=True)
class Microwave:
    """A box with a door whose hinge is on the left of who stands before it.

    Its frame lies on the table in the middle below the front: x into the oven, y to the left, z up.

    Attributes:
        width, depth, height: outer measures (m).
        rgba: of its case.
    """

    width: float = 0.48
    depth: float = 0.36
    height: float = 0.29
    rgba: str = "0.86 0.87 0.88 1"

    @property
    def cavity(self) -> np.ndarray:
        """(2, 3) lower and upper corner of the room inside, in the microwave's frame (m)."""
        side = self.width / 2
        low = [0.0, -side + PANEL + WALL / 2, FEET + WALL]
        return np.array([low, [self.depth - WALL, side - WALL, self.height - WALL]])

    @property
    def door_width(self) -> float:
        """(m)"""
        return self.width - PANEL

    @property
    def hinge(self) -> np.ndarray:
        """(3,) where the door's frame is, in the microwave's (m); y of that frame points away from the door."""
        return np.array([0.0, self.width / 2, FEET])


def bowl_xml(bowl: Bowl) -> str:
    """The free <body> "bowl", its frame in the middle of its foot."""
    slant = np.hypot(bowl.height, bowl.rim - bowl.foot)
    middle, half = (bowl.rim + bowl.foot) / 2, np.pi / NUM_SIDES
    # each side's box is as wide as the rim needs; towards the foot they overlap
    wide = bowl.rim * np.tan(half)
    sides = []
    for angle in 2 * half * np.arange(NUM_SIDES):
        lean = bowl.slope
        # first leaning, then turned about the bowl's axis
        quat = _turned(angle, lean)
        sides.append(
            f'<geom class="bowl" type="box" size="{slant / 2} {wide} 0.003" '
            f'pos="{middle * np.cos(angle)} {middle * np.sin(angle)} {bowl.height / 2}" quat="{quat}"/>'
        )
    return f"""
<body name="bowl" pos="0.4 -0.1 0.001">
  <freejoint name="bowl"/>
  <inertial mass="0.18" pos="0 0 {bowl.height * 0.4}" diaginertia="0.0003 0.0003 0.0005"/>
  <geom class="bowl" type="cylinder" size="{bowl.foot} 0.003" pos="0 0 0.003"/>
  {"".join(sides)}
  <geom class="look" type="mesh" mesh="bowl" material="glaze"/>
</body>"""


def bowl_mesh_xml(bowl: Bowl, *, segments: int = 64) -> str:
    """The <mesh> that the bowl looks like: its outline turned about its axis."""
    t = 0.0035
    rise, out = np.sin(bowl.slope) * t, np.cos(bowl.slope) * t
    outline = np.array([
        [0.001, 0.0], [bowl.foot - 0.002, 0.0], [bowl.foot + 0.002, 0.002],
        [bowl.rim + rise - 0.001, bowl.height - out], [bowl.rim + rise, bowl.height], [bowl.rim, bowl.height + 0.002],
        [bowl.rim - rise, bowl.height + out - 0.001], [bowl.foot + 0.001, 0.0075], [bowl.foot - 0.008, 0.006],
        [0.001, 0.006],
    ])  # fmt: skip
    angles = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    points = np.stack([
        np.outer(np.cos(angles), outline[:, 0]), np.outer(np.sin(angles), outline[:, 0]),
        np.tile(outline[:, 1], (segments, 1)),
    ], -1).reshape(-1, 3)  # fmt: skip
    rows, faces = len(outline), []
    for segment in range(segments):
        here, there = segment * rows, (segment + 1) % segments * rows
        for row in range(rows - 1):
            faces += [[here + row, there + row, there + row + 1], [here + row, there + row + 1, here + row + 1]]
    return f'<mesh name="bowl" inertia="shell" vertex="{_numbers(points)}" face="{_numbers(faces)}"/>'


def microwave_xml(oven: Microwave) -> str:
    """The <body> "microwave" and its door, which is closed at 0 and opens towards who stands before it."""
    (_, right, floor), (back, left, roof) = oven.cavity
    side, deep, tall = oven.width / 2, oven.depth, oven.height
    middle, half = (left + right) / 2, (left - right) / 2
    panel = f"{-side + PANEL / 2}"
    boxes = "".join([
        _box("case", (0, -side, FEET), (deep, side, floor)),
        _box("case", (0, -side, roof), (deep, side, tall)),
        _box("case", (0, left, floor), (deep, side, roof)),
        _box("case", (0, -side, floor), (deep, right, roof)),
        _box("case", (back, right, floor), (deep, left, roof)),
    ])  # fmt: skip
    lining = "".join([
        _box("lining", (0.004, right, floor), (back, left, floor + 0.001), look=True),
        _box("lining", (0.004, right, roof - 0.001), (back, left, roof), look=True),
        _box("lining", (0.004, left - 0.001, floor), (back, left, roof), look=True),
        _box("lining", (0.004, right, floor), (back, right + 0.001, roof), look=True),
        _box("lining", (back - 0.001, right, floor), (back, left, roof), look=True),
        _box("panel", (-0.004, -side + 0.006, FEET + 0.008), (0, -side + PANEL - 0.008, tall - 0.008), look=True),
        _box("screen", (-0.006, -side + 0.02, tall - 0.07), (0, -side + PANEL - 0.022, tall - 0.035), look=True),
    ])  # fmt: skip
    knobs = "".join(
        f'<geom class="look" type="cylinder" size="0.019" fromto="-0.022 {panel} {z}  0 {panel} {z}" material="steel"/>'
        for z in (tall - 0.12, tall - 0.18)
    )
    feet = "".join(
        f'<geom class="look" type="cylinder" size="0.014 {FEET / 2}" pos="{x} {y} {FEET / 2}" material="dark"/>'
        for x in (0.04, deep - 0.04)
        for y in (-side + 0.04, side - 0.04)
    )
    return f"""
<body name="microwave" pos="0.6 0 0">
  {boxes}{lining}{knobs}{feet}
  <geom class="look" type="cylinder" size="0.13 0.002" pos="{back / 2} {middle} {floor + 0.003}" material="glass"/>
  <site name="cavity" type="box" pos="{back / 2} {middle} {(floor + roof) / 2}" rgba="0 0 0 0"
    size="{back / 2} {half} {(roof - floor) / 2}"/>
  {_door(oven)}
</body>"""


def _door(oven: Microwave) -> str:
    wide, tall = oven.door_width, oven.height - FEET
    frame = 0.045
    return f"""
<body name="door" pos="{_numbers(oven.hinge)}">
  <joint name="door" type="hinge" axis="0 0 -1" range="0 {MOST_OPEN}" damping="0.6" frictionloss="0.15"
    armature="0.01"/>
  <inertial mass="1.6" pos="{-DOOR / 2} {-wide / 2} {tall / 2}" diaginertia="0.02 0.01 0.02"/>
  <geom name="door" class="thing" type="box" material="case" pos="{-DOOR / 2 - 0.001} {-wide / 2} {tall / 2}"
    size="{DOOR / 2} {wide / 2 - 0.001} {tall / 2 - 0.001}"/>
  {_box("screen", (-DOOR - 0.003, -wide + frame, frame), (0.0005, -frame, tall - frame), look=True)}
  <geom name="handle" class="thing" type="capsule" size="0.009" material="steel"
    fromto="{-DOOR - 0.03} {-wide + 0.022} 0.05  {-DOOR - 0.03} {-wide + 0.022} {tall - 0.05}"/>
  {_box("steel", (-DOOR - 0.03, -wide + 0.015, 0.06), (-DOOR, -wide + 0.029, 0.074), look=True)}
  {_box("steel", (-DOOR - 0.03, -wide + 0.015, tall - 0.074), (-DOOR, -wide + 0.029, tall - 0.06), look=True)}
</body>"""


def _box(material: str, low: tuple[float, ...], high: tuple[float, ...], *, look: bool = False) -> str:
    centre, size = np.add(low, high) / 2, np.subtract(high, low) / 2
    kind = "look" if look else "thing"
    return f'<geom class="{kind}" type="box" pos="{_numbers(centre)}" size="{_numbers(size)}" material="{material}"/>'


def _turned(angle: float, lean: float) -> str:
    """Quaternion w x y z: leaning upwards about -y, then turned about z."""
    (c, s), (d, e) = ((np.cos(value / 2), np.sin(value / 2)) for value in (angle, -lean))
    return _numbers([c * d, -s * e, c * e, s * d])


def _numbers(values: object) -> str:
    return " ".join(f"{value:.6g}" for value in np.ravel(np.asarray(values)))
