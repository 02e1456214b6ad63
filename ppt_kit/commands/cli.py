"""The shell's words for every command: fire splits them, the schema types them; a mistake is one line, exit code 2."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ppt_kit.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

# words about files, for commands that read one
FILE_WORDS = ("config_name", "config_path")


def run(
    main: Callable[[DictConfig], int | None],
    *,
    schema: type,
    about: str,
    config_name: str = "",
    ignore: tuple[str, ...] = (),
    first: Sequence[str] = (),
) -> None:
    """Builds the configuration from sys.argv, then calls main(cfg); exits with its code, after Ctrl-C with 130.

    Args:
        first: keys that the first words are the values of, in order, where they have no `=`.
    """
    given = [word for word in sys.argv[1:] if word not in ignore]
    for place, name in enumerate(first[: len(given)]):
        if "=" in given[place] or given[place].startswith("-") or given == ["help"]:
            break
        given[place] = f"{name}={given[place]}"
    with ends_in_a_line():
        # from here on Ctrl-C is one line: what takes time to import comes after
        from ppt_kit.words import own_words

        if {"--help", "-h"} & set(given) or given == ["help"]:
            print(_help_text(schema=schema, about=about, config_name=config_name))
            code = 0
        else:
            code = main(_read(own_words(given), schema=schema, config_name=config_name)) or 0
        sys.stdout.flush()
        sys.exit(code)


@contextlib.contextmanager
def ends_in_a_line() -> Iterator[None]:
    """Inside, a mistake of the user's and Ctrl-C end the process with a line, and a reader who has gone with none."""
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped by Ctrl-C", file=sys.stderr)
        # as shells count it: 128 + the signal
        sys.exit(128 + getattr(stop, "number", signal.SIGINT))
    except BrokenPipeError:
        # whoever read it has read enough, as `head` has; any other pipe is somebody else's
        if not _nobody_reads():
            raise
        sys.exit(128 + signal.SIGPIPE)


def _nobody_reads() -> bool:
    """Whether standard output was closed at its other end; what is left of it goes nowhere from here on."""
    look = select.poll()
    look.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in look.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def _read(words: list[str], *, schema: type, config_name: str) -> DictConfig:
    import fire

    from ppt_kit.config import load_config
    from ppt_kit.words import parse_words

    pairs = parse_words(words, schema=schema, beside=FILE_WORDS if config_name else ())
    received: list[str] = []

    @fire.decorators.SetParseFn(str)
    def receive(*plain: str) -> None:
        received.extend(plain)

    # fire has flags of its own, and takes apart what starts with a dash: it gets words of our grammar alone
    fire.Fire(receive, command=[f"{name}={text}" for name, text in pairs], serialize=lambda _: None)
    files = {"config_name": config_name, "config_path": None}
    overrides = []
    for word in received:
        name, _, text = word.partition("=")
        if config_name and name in files:
            files[name] = text
        else:
            overrides.append(word)
    if config_name and not files["config_name"]:
        raise UserError(f"--config-name is empty. Type --config-name=NAME, or leave it out for {config_name}.")
    return load_config(str(files["config_name"]), *overrides, config_path=files["config_path"], schema=schema)


def _help_text(*, schema: type, about: str, config_name: str) -> str:
    from ppt_kit.config import load_config
    from ppt_kit.help import describe_keys

    files = " [--config-name=NAME] [--config-path=FOLDER]" if config_name else ""
    defaults = load_config(config_name, schema=schema)
    source = f" (config {config_name})" if config_name else ""
    return (
        f"{about}\n\nusage: {_called()}{files} [key=value | --key=value …]\n\n"
        f"keys with their defaults{source}:\n{describe_keys(schema, defaults=defaults)}"
    )


def _called() -> str:
    """What was typed before the words: a script, a module of this folder, or a program that pip has installed."""
    typed = Path(sys.argv[0])
    if typed.suffix != ".py":
        return typed.name
    return f"python -m {__package__}.{typed.stem}" if typed.parent == Path(__file__).parent else f"python {typed}"
