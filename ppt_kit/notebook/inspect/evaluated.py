"""The episodes of an evaluation: run again from their seeds as they are looked at, failures first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ppt_kit.data.disk.rows import spread
from ppt_kit.data.view import View
from ppt_kit.errors import UserError
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.notebook.inspect.episodes import LOOKED_AT, described
from ppt_kit.notebook.inspect.packing import Packed, pack
from ppt_kit.notebook.inspect.predicted import Path, errors, fitted, hand_column
from ppt_kit.sim.replay import Replay, replay
from ppt_kit.sim.results import Evaluation
from ppt_kit.sim.rollout import VIDEO_SIZE
from ppt_kit.sim.runner.options import PartOptions

# replays that are kept: going back and forth between two runs neither again
KEPT = 3
ORDER = ("failure", "error", "success")
# options that a row's words give, as numbers and as true or false
COUNTS = ("execute_steps", "delay", "num_steps", "max_steps", "warmup_steps", "batch_envs")
SWITCHES = ("temporal_ensembling", "real_time_chunking", "stop_at_success")
# the camera for people, beside those that the policy sees
WATCHED = "watched"
# beyond the demonstrated range, in half ranges, from which on it is said
FAR_OUTSIDE = 0.25


class EvaluatedEpisodes:
    """Those of one evaluation or several.

    Raises:
        UserError: nothing says how they were run, or there are none.
    """

    def __init__(self, results: Sequence[Evaluation], policy: PPTPolicy | None):
        self._ran = [each for result in results for each in _whose(result, policy)]
        if not self._ran:
            raise UserError("results: hold no episode. Evaluate with episodes=10, say.")
        self._ran.sort(key=lambda ran: ORDER.index(outcome_of(ran[0])))
        self._replays: OrderedDict[int, Replay] = OrderedDict()

    def listing(self) -> dict[str, Any]:
        """See `Episodes`."""
        rows = [row for row, _, _ in self._ran]
        tasks, wins = dict.fromkeys(row["task"] for row in rows), sum(row["success"] is True for row in rows)
        found = [{"label": _label(row, several=len(tasks) > 1), "outcome": outcome_of(row)} for row in rows]
        title = f"{', '.join(tasks)}: {wins} of {len(rows)} succeeded"
        return {"title": title, "episodes": found, "waits": "running it again from its seed …"}

    def episode(self, number: int) -> tuple[dict[str, Any], list[bytes]]:
        """See `Episodes`; beside state and action the reward, and how far the state leaves what was demonstrated."""
        (row, policy, _), kept = self._ran[number], self._kept(number)
        domain, view = self._seen(number)
        obs = _stacked(kept.frames)
        spec = view.spec.only([kind for kind in view.spec.modalities if kind in obs])
        ends = spread(LOOKED_AT, len(kept.actions))
        some = {kind: _rows(value, ends) for kind, value in obs.items() if kind in ("depth", "pointcloud")}
        head, buffers = described(obs.get("state"), kept.actions, spec, policy.horizon, some=some)
        beside = {"reward": np.array(kept.rewards)}
        if "state" in obs:
            beside["state beyond what was demonstrated (half ranges)"] = outside(policy, domain, obs["state"])
        for name, values in beside.items():
            head["groups"].append({"name": name, "names": [name], "height": 70})
            buffers.append(np.ascontiguousarray(values, np.float32).tobytes())
        if kept.pictures:
            watched = {"name": WATCHED, "kind": "rgb", "height": VIDEO_SIZE, "width": VIDEO_SIZE, "title": "for people"}
            head["cameras"] = [watched, *head["cameras"]]
        head["language"] = kept.frames[0].get("language", "")
        head |= {"hand": hand_column(spec), "can_augment": False, "did": True}
        head["facts"] = facts = told(row, kept, [*beside.values()][1:])
        head["marks"] = [{"step": each["step"], "tone": each["tone"]} for each in facts if "step" in each]
        if kept.chunks:
            path = self._path(number)
            said = f"path: fitted to this episode (R² {path.explained:.2f})" if path else "no path of the hand"
            head["policy"] = {"path": path is not None, "said": said, "error": CHANGED}
        return head, buffers

    def page(self, number: int, steps: Sequence[int]) -> Packed:
        """See `Episodes`."""
        kept = self._kept(number)
        obs = _stacked([kept.frames[step] for step in steps])
        if kept.pictures:
            obs["rgb"] = {WATCHED: np.stack([kept.pictures[step] for step in steps]), **obs.get("rgb", {})}
        return pack(obs)

    def chunks(self, number: int, steps: Sequence[int]) -> tuple[dict[str, Any], list[bytes]]:
        """The chunk that was the newest at each step; its error is what the policy then did otherwise."""
        (_, policy, _), kept = self._ran[number], self._kept(number)
        asked = np.array(sorted(kept.chunks))
        starts = asked[np.maximum(np.searchsorted(asked, steps, side="right") - 1, 0)]
        chunks = np.stack([kept.chunks[int(start)] for start in starts]).astype(np.float32)
        acted = starts[:, None] + policy.horizon.acted
        inside = np.clip(acted, 0, len(kept.actions) - 1)
        domain, _ = self._seen(number)
        error = errors(policy, domain, chunks, kept.actions[inside], padded=acted != inside)
        buffers, path = [chunks.tobytes(), error.tobytes()], self._path(number)
        if path is not None:
            hand = np.stack([kept.frames[int(step)]["state"] for step in inside[:, 0]])
            buffers.append(path.of(chunks, hand[:, path.column : path.column + 3]).astype(np.float32).tobytes())
        return {"starts": starts.tolist()}, buffers

    def augmented(self, number: int, step: int, draw: int) -> tuple[dict[str, Any], list[bytes]]:
        """
        Raises:
            UserError: always: what is evaluated is seen as it comes.
        """
        raise UserError("an evaluated episode is not augmented.")

    def _kept(self, number: int) -> Replay:
        if number not in self._replays:
            row, policy, options = self._ran[number]
            one = replace(options, seed=row["seed"], episodes=1, videos=0, out_dir=None)
            self._replays[number] = replay(policy, one, row)
            if len(self._replays) > KEPT:
                self._replays.popitem(last=False)
        self._replays.move_to_end(number)
        return self._replays[number]

    def _seen(self, number: int) -> tuple[str, View]:
        row, policy, _ = self._ran[number]
        return row["domain"], View.from_plain(policy.card["views"][row["domain"]])

    def _path(self, number: int) -> Path | None:
        kept, (_, view) = self._kept(number), self._seen(number)
        column = hand_column(view.spec)
        if column is None or "state" not in kept.frames[0]:
            return None
        hand = np.stack([frame["state"] for frame in kept.frames])[:, column : column + 3]
        return fitted(hand, kept.actions.astype(np.float32), column=column)


CHANGED = "policy: mean distance of its newest chunk from what it then did, normalised"


def outcome_of(row: Mapping[str, Any]) -> str:
    """success, failure or error."""
    return "error" if row["error"] is not None else "success" if row["success"] else "failure"


def outside(policy: PPTPolicy, domain: str, state: np.ndarray) -> np.ndarray:
    """(T,) how far the state's farthest number is beyond the demonstrated range, in halves of that range; 0 inside.

    Of those numbers that the normaliser knows the range of (mode limits, and not constant); nan without one.
    """
    stats = policy.card["normalizer"][domain]["state"]
    known = np.array([mode == "limits" for mode in stats["mode"]])
    known[stats["constant"]] = False
    if not known.any():
        return np.full(len(state), np.nan, np.float32)
    normalised = (state - np.array(stats["offset"])) * np.array(stats["scale"])
    return np.maximum(np.abs(normalised[:, known]) - 1, 0).max(1)


def told(row: Mapping[str, Any], kept: Replay, beyond: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """What came of an episode, and where it went wrong: {"text", "tone", "step" where there is one}."""
    facts: list[dict[str, Any]] = []
    if kept.broken is not None:
        facts.append({"text": kept.broken, "tone": "bad", "step": len(kept.actions) - 1})
    if kept.success_step is not None:
        facts.append({"text": f"success after step {kept.success_step}", "tone": "good", "step": kept.success_step})
    elif kept.broken is None:
        facts.append({"text": f"no success in {len(kept.actions)} steps", "tone": "bad"})
    for name, step in kept.reached.items():
        if step is not None:
            facts.append({"text": f"{name} at {step}", "tone": "good", "step": step})
    missed = next((name for name, step in kept.reached.items() if step is None), None)
    if missed is not None:
        facts.append({"text": f"never {missed}", "tone": "bad"})
    for far in beyond:
        left = np.flatnonzero(far > FAR_OUTSIDE)
        if len(left) and kept.success_step is None:
            step = int(left[0])
            facts.append({"text": f"leaves what was demonstrated at {step}", "tone": "bad", "step": step})
    if kept.differs_at is not None:
        text = f"run again, it differs from the evaluated episode from step {kept.differs_at} on"
        facts.append({"text": text, "tone": "bad"})
    elif row.get("trace"):
        facts.append({"text": "run again to the bit", "tone": "plain"})
    return facts


def _whose(result: Evaluation, policy: PPTPolicy | None) -> list[tuple[dict, PPTPolicy, PartOptions]]:
    """Each row with what ran it: parts hold their rows one after the other."""
    if result.made_by:
        by = [made for made in result.made_by for _ in range(made[1].episodes)]
        return [(row, *made) for row, made in zip(result.rows, by)]
    if policy is None:
        raise UserError(
            "results: they do not say what acted, so that no episode can be run again. "
            "Type ppt.inspect(results, policy=ppt.load_policy(run_dir))."
        )
    return [(row, policy, options_of(row)) for row in result.rows]


def options_of(row: Mapping[str, Any]) -> PartOptions:
    """What a row says of how it was run; the simulator's own options are those of the policy's card.

    Whether that was all shows when it is run again: its trace is compared.
    """
    given: dict[str, Any] = {"task": row["task"], "domain": row["domain"], "zero_keys": tuple(row["zero_keys"])}
    for word in row["options"].split():
        name, _, value = word.partition("=")
        if name in COUNTS:
            given[name] = int(value)
        elif name in SWITCHES:
            given[name] = value != "false"
    control = row.get("control")
    told = control is not None and control.startswith("told ")
    return PartOptions(episodes=1, control=None if told else control, **given)


def _label(row: Mapping[str, Any], *, several: bool) -> str:
    under = f", {row['control']}" if row.get("control") else ""
    return f"{row['task']} {row['seed']}{under}" if several else f"{row['seed']}{under}"


def _stacked(frames: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """obs of T frames, sentences left out."""
    first = frames[0]
    found: dict[str, Any] = {}
    for kind, value in first.items():
        if isinstance(value, Mapping):
            found[kind] = {name: np.stack([frame[kind][name] for frame in frames]) for name in value}
        elif not isinstance(value, str):
            found[kind] = np.stack([frame[kind] for frame in frames])
    return found


def _rows(value: Any, rows: np.ndarray) -> Any:
    return {name: each[rows] for name, each in value.items()} if isinstance(value, Mapping) else value[rows]
