"""All benches, one after the other, and one report of them; a part that is done is not measured again."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from benches.machine import ROOT, Load, anonymous, commit, machine, versions
from benches.parts import PARTS, SIZES
from benches.report import write_report
from ppt_kit.errors import UserError
from ppt_kit.files import check_place, json_row, write_text
from ppt_kit.keys import key
from ppt_kit.signals import end_with_parent, stops_raise

# what a folder is of, and what a part has come to
ABOUT, RESULT, OUTPUT, LOG = "about.json", "result.json", "output.txt", "log.txt"


@dataclass
class AllBench:
    """Every figure of README.md and RESULTS.md, in one report; what was killed goes on, what failed is tried again."""

    size: str = key("small", "tiny = does it run; small = minutes; full = the published figures, days", choices=SIZES)
    parts: list[str] = key([], "some of them, by name; [] = all that the size has")
    output_dir: str = key("outputs/bench", "folder of the reports: <output_dir>/<date>/report.md")


def everything(cfg: DictConfig) -> int:
    """Measures what is not measured yet; 1 where a part failed."""
    names = _names(list(cfg.parts), cfg.size)
    check_place(Path(cfg.output_dir), key="output_dir")
    folder = _folder(Path(cfg.output_dir), {"size": cfg.size, "parts": names})
    with stops_raise():
        for name in names:
            result = _done(folder / name)
            if result is None or result["code"] != 0:
                result = _measure(folder, name, cfg.size)
            else:
                print(f"{name}: measured already", flush=True)
            write_report(folder, _results(folder, names))
    failed = [result["part"] for result in _results(folder, names) if result["code"] != 0]
    print(f"{folder / 'report.md'}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return int(bool(failed))


def _names(asked: list[str], size: str) -> list[str]:
    known = [name for name, part in PARTS.items() if size in part.commands]
    for name in asked:
        if name not in known:
            raise UserError(f"parts={name}: size={size} has {', '.join(known)}.")
    return [name for name in known if name in asked or not asked]


def _folder(output_dir: Path, wanted: dict[str, Any]) -> Path:
    """The newest of the same parts that is not finished; else a new one, of today."""
    there = sorted((path.parent for path in output_dir.glob(f"*/{ABOUT}")), key=lambda path: path.stat().st_mtime)
    for folder in reversed(there):
        told = json_row((folder / ABOUT).read_text(encoding="utf-8")) or {}
        same = all(told.get(name) == value for name, value in wanted.items())
        if same and any((_done(folder / name) or {"code": 1})["code"] != 0 for name in wanted["parts"]):
            print(f"{folder}: going on with what is not measured there yet", flush=True)
            return folder
    today = output_dir / f"{datetime.now(UTC):%Y-%m-%d}"
    numbered = (today.with_name(f"{today.name}-{number}") for number in range(2, 10_000))
    folder = next(path for path in (today, *numbered) if not path.exists())
    folder.mkdir(parents=True)
    write_text(folder / ABOUT, json.dumps(wanted | {"machine": machine(), "versions": versions()}, indent=1))
    return folder


def _done(folder: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError):
        return json_row((folder / RESULT).read_text(encoding="utf-8"))
    return None


def _results(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    """Of those that have ended, with what they printed."""
    ended = [result for name in names if (result := _done(folder / name)) is not None]
    return [result | {"output": (folder / result["part"] / OUTPUT).read_text(encoding="utf-8")} for result in ended]


def _measure(folder: Path, name: str, size: str) -> dict[str, Any]:
    """Runs the commands of a part up to the first that fails."""
    here = folder / name
    here.mkdir(exist_ok=True)
    commands = [command.format(here=here, data=here / "data") for command in PARTS[name].commands[size]]
    began, began_at, revision, code = time.perf_counter(), f"{datetime.now(UTC):%Y-%m-%d %H:%M}", commit(), 0
    with Load() as load, open(here / OUTPUT, "wb") as output, open(here / LOG, "wb") as log:
        for command in commands:
            print(f"{name}: python {command}", flush=True)
            code = _ran(command, output=output, log=log)
            if code:
                break
    for path in (here / OUTPUT, here / LOG):
        write_text(path, anonymous(path.read_text(encoding="utf-8", errors="replace")))
    said = [line.strip() for line in (here / LOG).read_text(encoding="utf-8").splitlines() if line.strip()]
    result = {
        "part": name, "about": PARTS[name].about, "commands": [f"python {command}" for command in commands],
        "code": code, "error": said[-1] if code and said else "", "began": began_at,
        "seconds": round(time.perf_counter() - began, 1), "commit": revision, **load.told(),
    }  # fmt: skip
    write_text(here / RESULT, json.dumps(result))
    print((here / OUTPUT).read_text(encoding="utf-8").rstrip(), flush=True)
    ended = f"failed with exit code {code}: {result['error']} ({here / LOG})" if code else "done"
    print(f"{name}: {ended}, {result['seconds']:.0f} s\n", flush=True)
    return result


def _ran(command: str, *, output: Any, log: Any) -> int:
    """Its exit code. Files of the repository are found from any folder."""
    first, *words = shlex.split(command)
    words = [str(ROOT / word) if (ROOT / word).is_file() and "/" in word else word for word in (first, *words)]
    process = subprocess.Popen(
        [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=log, preexec_fn=end_with_parent,
        env={**os.environ, "WANDB_MODE": os.environ.get("WANDB_MODE", "disabled")},
    )  # fmt: skip
    try:
        return process.wait()
    except BaseException:
        # it keeps what is whole, and is typed again where this is
        process.terminate()
        process.wait()
        raise
