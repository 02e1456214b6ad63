"""What an old script's name stands for now: the words of its command, as the words of ours."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ppt_kit.errors import UserError
from ppt_kit.keys import leaves_of
from ppt_kit.migration.ancestor import MOVED, TELLING
from ppt_kit.migration.reasons import known_reason, reason_for
from ppt_kit.programs import to_type_anywhere
from ppt_kit.schema import Config, EvaluateConfig
from ppt_kit.words import own_words, parse_words

# of ppt_learning, where its configurations lie
CONFIG_FOLDERS = ("configs", "ppt_learning/experiments/configs")
FILE_WORDS = ("config_name", "config_path")
# of their `defaults`, each a folder of files
GROUPS = ("network", "env", "stem", "head", "datasetsize")


@dataclass(frozen=True)
class Old:
    """Attributes:
    command: ours, a module of commands/.
    config: the configuration that it read where none was named; "" = it reads none now.
    words: what its name said.
    """

    command: str
    config: str = ""
    words: tuple[tuple[str, str], ...] = ()


OLD = {
    "run.py": Old("train", "config", (("train_mode", "single"),)),
    "run_ddp.py": Old("train", "config_ddp_pcd", (("train_mode", "distributed"),)),
    "run_train.py": Old("train", "config_unified"),
    "run_eval_sim.py": Old("eval_sim"),
}


def hand_over(name: str, words: Sequence[str], *, project: str) -> None:
    """Becomes the command that does today what `name` did; ends with exit code 2 where its words are wrong.

    Args:
        name: of OLD.
        words: behind it.
        project: folder that `name` lies in.
    """
    command = OLD[name].command
    try:
        todays = todays_words(name, words, project=Path(project))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    # of several ranks one tells it
    if os.environ.get("RANK", "0") == "0":
        said = f"{to_type_anywhere(command)} {shlex.join(todays)}"
        print(f"{name} is deprecated. This is now: {said}", file=sys.stderr, flush=True)
    # -P: a file of theirs that is called as one of Python's own stays out of the way
    os.execv(sys.executable, [sys.executable, "-P", "-m", f"ppt_kit.commands.{command}", *todays])


def todays_words(name: str, words: Sequence[str], *, project: Path) -> list[str]:
    """The words of our command for those of an old one.

    Raises:
        UserError: a word that neither has.
    """
    old, given = OLD[name], own_words(words)
    if {"--help", "-h"} & set(given):
        return ["--help"]
    model = ("model",) if name == "run_ddp.py" else ()
    schema = Config if old.config else EvaluateConfig
    pairs = dict(parse_words(given, schema=schema, beside=(*FILE_WORDS, *model)))
    pairs = _by_todays_names(name, pairs, moved=MOVED if old.config else {}, todays=leaves_of(schema))
    if not old.config:
        return _evaluating(name, pairs)
    config = _named(pairs, model, default=old.config)
    folder = _folder(pairs.pop("config_path", None), config, project=project)
    for key, value in old.words:
        pairs.setdefault(key, value)
    if name == "run_ddp.py" and "world_size" not in pairs and "RANK" not in os.environ:
        pairs |= _all_devices()
    files = [f"--config-name={config}", *([f"--config-path={folder}"] if folder is not None else [])]
    return [*files, *(f"{key}={value}" for key, value in pairs.items())]


def _by_todays_names(
    name: str, pairs: dict[str, str], *, moved: Mapping[str, str], todays: Container[str]
) -> dict[str, str]:
    """The words with today's keys.

    Args:
        moved: key of ppt_learning -> today's.
        todays: keys that the command has.
    Raises:
        UserError: a key of ppt_learning's that has none.
    """
    found: dict[str, str] = {}
    for key, text in pairs.items():
        if key in GROUPS and "{" not in text:
            raise UserError(
                f"{name} {key}={text}: chooses the file {key}/{text}.yaml, and here a configuration chooses its own. "
                f"Copy yours to another name, with - {key}: {text} in its defaults, and type --config-name=<its name>."
            )
        if key == "model" and name != "run_ddp.py":
            raise UserError(f"{name} --model={text}: is a word of run_ddp.py. Type --config-name=config_ddp_{text}.")
        if key.split(".")[0] in TELLING and key not in moved:
            raise UserError(f"{name} {key}={text}: {reason_for(key, text)}.")
        if key not in moved and key not in todays and (reason := known_reason(key, text)):
            raise UserError(f"{name} {key}={text}: {reason}.")
        today = moved.get(key, key)
        if found.setdefault(today, text) != text:
            raise UserError(f"{name}: {key}={text} and {today}={found[today]} are two words for one key. Give one.")
    return found


def _evaluating(name: str, pairs: dict[str, str]) -> list[str]:
    for key in FILE_WORDS:
        if key in pairs:
            folder = pairs.get("train.pretrained_dir", "<run folder>")
            raise UserError(
                f"{name} --{key.replace('_', '-')}={pairs[key]}: evaluation has no configuration file now, the run "
                f"folder has it all. Type python {name} train.pretrained_dir={folder}, and what is to differ as words."
            )
    return [f"{key}={value}" for key, value in pairs.items()]


def _named(pairs: dict[str, str], model: tuple[str, ...], *, default: str) -> str:
    """The configuration's name; of run_ddp.py's --model=depth, config_ddp_depth."""
    if model and "model" in pairs:
        kind = pairs.pop("model")
        if "config_name" in pairs:
            raise UserError(f"--model={kind} and --config-name={pairs['config_name']} name two files. Give one.")
        return f"config_ddp_{kind}"
    return pairs.pop("config_name", default).removesuffix(".yaml")


def _folder(asked: str | None, config: str, *, project: Path) -> str | None:
    """Where the configuration lies; None = among the shipped ones, or nowhere."""
    # Hydra looked beside the script
    if asked is not None:
        return asked if Path(asked).is_dir() or not (project / asked).is_dir() else str(project / asked)
    shown = Path() if project.resolve() == Path.cwd() else project
    found = (shown / folder for folder in CONFIG_FOLDERS if (project / folder / f"{config}.yaml").is_file())
    return next(map(str, found), None)


def _all_devices() -> dict[str, str]:
    """run_ddp.py trained on all of them."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {"world_size": str(count)} if count > 1 else {}
