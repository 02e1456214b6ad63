"""A UR5e with a parallel gripper, of cylinders and boxes: its published kinematics, its servos."""

from __future__ import annotations

import numpy as np

NUM_JOINTS = 6
JOINTS = [f"arm/{name}" for name in ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")]
FINGERS = ["gripper/left", "gripper/right"]
# Denavit-Hartenberg parameters of the UR5e as Universal Robots publishes them: d (m), a (m), alpha (rad) of each joint
DH = np.array([
    [0.1625, 0.0, np.pi / 2], [0.0, -0.425, 0.0], [0.0, -0.3922, 0.0], [0.1333, 0.0, np.pi / 2],
    [0.0997, 0.0, -np.pi / 2], [0.0996, 0.0, 0.0],
])  # fmt: skip
MOST_JOINT = (6.283, 6.283, 3.1415, 6.283, 6.283, 6.283)  # rad, to both sides
# of the position servos: a joint is behind its target by speed * DAMPING / STIFFNESS = 0.1 s
STIFFNESS = (4000.0, 4000.0, 4000.0, 1000.0, 1000.0, 1000.0)  # N m / rad
DAMPING = tuple(0.1 * stiffness for stiffness in STIFFNESS)  # N m s / rad
TORQUE = (150.0, 150.0, 150.0, 28.0, 28.0, 28.0)  # N m, published
MOST_LEAD = 0.3  # rad: how far a target may be ahead of its joint, which the servo's lag makes 3 rad/s; the arm's is pi
OPENING = 0.018  # m: way of a finger
SQUEEZE = 0.02  # m: the closed gripper's target lies so far beyond the touch of its fingers
GRIP_FORCE = 80.0  # N
TOOL_LENGTH = 0.168  # m: from the flange to the middle between the finger tips
REST = (-0.6, -1.94, 2.24, -2.5, -1.19, 1.1)  # rad: elbow up, the tool forward and down

# links of the right lengths but nominal masses (kg): gravity is compensated, as in the arm's own controller
_MASSES = (3.8, 8.4, 2.3, 1.2, 1.2, 0.4)


def arm_xml() -> str:
    """The <body> of the arm, its base at the origin; the site "tool" is where it grips, z along the fingers."""
    links = [_link(index) for index in range(NUM_JOINTS)]
    inner = _gripper()
    for index in reversed(range(NUM_JOINTS)):
        inner = f"{links[index]}{inner}</body>"
    # turned, so that the arm stretches along +x where its joints are 0, pi, …
    return f"""
<body name="arm/base" quat="0 0 0 1">
  {_cylinder("0 0 0  0 0 0.022", 0.092, "dark")}
  {_cylinder("0 0 0.02  0 0 0.1", 0.07, "metal")}
  {inner}
</body>"""


def actuators_xml() -> str:
    """The <position> servos of the six joints, then of the gripper: -SQUEEZE closed, OPENING open."""
    servos = [
        f'<position name="{joint}" joint="{joint}" kp="{kp}" kv="{kv}" forcerange="{-most} {most}" '
        f'ctrlrange="{-reach} {reach}"/>'
        for joint, kp, kv, most, reach in zip(JOINTS, STIFFNESS, DAMPING, TORQUE, MOST_JOINT, strict=True)
    ]
    servos.append(
        f'<position name="gripper" tendon="gripper" kp="3000" kv="150" forcerange="-{GRIP_FORCE} {GRIP_FORCE}" '
        f'ctrlrange="-{SQUEEZE} {OPENING}"/>'
    )
    return "\n".join(servos)


def coupling_xml() -> str:
    """What makes two fingers of one drive."""
    left, right = FINGERS
    return f"""
<tendon><fixed name="gripper"><joint joint="{left}" coef="0.5"/><joint joint="{right}" coef="0.5"/></fixed></tendon>
<equality><joint joint1="{left}" joint2="{right}" solimp="0.95 0.99 0.001" solref="0.005 1"/></equality>"""


def _link(index: int) -> str:
    """An open <body> with its joint and its shape; the next one hangs where the joint's DH parameters say."""
    place = ""
    if index:
        d, a, alpha = DH[index - 1]
        place = f'pos="{a} 0 {d}" quat="{np.cos(alpha / 2)} {np.sin(alpha / 2)} 0 0"'
    reach, joint = MOST_JOINT[index], JOINTS[index]
    return f"""
<body name="{joint}" gravcomp="1" {place}>
  <joint name="{joint}" class="arm" range="{-reach} {reach}"/>
  <inertial mass="{_MASSES[index]}" pos="{_centre(index)}" diaginertia="{_inertia(index)}"/>
  {_SHAPES[index]}"""


def _centre(index: int) -> str:
    return ("0 0 0.12", "-0.21 0 0.138", "-0.2 0 0.007", "0 0 0.12", "0 0 0.08", "0 0 0.08")[index]


def _inertia(index: int) -> str:
    return ("0.014 0.014 0.01", "0.015 0.13 0.13", "0.004 0.03 0.03", *("0.002 0.002 0.002",) * 3)[index]


def _cylinder(ends: str, radius: float, material: str, *, kind: str = "cylinder") -> str:
    return f'<geom class="arm" type="{kind}" fromto="{ends}" size="{radius}" material="{material}"/>'


def _housing(centre: str, low: float, high: float, radius: float, *, cap: str = "") -> str:
    """A motor along z, from low to high, with a coloured cap at its "high" or "low" end."""
    x, y = centre.split()
    parts = [_cylinder(f"{x} {y} {low}  {x} {y} {high}", radius, "metal")]
    if cap:
        start, end = (high, high + 0.014) if cap == "high" else (low - 0.014, low)
        parts.append(_cylinder(f"{x} {y} {start}  {x} {y} {end}", radius * 0.93, "blue"))
    return "\n".join(parts)


def _tube(length: float, height: float, radius: float) -> str:
    return _cylinder(f"0 0 {height}  {-length} 0 {height}", radius, "metal") + "".join(
        _cylinder(f"{-x} 0 {height}  {-x - 0.012} 0 {height}", radius * 1.06, "dark") for x in (0.07, length - 0.08)
    )


_SHAPES = (
    _cylinder("0 0 0.1  0 0 0.112", 0.067, "dark") + _cylinder("0 0 0.112  0 0 0.2", 0.06, "metal")
    + _cylinder("0 0 0.2  0 0 0.212", 0.055, "blue") + _cylinder("0 0.05 0.1625  0 -0.07 0.1625", 0.058, "metal"),
    _housing("0 0", 0.074, 0.192, 0.058, cap="high") + _tube(0.425, 0.138, 0.042)
    + _housing("-0.425 0", 0.078, 0.192, 0.052, cap="high"),
    _housing("0 0", -0.05, 0.074, 0.05, cap="low") + _tube(0.3922, 0.007, 0.036)
    + _housing("-0.3922 0", -0.045, 0.06, 0.041, cap="low"),
    _housing("0 0", 0.064, 0.178, 0.041, cap="high") + _cylinder("0 -0.045 0.1333  0 0.05 0.1333", 0.041, "metal"),
    _housing("0 0", 0.054, 0.143, 0.041, cap="high") + _cylinder("0 0.04 0.0997  0 -0.05 0.0997", 0.041, "metal"),
    _cylinder("0 0 0.054  0 0 0.0996", 0.037, "steel"),
)  # fmt: skip


def _gripper() -> str:
    flange = DH[-1, 0]
    fingers = "\n".join(_finger(name, side) for name, side in zip(FINGERS, (1, -1), strict=True))
    return f"""
<body name="gripper" pos="0 0 {flange}" gravcomp="1">
  <inertial mass="0.9" pos="0 0 0.04" diaginertia="0.001 0.001 0.001"/>
  {_cylinder("0 0 0  0 0 0.02", 0.036, "dark")}
  <geom class="arm" type="box" pos="0 0 0.05" size="0.036 0.027 0.032" material="dark"/>
  <geom class="arm" type="box" pos="0 0 0.086" size="0.046 0.02 0.008" material="steel"/>
  <geom class="look" type="box" pos="-0.055 0 0.022" size="0.012 0.02 0.01" material="dark"/>
  <camera name="wrist" pos="-0.075 0 0.02" xyaxes="0 -1 0 -0.894 0 0.447" fovy="75"/>
  <site name="tool" pos="0 0 {TOOL_LENGTH}" size="0.004" rgba="0 0 0 0"/>
  {fingers}
</body>"""


def _finger(name: str, side: int) -> str:
    """A finger that is closed at 0 and slides outwards; the face of its pad lies in the plane x = 0 then."""
    return f"""
<body name="{name}" pos="0 0 0.094" gravcomp="1">
  <joint name="{name}" class="finger" axis="{side} 0 0" range="0 {OPENING}"/>
  <inertial mass="0.08" pos="{side * 0.01} 0 0.03" diaginertia="0.0001 0.0001 0.0001"/>
  <geom class="arm" type="box" pos="{side * 0.012} 0 0.014" size="0.009 0.013 0.014" material="steel"/>
  <geom class="arm" type="box" pos="{side * 0.0075} 0 0.05" size="0.0035 0.011 0.036" material="dark"/>
  <geom name="{name}" class="pad" type="box" pos="{side * 0.003} 0 0.066" size="0.003 0.011 0.02" material="rubber"/>
</body>"""
