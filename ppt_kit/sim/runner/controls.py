"""Floor and ceiling: who acts in the place of a policy, or what is taken from one, so that its rate says something."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppt_kit.data.formats import find_domain, open_store
from ppt_kit.errors import UserError
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.sim.env import SimEnv, close_env, make_env
from ppt_kit.sim.recorded import recorded
from ppt_kit.sim.rollout import hold_action

# who acts, whatever the policy is; the same for each checkpoint
ACTING = {
    "hold": "nothing is done: the robot is held still",
    "replay": "a demonstration's actions, whatever is seen: episode seed % demonstrations of the training set",
    "expert": "the simulator's scripted expert, which is told the goal",
}
# what is taken from the policy: beside these no_<modality> for each that it sees
TAKING = {
    "blind": "all that shows the scene is zeroed, state and sentence are not; of a policy that sees no more, the state",
    "sentence": "the policy is told another task: another domain's sentence, or its own with the words shuffled",
}
SCENE = ("pointcloud", "rgb", "depth")


@dataclass(frozen=True)
class Control:
    """Who acts in the place of the policy.

    Attributes:
        name: in ACTING.
        demonstrations: of replay, the (T, Da) actions of each.
    """

    name: str
    demonstrations: tuple[np.ndarray, ...] = ()

    def __str__(self) -> str:
        """Its name, and six hex digits of what is replayed."""
        if not self.demonstrations:
            return self.name
        digest = hashlib.sha256(b"".join(each.tobytes() for each in self.demonstrations))
        return f"{self.name} {digest.hexdigest()[:6]}"


class Driver:
    """Acts in N environments as a control does: with their environments in the place of frames, as an Actor acts."""

    def __init__(self, control: Control, *, num_envs: int, action_dim: int):
        self.control, self.action_dim = control, action_dim
        self._seeds, self._steps = [0] * num_envs, [0] * num_envs

    def reset(self, place: int, *, seed: Sequence[int]) -> None:
        """An episode begins."""
        self._seeds[place], self._steps[place] = seed[0], 0

    def act(self, envs: Sequence[SimEnv | None]) -> np.ndarray:
        """(N, Da) the actions of this control step; NaN where no episode is going on."""
        actions = np.full((len(envs), self.action_dim), np.nan)
        for place, env in enumerate(envs):
            if env is not None:
                actions[place] = self._action(env, place)
                self._steps[place] += 1
        return actions

    def _action(self, env: SimEnv, place: int) -> np.ndarray:
        if self.control.name == "expert":
            return np.asarray(env.expert_action(), np.float64)
        if self.control.name == "replay":
            played = self.control.demonstrations[self._seeds[place] % len(self.control.demonstrations)]
            if self._steps[place] < len(played):
                return played[self._steps[place]].astype(np.float64)
        return hold_action(env, self.action_dim)


def control_names(policy: PPTPolicy) -> list[str]:
    """The controls that this policy can be given, floor first."""
    each = [f"no_{name}" for name in policy.modalities] if len(policy.modalities) > 1 else []
    single = [name for name in each if name != _blinded(policy)]
    told = ["sentence"] if "language" in policy.modalities else []
    return ["hold", "blind", *single, *told, "replay", "expert"]


def _blinded(policy: PPTPolicy) -> str | None:
    """The name that blind has too, of a policy that sees the scene in one way alone."""
    scene = [name for name in policy.modalities if name in SCENE]
    return f"no_{scene[0]}" if len(scene) == 1 else None


def zeroed_by(name: str, policy: PPTPolicy) -> tuple[str, ...]:
    """The modalities that a control zeroes; () of those that zero none."""
    if name == "blind":
        return tuple(each for each in policy.modalities if each in SCENE) or ("state",)
    return (name.removeprefix("no_"),) if name.startswith("no_") else ()


def acting(name: str | None, policy: PPTPolicy, domain: str) -> Control | None:
    """Who acts under a control; None = the policy does.

    Raises:
        UserError: of replay, the demonstrations are not where the policy was trained from.
    """
    if name is None or name not in ACTING:
        return None
    return Control(name, _demonstrations(policy, domain) if name == "replay" else ())


def other_sentence(policy: PPTPolicy, domain: str) -> str:
    """What a policy is told under the control `sentence`: another domain's task, or its own words in another order."""
    own = _description(policy, domain)
    for other in policy.domains:
        if other != domain and (said := _description(policy, other)) != own:
            return said
    words = own.split()
    turned = words[1:] + words[:1]
    # of one word, or the same word again and again, the letters
    return " ".join(turned) if turned != words else own[::-1]


def _description(policy: PPTPolicy, domain: str) -> str:
    env = make_env(recorded(policy, domain).env)
    try:
        return str(getattr(env, "description", recorded(policy, domain).env["task"]))
    finally:
        close_env(env)


def _demonstrations(policy: PPTPolicy, domain: str) -> tuple[np.ndarray, ...]:
    config: dict[str, Any] = policy.card.get("config") or {}
    folder, asked = Path(config.get("dataset_path") or "data"), config.get("dataset") or {}
    form, part = asked.get("format"), asked.get("filter_key")
    try:
        store = open_store(find_domain(folder, domain, format=form), format=form, filter_key=part)
    except UserError as error:
        raise UserError(
            f"controls=replay: the demonstrations of {domain} cannot be read where it was trained from ({error}) "
            "Evaluate from the folder that it was trained in, or leave replay out of controls=[…]."
        ) from None
    columns = policy.card["views"][domain]["action"]
    found = []
    for episode in range(len(store.episode_ends)):
        rows = np.arange(*store.bounds(episode))
        found.append(np.concatenate([store.read(name, rows).reshape(len(rows), -1) for name in columns], 1))
    return tuple(found)


def chosen(controls: str | Sequence[str], policy: PPTPolicy) -> list[str]:
    """The controls that are asked for, those of "all" as many as fit the policy.

    Raises:
        UserError: there is no such control, or this policy has nothing that it could take.
    """
    known = control_names(policy)
    if controls == "all" or list(controls) == ["all"]:
        return known
    names = list(dict.fromkeys("blind" if name == _blinded(policy) else name for name in controls))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]}?" if near else f"It takes all, or some of {', '.join(known)}."
            raise UserError(f"controls={name}: a policy that sees {', '.join(policy.modalities)} has none. {hint}")
    return names
