"""The whole scene as one MJCF: a room, a table, the arm, the bowl, the microwave, cameras and lights."""

from __future__ import annotations

from dataclasses import dataclass, field

from ppt_kit.sim.simulators.ur5.arm import actuators_xml, arm_xml, coupling_xml
from ppt_kit.sim.simulators.ur5.things import Bowl, Microwave, bowl_mesh_xml, bowl_xml, microwave_xml

TIMESTEP = 0.0025  # s
STEPS_A_CONTROL = 20  # 20 Hz


@dataclass(frozen=True)
class Variation:
    """One kitchen: what stands in it and from where it is looked at.

    Attributes:
        camera: (x, y, z) of the camera "front" and the point it looks at (m).
        wood: colour of the table.
    """

    bowl: Bowl = field(default_factory=Bowl)
    oven: Microwave = field(default_factory=Microwave)
    camera: tuple[tuple[float, float, float], tuple[float, float, float]] = ((0.12, -1.0, 0.78), (0.55, 0.03, 0.12))
    wood: str = "0.72 0.56 0.40 1"


VARIATIONS = {
    1: Variation(),
    2: Variation(
        bowl=Bowl(rim=0.083, foot=0.038, height=0.048, rgba="0.30 0.55 0.75 1"),
        oven=Microwave(width=0.5, depth=0.37, height=0.3, rgba="0.22 0.23 0.25 1"),
        camera=((-0.06, -0.92, 0.88), (0.57, 0.05, 0.12)),
        wood="0.55 0.42 0.32 1",
    ),
}


def scene_xml(variation: Variation) -> str:
    """MJCF; angles in radians, the table's surface at z = 0, the arm's base at the origin, the microwave along +x."""
    # MuJoCo counts in degrees unless it is told: hinges of 2 degrees close by themselves
    return f"""
<mujoco model="ur5e_microwave">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <headlight ambient="0.42 0.42 0.43" diffuse="0.3 0.3 0.3" specular="0.1 0.1 0.1"/>
    <map znear="0.02" zfar="20" shadowclip="1.5"/>
    <quality shadowsize="4096"/>
    <global offwidth="1024" offheight="1024"/>
  </visual>
  {_DEFAULTS}
  <asset>
    {_MATERIALS}
    <material name="wood" texture="wood" texrepeat="1 1" rgba="{variation.wood}" specular="0.2" shininess="0.3"/>
    <material name="case" rgba="{variation.oven.rgba}" specular="0.5" shininess="0.6"/>
    <material name="glaze" rgba="{variation.bowl.rgba}" specular="0.8" shininess="0.9"/>
    {bowl_mesh_xml(variation.bowl)}
  </asset>
  <worldbody>
    {_ROOM}
    {_camera(variation)}
    {arm_xml()}
    {microwave_xml(variation.oven)}
    {bowl_xml(variation.bowl)}
  </worldbody>
  <contact><exclude body1="microwave" body2="door"/></contact>
  {coupling_xml()}
  <actuator>{actuators_xml()}</actuator>
</mujoco>"""


def _camera(variation: Variation) -> str:
    place, target = variation.camera
    return f"""
<body name="looked_at" pos="{" ".join(map(str, target))}"/>
<camera name="front" mode="targetbody" target="looked_at" pos="{" ".join(map(str, place))}" fovy="50"/>
<camera name="left" mode="targetbody" target="looked_at" pos="0.05 1.1 0.85" fovy="50"/>
<camera name="film" mode="targetbody" target="looked_at" pos="-0.25 -1.2 0.9" fovy="44"/>"""


# what collides with what: the arm not with itself, all else with everything
_DEFAULTS = """
<default>
  <geom solref="0.005 1" solimp="0.95 0.99 0.001"/>
  <default class="arm">
    <joint axis="0 0 1" armature="0.1" damping="1"/>
    <geom contype="1" conaffinity="2" friction="0.6"/>
  </default>
  <default class="finger">
    <joint type="slide" armature="0.02" damping="5"/>
  </default>
  <default class="pad">
    <geom contype="1" conaffinity="2" friction="1.6 0.02 0.001" condim="4" priority="1"/>
  </default>
  <default class="thing">
    <geom contype="2" conaffinity="3" friction="0.6"/>
  </default>
  <default class="bowl">
    <geom contype="2" conaffinity="3" friction="0.7 0.01 0.0005" condim="4" group="3" mass="0"/>
  </default>
  <default class="look">
    <geom contype="0" conaffinity="0" mass="0"/>
  </default>
</default>"""

_MATERIALS = """
<texture name="sky" type="skybox" builtin="gradient" rgb1="0.85 0.88 0.92" rgb2="0.6 0.66 0.74" width="64" height="64"/>
<texture name="wood" type="2d" builtin="gradient" rgb1="1 1 1" rgb2="0.93 0.9 0.88" width="128" height="128"/>
<texture name="tiles" type="2d" builtin="checker" rgb1="0.80 0.80 0.79" rgb2="0.76 0.76 0.75" width="256" height="256"
  mark="edge" markrgb="0.66 0.66 0.65"/>
<material name="tiles" texture="tiles" texrepeat="6 6" texuniform="false" specular="0.1"/>
<material name="wall" rgba="0.96 0.95 0.92 1" specular="0"/>
<material name="metal" rgba="0.80 0.82 0.84 1" specular="0.6" shininess="0.5"/>
<material name="steel" rgba="0.62 0.64 0.67 1" specular="0.8" shininess="0.7"/>
<material name="dark" rgba="0.16 0.17 0.19 1" specular="0.3" shininess="0.3"/>
<material name="blue" rgba="0.36 0.60 0.78 1" specular="0.4" shininess="0.4"/>
<material name="rubber" rgba="0.08 0.08 0.09 1" specular="0.05"/>
<material name="lining" rgba="0.95 0.94 0.90 1" specular="0.2"/>
<material name="panel" rgba="0.12 0.13 0.15 1" specular="0.4"/>
<material name="screen" rgba="0.07 0.09 0.12 1" specular="0.9" shininess="0.9"/>
<material name="glass" rgba="0.75 0.82 0.84 1" specular="0.9" shininess="0.9"/>"""

_ROOM = """
<light pos="-0.4 -0.9 2.2" dir="0.35 0.45 -1" diffuse="0.55 0.54 0.5" specular="0.3 0.3 0.3" castshadow="true"/>
<light pos="0.9 1.2 2.0" dir="-0.3 -0.6 -1" diffuse="0.22 0.23 0.26" specular="0.1 0.1 0.1" castshadow="false"/>
<geom class="look" name="floor" type="plane" size="3 3 0.1" pos="0 0 -0.75" material="tiles"/>
<geom class="look" name="back" type="box" size="0.02 3 1.6" pos="1.7 0 0.85" material="wall"/>
<geom class="look" name="side" type="box" size="3 0.02 1.6" pos="0 1.6 0.85" material="wall"/>
<geom class="look" name="right" type="box" size="3 0.02 1.6" pos="0 -1.9 0.85" material="wall"/>
<geom class="look" name="behind" type="box" size="0.02 3 1.6" pos="-1.6 0 0.85" material="wall"/>
<geom class="thing" name="table" type="box" size="0.74 0.75 0.02" pos="0.52 0 -0.02" material="wood"/>
<geom class="look" type="box" size="0.03 0.03 0.355" pos="-0.15 -0.69 -0.395" material="dark"/>
<geom class="look" type="box" size="0.03 0.03 0.355" pos="-0.15 0.69 -0.395" material="dark"/>
<geom class="look" type="box" size="0.03 0.03 0.355" pos="1.18 -0.69 -0.395" material="dark"/>
<geom class="look" type="box" size="0.03 0.03 0.355" pos="1.18 0.69 -0.395" material="dark"/>"""
