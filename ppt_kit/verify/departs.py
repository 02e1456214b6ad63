"""Where an episode parts from the one that was evaluated, and where a card parts from the rows beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppt_kit.files import json_row
from ppt_kit.sim.card import REPLAYED
from ppt_kit.sim.results import NOBODY
from ppt_kit.sim.rows import IDENTITY

# hex digits that a trace has of what was seen, and of what was done, in one step
SEEN = DONE = 4
# what rows said before there were traces
BEFORE_TRACES = ("success", "steps", "return", "actions_sha256")


def departs(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[int | None, str]:
    """The first step in which two rows of one episode differ, from 1, and in what; (None, "") of the same.

    A trace has SEEN + DONE digits a step: of everything that was seen until then, and of everything that was done.
    """
    if here["error"] is not None:
        return None, f"it could not be run here: {here['error']}"
    one, other = _steps(there["trace"]), _steps(here["trace"])
    for step, (a, b) in enumerate(zip(one, other), 1):
        if a[:SEEN] != b[:SEEN]:
            begun = "its first observation" if step == 1 else "after the same actions another observation"
            return step, f"{begun}: the simulator or its rendering differs"
        if a != b:
            why = "who acts does otherwise" if here.get("checkpoint") == NOBODY else "the policy's arithmetic differs"
            return step, f"after the same observations another action: {why}"
    if len(one) != len(other) and one and other:
        return min(len(one), len(other)) + 1, f"it ends after {len(other)} steps here, after {len(one)} there"
    names = REPLAYED if there["trace"] is not None else BEFORE_TRACES
    # as the card has them: a number that is none is the same as itself there
    wrong = [name for name in names if json.dumps(there[name]) != json.dumps(here[name])]
    if not wrong:
        return None, ""
    return None, ", ".join(f"{name} {str(there[name])[:40]} there, {str(here[name])[:40]} here" for name in wrong)


def _steps(trace: str | None) -> list[str]:
    width = SEEN + DONE
    return [trace[at : at + width] for at in range(0, len(trace), width)] if trace else []


def other_rows(entry: Mapping[str, Any], card: Path) -> list[str]:
    """Where the rows beside a card say otherwise than it does; nothing where they are not there."""
    try:
        lines = (card.parent / f"{entry['log_name']}.jsonl").read_bytes().splitlines()
    except OSError:
        return []
    rows = [row for row in map(json_row, lines) if row is not None]
    ours = [row for row in rows if all(row.get(name) == entry[name] for name in IDENTITY)]
    by_seed = {row.get("seed"): row for row in ours}
    seeds_of = {row["trace"]: row.get("seed") for row in ours if row.get("trace")}
    told = []
    for episode in entry["episodes"] if ours else []:
        seed, row = episode["seed"], by_seed.get(episode["seed"])
        if row is not None and row.get("trace") == episode["trace"]:
            continue
        other = seeds_of.get(episode["trace"])
        if other is not None:
            told.append(f"seed {seed} of {entry['log_name']}: the rows beside it have its episode as seed {other}")
        elif row is not None and row.get("trace") is not None:
            told.append(f"seed {seed} of {entry['log_name']}: the rows beside it have another episode")
    return told
