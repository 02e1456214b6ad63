"""What the evaluations of a card stand on: weights and data, each opened once."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppt_kit.checkpoint import load_policy
from ppt_kit.config import from_mapping, typed
from ppt_kit.data.dataset import load_dataset
from ppt_kit.data.normalizer import fit_normalizer
from ppt_kit.errors import UserError
from ppt_kit.models.policy import PPTPolicy
from ppt_kit.sim.card import data_hashes, file_hash, part_hashes, weights_file
from ppt_kit.sim.results import NOBODY


class Opened:
    """What the evaluations of a card stand on, each file and dataset opened once.

    Args:
        card: its path.
        checkpoint, dataset_path: see `verify_card`.
    """

    def __init__(self, card: Path, *, checkpoint: str | Path | None, dataset_path: str | Path | None):
        self.card, self.checkpoint, self.dataset_path = card, checkpoint, dataset_path
        # of the two sides of a comparison, averaged and raw
        self._load = functools.lru_cache(maxsize=4)(self._load_from)
        self._hash = functools.cache(file_hash)
        self._data: dict[str, dict | UserError] = {}

    def sorted(self, entries: Sequence[dict]) -> tuple[list[tuple[dict, Path]], list[UserError]]:
        """(evaluation, file of its weights) of those whose weights are here, and why the others cannot be replayed."""
        if self.checkpoint is not None:
            given = weights_file(self.checkpoint)
            of_it = [each for each in entries if each["weights"] == NOBODY or each["file_sha256"] == self._hash(given)]
            entries = of_it if any(each["weights"] != NOBODY for each in of_it) else entries
        there, gone = [], dict[str, UserError]()
        for entry in entries:
            try:
                there.append((entry, self._file_of(entry)))
            except UserError as error:
                gone[str(error)] = error
        return there, list(gone.values())

    def policy_of(self, entry: Mapping[str, Any], file: Path) -> tuple[PPTPolicy, list[str]]:
        """The policy that acted, or the nearest to it, and in what it differs."""
        if entry["weights"] == NOBODY:
            return self._load(file, True)[0], []
        for use_ema in (True, False):
            policy, parts = self._load(file, use_ema)
            # the card does not say whether raw or averaged weights acted: it says which
            if parts == entry["parts"]:
                return policy, []
        averaged, parts = self._load(file, True)
        other = [name for name, value in parts.items() if entry["parts"].get(name) != value]
        gone = [name for name in entry["parts"] if name not in parts]
        changed = "changed since" if self._hash(file) != entry["file_sha256"] else "the file that was evaluated"
        return averaged, [f"weights of {file} ({changed}): other in {', '.join(other + gone)}"]

    def data_of(self, policy: PPTPolicy) -> dict[str, Any]:
        """`data_hashes` of what lies now where the policy was trained from.

        Raises:
            UserError: it cannot be read.
        """
        key = json.dumps([policy.card["config"], policy.modalities], sort_keys=True, default=str)
        if key not in self._data:
            cfg = typed(from_mapping(policy.card["config"]))
            try:
                dataset = load_dataset(cfg, modalities=policy.modalities)
                self._data[key] = data_hashes(fit_normalizer(dataset, cfg.normalizer))
            except UserError as error:
                self._data[key] = error
        now = self._data[key]
        if isinstance(now, UserError):
            raise now
        return now

    def _load_from(self, file: Path, use_ema: bool) -> tuple[PPTPolicy, dict[str, str]]:
        policy = load_policy(file, use_ema=use_ema)
        if self.dataset_path is not None:
            policy.card["config"] = {**policy.card["config"], "dataset_path": str(self.dataset_path)}
        return policy, part_hashes(policy)

    def _file_of(self, entry: Mapping[str, Any]) -> Path:
        if self.checkpoint is not None:
            file = weights_file(self.checkpoint)
        else:
            file = Path(os.path.normpath(self.card.parent / entry["file"]))
            # the card may have been copied alone
            if not file.is_file() and weights_file(entry["path"]).is_file():
                file = weights_file(entry["path"])
        if not file.is_file():
            raise UserError(
                f"{file}: is gone, and {entry['log_name']} in {self.card} is of it (SHA-256 {entry['file_sha256']}). "
                "Type checkpoint=<where it is>, or eval_log_name=<another evaluation of the card>."
            )
        return file
