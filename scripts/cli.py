"""The shell's words for every script: fire splits them, the schema types them; a mistake is one line, exit code 2."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import fire
from omegaconf import DictConfig

from ppt_kit.config import describe_keys, load_config
from ppt_kit.errors import UserError

# words that launchers add: they say which process this is, which the environment says too
LAUNCHER_WORDS = ("--local_rank", "--local-rank")


def run(
    main: Callable[[DictConfig], int | None],
    *,
    schema: type,
    about: str,
    config_name: str = "",
    ignore: tuple[str, ...] = (),
) -> None:
    """Builds the configuration from sys.argv, then calls main(cfg); exits with its code, after Ctrl-C with 130."""
    words = [word for word in sys.argv[1:] if not word.startswith(LAUNCHER_WORDS) and word not in ignore]
    try:
        if any(word in ("--help", "-h", "help") for word in words):
            print(_help_text(schema=schema, about=about, config_name=config_name))
            sys.exit(0)
        cfg = _read(words, schema=schema, config_name=config_name)
        sys.exit(main(cfg) or 0)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped by Ctrl-C", file=sys.stderr)
        # as shells count it: 128 + the signal
        sys.exit(128 + getattr(stop, "number", signal.SIGINT))


def _read(words: list[str], *, schema: type, config_name: str) -> DictConfig:
    received: list[str] = []

    @fire.decorators.SetParseFn(str)
    def receive(*plain, **flags):
        received.extend(plain)
        received.extend(f"{name}={text}" for name, text in flags.items())

    fire.Fire(receive, command=[_normal(word) for word in words], serialize=lambda _: None)
    options = {"config_name": config_name, "config_path": None}
    overrides = []
    for word in received:
        name, _, text = word.partition("=")
        if config_name and name in options:
            options[name] = text
        else:
            overrides.append(word)
    return load_config(str(options["config_name"]), *overrides, config_path=options["config_path"], schema=schema)


def _normal(word: str) -> str:
    """fire reads a lone `-` and a dash in a flag's name as its own; the grammar here has neither."""
    if word.startswith("--"):
        name, equals, text = word.partition("=")
        return f"--{name[2:].replace('-', '_')}{equals}{text}"
    return word


def _help_text(*, schema: type, about: str, config_name: str) -> str:
    script = sys.argv[0]
    files = " [--config-name=NAME] [--config-path=FOLDER]" if config_name else ""
    defaults = load_config(config_name, schema=schema)
    source = f" (config {config_name})" if config_name else ""
    return (
        f"{about}\n\nusage: python {script}{files} [key=value | --key=value …]\n\n"
        f"keys, defaults{source}, types:\n{describe_keys(schema, defaults=defaults)}"
    )
