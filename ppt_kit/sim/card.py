"""What an evaluation stands on, so that another machine can replay it: <out_dir>/card.json."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ppt_kit.data.store import plain
from ppt_kit.errors import UserError
from ppt_kit.files import write_text
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.sim.env import code_of
from ppt_kit.sim.results import NOBODY
from ppt_kit.sim.rows import IDENTITY, locked, short_id, weight_bytes
from ppt_kit.sim.runner.options import PartOptions

CARD = "card.json"
# of the file's form
VERSION = 1
PACKAGES = ("ppt_kit", "torch", "numpy", "mujoco", "metaworld", "gymnasium", "gym-pusht", "transformers", "diffusers")
# of an episode's row what a replay must give again, to the bit
REPLAYED = (
    "success", "success_last", "success_step", "steps", "return", "subtasks", "scores", "actions_sha256", "trace",
)  # fmt: skip
# of the options those that say which episodes, where files go, how many processes run and what is done about errors:
# an episode is the same for any
ELSEWHERE = (
    "seed", "episodes", "out_dir", "log_name", "n_procs", "videos", "retries", "episode_timeout_s", "controls",
)  # fmt: skip
AGAIN = "Move it away and evaluate again: episodes whose rows are there are not run anew."


class Card:
    """card.json of a folder: one entry an evaluation, and what their episodes were run with.

    A control has an entry of its own, also where no policy acts: its episodes are replayed as any others are, beside
    whichever checkpoint. The file is whole or absent, and its own hash tells whether it is as it was written.
    """

    def __init__(self, folder: Path):
        self.path, self._begun = folder / CARD, False

    def begin(self) -> None:
        """Writes down, once, what episodes from here on are run with: it is known of an evaluation that is killed.

        Raises:
            UserError: the card that is there is damaged or of another version, or the disk does not take it.
        """
        if not self._begun:
            self._change(lambda card: card["made_with"].update({made_with_id(): made_with()}))
            self._begun = True

    def add(self, entry: Mapping[str, Any]) -> None:
        """One evaluation; of an earlier one of the same those episodes stay that are not in this one.

        Raises:
            UserError: as `begin`.
        """

        def change(card: dict) -> None:
            same = [each for each in card["evaluations"] if _identity(each) == _identity(entry)]
            by_seed = {episode["seed"]: episode for each in (*same, entry) for episode in each["episodes"]}
            episodes = [by_seed[seed] for seed in sorted(by_seed)]
            others = [each for each in card["evaluations"] if each not in same]
            card["evaluations"] = [*others, {**entry, "episodes": episodes}]
            # rows that a comparison wrote are of this machine too
            if any(episode["made_with"] == made_with_id() for episode in episodes):
                card["made_with"][made_with_id()] = made_with()

        self._change(change)

    def _change(self, change: Callable[[dict], Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.parent):
                new = {"card": VERSION, "made_with": {}, "evaluations": []}
                card = read_card(self.path) if self.path.exists() else new
                change(card)
                card["sha256"] = _own_hash(card)
                write_text(self.path, json.dumps(card, indent=1, default=plain) + "\n")
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}. Make room, and type the same again: it goes on.") from None


def read_card(path: Path) -> dict:
    """What a card says.

    Raises:
        UserError: it cannot be read, is no card, of another version, or not as it was written.
    """
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        if path.name != CARD:
            raise UserError(
                f"{path}: is no card of an evaluation. Give a {CARD}, its folder or a run folder."
            ) from None
        raise UserError(f"{path}: damaged ({' '.join(str(error).split())[:80]}). {AGAIN}") from None
    if not isinstance(card, dict) or "card" not in card:
        raise UserError(f"{path}: is no card of an evaluation. {AGAIN}")
    if card["card"] != VERSION:
        raise UserError(
            f"{path}: a card of version {str(card['card'])[:20]}, and this ppt_kit reads version {VERSION}. "
            "Replay it with the ppt_kit that wrote it."
        )
    if card.get("sha256") != _own_hash(card):
        raise UserError(f"{path}: damaged or edited: it does not say what was written. {AGAIN}")
    return card


def check_card(folder: Path) -> None:
    """Whether a folder's card can be added to.

    Raises:
        UserError: see `read_card`.
    """
    if (folder / CARD).exists():
        read_card(folder / CARD)


def entry_of(
    policy: PPTPolicy,
    options: PartOptions,
    rows: Sequence[Mapping[str, Any]],
    *,
    common: Mapping[str, Any],
    env: Mapping[str, Any],
) -> dict[str, Any]:
    """What card.json says of one evaluation.

    Args:
        options: of the policy's own episodes, or of a control.
        rows: of its episodes.
        common: what each of them says.
        env: what `make_env` built.
    """
    file = weights_file(policy.card["path"])
    kept = {each.name: getattr(options, each.name) for each in fields(options) if each.name not in ELSEWHERE}
    return {
        "log_name": options.log_name,
        **{name: common[name] for name in ("checkpoint", *IDENTITY)},
        # of which no policy acts too: it says how the domain is seen, and which simulator it comes from
        "path": str(policy.card["path"]),
        # from the card's folder, so that a run folder can be moved as a whole
        "file": os.path.relpath(file, Path(options.out_dir or ".")),
        "file_sha256": file_hash(file),
        "parts": part_hashes(policy),
        "encoders": dict(policy.card.get("encoders") or {}),
        "data": data_hashes(policy.card["normalizer"]),
        "simulator": {**env, "code": code_of(env)},
        "evaluate": {**kept, "domain": common["domain"]},
        "episodes": [
            {name: row.get(name) for name in ("seed", "error", "made_with", *REPLAYED)} for row in rows
        ],
    }  # fmt: skip


@functools.cache
def made_with() -> dict[str, Any]:
    """Versions, the code of this package, and the kind of machine: what the last bits of an episode may depend on."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "code": _code_hash(),
        "machine": {
            "system": f"{platform.system()} {' '.join(platform.libc_ver())}".strip(), "kind": platform.machine(),
            "processor": _processor(), "instructions": torch.backends.cpu.get_cpu_capability(),
        },
    }  # fmt: skip


def made_with_id() -> str:
    """Eight hex digits of `made_with`, which each row carries."""
    return short_id(made_with())


def part_hashes(policy: PPTPolicy) -> dict[str, str]:
    """Part of the policy, as heads.door-open -> sixteen hex digits of its weights."""
    digests: dict[str, Any] = {}
    for name, value in sorted(policy.state_dict().items()):
        digest = digests.setdefault(".".join(name.split(".")[:2]), hashlib.sha256())
        digest.update(weight_bytes(name, value))
    return {name: digest.hexdigest()[:16] for name, digest in digests.items()}


def data_hashes(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Domain -> hash of every state and action that was trained on, and which they were: the normaliser's own."""
    return {name: dict(domain.get("fingerprint") or {}) for name, domain in stats.items()}


def weights_file(checkpoint: str | Path) -> Path:
    """The file that a checkpoint is read from: a run folder's model.pth, or the file itself."""
    path = Path(checkpoint)
    return path / "model.pth" if path.is_dir() else path


def file_hash(path: Path) -> str | None:
    """SHA-256 of a file's bytes, as `sha256sum` prints it; None where there is no such file."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In words, each value that is not the same in both."""
    return [
        f"{name} {there.get(name)} there, {here.get(name)} here"
        for name in dict.fromkeys((*there, *here))
        if there.get(name) != here.get(name)
    ]


def _identity(entry: Mapping[str, Any]) -> list[Any]:
    # what no policy does is the same for each checkpoint
    whose = entry["file"] if entry["weights"] != NOBODY else NOBODY
    return [whose, *(entry.get(name) for name in ("log_name", *IDENTITY))]


def _own_hash(card: Mapping[str, Any]) -> str:
    said = {name: value for name, value in card.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=plain).encode()).hexdigest()


def _code_hash() -> str:
    """Sixteen hex digits of this package's files: its version stays the same while it is worked on."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Its name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
