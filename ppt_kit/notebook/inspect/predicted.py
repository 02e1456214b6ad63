"""What a policy predicts along a demonstration: its chunks, how far they are off, and where they would lead."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from ppt_kit.data.dataset import MultiTrajDataset
from ppt_kit.data.domain import Domain
from ppt_kit.data.view import View
from ppt_kit.errors import UserError
from ppt_kit.models.affine import Affine
from ppt_kit.models.domains import module_key
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.randomness import sample_seeds
from ppt_kit.spec import Spec

HAND = re.compile(r"(eef|ee|tcp|hand|gripper|end_effector|endeffector)_?(pos|position|xyz|pose)$")
# of the hand's motion, explained by the actions: with less a path of chunks would be an invention
EXPLAINED = 0.5


@dataclass(frozen=True)
class Path:
    """Where actions lead the hand: fitted to one episode by least squares.

    Attributes:
        column: of the state, where the hand's x begins.
        weights: (Da + 1, 3) action and 1 -> the hand's step, or its next position.
        moves: whether it is its step.
        explained: share of the hand's motion (R²).
    """

    column: int
    weights: np.ndarray
    moves: bool
    explained: float

    def of(self, chunks: np.ndarray, start: np.ndarray) -> np.ndarray:
        """(n, Ta, 3) m where chunks (n, Ta, Da) lead from positions (n, 3)."""
        ones = np.ones((*chunks.shape[:-1], 1), np.float32)
        led = np.concatenate([chunks, ones], -1) @ self.weights
        return start[:, None] + np.cumsum(led, 1) if self.moves else led


class Predictor:
    """A policy asked at the steps of a dataset's episodes, seeing what it was trained to see.

    Args:
        policy: as `load_policy` gives it.
    Raises:
        UserError: it knows none of the dataset's domains, or the dataset lacks what it sees.
    """

    def __init__(self, policy: PPTPolicy, dataset: MultiTrajDataset):
        self.policy, self.dataset, self.horizon = policy, dataset, policy.horizon
        self._whose = {name: _whose(policy, dataset, name) for name in dataset.domains}
        self._seen = {name: _seen_by(policy, self._whose[name], dataset.domains[name]) for name in dataset.domains}
        self._paths: dict[int, Path | None] = {}

    def told(self, number: int) -> dict[str, Any]:
        """What the browser has to know before the chunks: how many numbers, and where a path comes from."""
        path = self._path(number)
        if path is None:
            why = "no path: actions do not explain how a hand in the state moves"
            return {"path": False, "said": why}
        kind = "steps" if path.moves else "positions"
        return {"path": True, "said": f"path: actions as {kind} of the hand (R² {path.explained:.2f})"}

    def chunks(self, number: int, steps: Sequence[int]) -> tuple[dict[str, Any], list[bytes]]:
        """At each of `steps`: the chunk, its mean error and the path it leads along.

        Returns:
            {}, and float32 bytes of (n, Ta, Da) in the dataset's units, of (n,) the mean distance from what was
            demonstrated, padding left out and normalised as training normalises, and of (n, Ta, 3) m where there is a
            path.
        """
        name, episode = self.dataset.find_episode(number)
        domain, path = self._seen[name], self._path(number)
        first, end = domain.store.bounds(episode)
        at = first + np.asarray(steps, np.int64)
        seen = domain.observations(np.clip(at[:, None] + self.horizon.seen, first, end - 1))
        chunks = ask(self.policy, self._whose[name], seen, steps)
        acted = at[:, None] + self.horizon.acted
        inside = np.clip(acted, first, end - 1)
        target = domain.values("action", inside.ravel()).reshape(*inside.shape, -1)
        error = errors(self.policy, self._whose[name], chunks, target, padded=(acted != inside))
        buffers = [chunks.tobytes(), error.tobytes()]
        if path is not None:
            from_ = np.clip(at + self.horizon.acted[0], first, end - 1)
            start = self._hand(name, from_, path.column)
            buffers.append(path.of(chunks, start).astype(np.float32).tobytes())
        return {}, buffers

    def _path(self, number: int) -> Path | None:
        if number not in self._paths:
            name, episode = self.dataset.find_episode(number)
            rows = np.arange(*self.dataset.domains[name].store.bounds(episode))
            column = hand_column(self.dataset.specs[name])
            if column is None:
                self._paths[number] = None
            else:
                actions = self._seen[name].values("action", rows)
                self._paths[number] = fitted(self._hand(name, rows, column), actions, column=column)
        return self._paths[number]

    def _hand(self, name: str, rows: np.ndarray, column: int) -> np.ndarray:
        return self.dataset.domains[name].values("state", rows)[:, column : column + 3]


def ask(policy: PPTPolicy, domain: str, obs: dict[str, Any], steps: Sequence[int]) -> np.ndarray:
    """(n, Ta, Da) float32 what a policy does in n windows of obs; the noise is that of these steps of an episode."""
    device = next(policy.parameters()).device
    seeds = np.array([sample_seeds(0, step, np.zeros(1, np.int64))[0] for step in steps])
    given = {kind: value if kind == "language" else _on(value, device) for kind, value in obs.items()}
    seen = {kind: given[kind] for kind in policy.modalities if kind in given}
    return policy.act(seen, domain, seeds=torch.from_numpy(seeds).to(device)).cpu().numpy()


def errors(policy: PPTPolicy, domain: str, chunks: np.ndarray, target: np.ndarray, *, padded: np.ndarray) -> np.ndarray:
    """(n,) float32 mean |chunk - target| of normalised actions, those of `padded` (n, Ta) left out."""
    norm = cast(Affine, policy.action_norm[module_key(domain)])
    scale = norm.scale.cpu().numpy()[: chunks.shape[-1]]
    off = np.abs((chunks - target) * scale).mean(-1)
    counted = ~padded
    return ((off * counted).sum(1) / np.maximum(counted.sum(1), 1)).astype(np.float32)


def hand_column(spec: Spec) -> int | None:
    """Where in the state the position of the hand begins; None where no key has the name of one."""
    for key, (begin, end) in spec.layout("state").items():
        if end - begin >= 3 and HAND.search(key.lower()):
            return begin
    return None


def fitted(hand: np.ndarray, actions: np.ndarray, *, column: int) -> Path | None:
    """How actions (T, Da) move a hand at (T, 3); None where they explain too little of it."""
    if len(hand) < actions.shape[1] + 3:
        return None
    known = np.concatenate([actions[:-1], np.ones((len(hand) - 1, 1), np.float32)], 1)
    steps, found = np.diff(hand, axis=0), []
    for moves, wanted in ((True, steps), (False, hand[1:])):
        weights = np.linalg.lstsq(known, wanted, rcond=None)[0].astype(np.float32)
        # both are judged by the steps: a position that is hardly left explains itself
        left = ((wanted - known @ weights) ** 2).sum()
        found.append(Path(column, weights, moves, float(1 - left / max(((steps - steps.mean(0)) ** 2).sum(), 1e-12))))
    best = max(found, key=lambda path: path.explained)
    return best if best.explained >= EXPLAINED else None


def _whose(policy: PPTPolicy, dataset: MultiTrajDataset, name: str) -> str:
    """The policy's domain for one of the dataset."""
    if name in policy.domains:
        return name
    if len(policy.domains) == len(dataset.domains) == 1:
        return policy.domains[0]
    raise UserError(
        f"policy: it was trained on {', '.join(policy.domains)}, and the dataset is {', '.join(dataset.domains)}. "
        "Open the dataset under the policy's name: ppt.open_dataset({'" + policy.domains[0] + "': path})."
    )


def _seen_by(policy: PPTPolicy, whose: str, domain: Domain) -> Domain:
    views = policy.card.get("views")
    view = View.from_plain(views[whose]) if views else domain.view
    sees = [column for columns in view.columns().values() for column in columns]
    lacking = [column for column in sees if column not in domain.store.columns]
    if lacking:
        raise UserError(
            f"policy: it sees {', '.join(lacking)}, which {domain.store.path} as it was opened has not. "
            "Open it as the policy's training did: ppt.load_dataset(cfg) with the run's configuration."
        )
    if view.action != domain.view.action:
        raise UserError(
            f"policy: its actions are {', '.join(view.action)}, the dataset's are {', '.join(domain.view.action)}. "
            "Open it as the policy's training did: ppt.load_dataset(cfg) with the run's configuration."
        )
    return Domain(domain.name, domain.store, view)


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _on(each, device) for name, each in value.items()}
    return torch.from_numpy(np.array(value)).to(device)
