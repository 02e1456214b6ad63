"""All looks in turn, and the table of what they gave."""

from __future__ import annotations

import contextlib
import html
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from ppt_kit.installation.probes import BAD, CURES, GOOD, MARK, NOTE, PROBES, Found
from ppt_kit.tables import Table

TICKS = {GOOD: "✓", NOTE: "–", BAD: "✗"}
COLOURS = {GOOD: "--jp-success-color1", NOTE: "--jp-content-font-color2", BAD: "--jp-error-color1"}
# characters of a line in a terminal, and of a check's name
WIDTH, NAMED = 100, 14
CODE = "from ppt_kit.installation.probes import tell; tell({name!r})"
STYLE = (
    "<style>.ppt-installation td,.ppt-installation th{text-align:left!important;vertical-align:top;"
    "white-space:normal!important;color:inherit}.ppt-installation table{font-size:90%;color:inherit}"
    ".ppt-installation td:first-child{font-weight:bold}"
    ".ppt-installation td:nth-child(2){white-space:nowrap!important}</style>"
)


@dataclass(frozen=True)
class Report:
    """What there is on this machine.

    Attributes:
        found: what was looked at -> what it gave.
    """

    found: dict[str, Found]

    @property
    def works(self) -> bool:
        """Whether nothing will fail; notes do not count."""
        return all(each.state != BAD for each in self.found.values())

    @property
    def table(self) -> Table:
        """A row a check: check, state (good, note, bad), found, cure."""
        return Table(
            [{"check": name, "state": f.state, "found": f.said, "cure": f.cure} for name, f in self.found.items()]
        )

    def told(self) -> str:
        """The whole in one sentence."""
        bad = [name for name, each in self.found.items() if each.state == BAD]
        return f"Something will fail: {', '.join(bad)}." if bad else "Nothing here will fail."

    def __str__(self) -> str:
        return "\n".join([*(line_of(name, each) for name, each in self.found.items()), self.told()])

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="color:var({COLOURS[each.state]})">{TICKS[each.state]}</td><td>{html.escape(name)}</td>'
            f"<td>{html.escape(each.said)}</td><td>{html.escape(each.cure)}</td></tr>"
            for name, each in self.found.items()
        )
        head = "<tr><th></th><th>check</th><th>found</th><th>cure</th></tr>"
        return f'{STYLE}<div class="ppt-installation"><p>{self.told()}</p><table>{head}{rows}</table></div>'


def check_installation(*, tell: Callable[[str], None] | None = None) -> Report:
    """Looks at Python, packages, GPUs, DeepSpeed, two ranks, rendering, ports, disk, shared memory and W&B.

    Each look is a process of its own with a time limit: none raises here. It takes about half a minute.

    Args:
        tell: is given a line of text after each look.
    """
    found = {}
    for name, (_, timeout_s) in PROBES.items():
        found[name] = look(name, timeout_s=timeout_s)
        if tell is not None:
            tell(line_of(name, found[name]))
    return Report(found)


def look(name: str, *, timeout_s: float) -> Found:
    """What one look gives; one that hangs or crashes gives that."""
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", CODE.format(name=name)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return Found(BAD, f"no process can be started ({error.strerror})")
    try:
        out, err = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return Found(BAD, f"no answer within {timeout_s:g} s", CURES.get(name, ""))
    finally:
        _end(child)
    line = next((line for line in reversed(out.splitlines()) if line.startswith(MARK)), None)
    if line is not None:
        return Found(*json.loads(line.removeprefix(MARK)))
    said = (err.strip().splitlines() or ["it said nothing"])[-1][:300]
    how = (
        f"ended by {signal.Signals(-child.returncode).name}"
        if child.returncode < 0
        else f"exit code {child.returncode}"
    )
    return Found(BAD, f"{how}: {said}", CURES.get(name, ""))


def line_of(name: str, found: Found) -> str:
    """A look in a terminal: a tick, what it was, what was found, and below it what to type."""
    begin = " " * (NAMED + 4)
    said = textwrap.fill(
        found.said, WIDTH, initial_indent=f"{TICKS[found.state]} {name:<{NAMED}}  ", subsequent_indent=begin
    )
    # in one line: it is typed
    return f"{said}\n{begin}→ {found.cure}" if found.cure else said


def _end(child: subprocess.Popen) -> None:
    """Ends a look and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
