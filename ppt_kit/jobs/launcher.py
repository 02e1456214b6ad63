"""Several nodes: the file of hosts, and the `deepspeed` launcher that reaches them, as a child of what supervises."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from ppt_kit.errors import UserError
from ppt_kit.jobs.decide import Share
from ppt_kit.jobs.ranks import STOP_GRACE_S, End, exit_code, free_port
from ppt_kit.jobs.record import CONFIG, LOGS, Record
from ppt_kit.signals import end_with_parent, let_stops_in, on_stop_signals

HOST_LINE = re.compile(r"(\S+)\s+slots=(\d+)(\s*#.*)?")
# exit codes of a launcher: 256 - the signal, where a rank was ended by one
FIRST_OF_SIGNALS = 192
POLL_S = 0.1


def read_hostfile(path: str | Path, *, num_gpus: int | None = None) -> dict[str, int]:
    """The hosts of a file for `deepspeed --hostfile`, one `name slots=4` a line, and the ranks that each is to start.

    Args:
        num_gpus: of every host; None = all its slots.
    Raises:
        UserError: the file cannot be read, or a line, a host or a number is not what the launcher takes.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "no text in UTF-8"
        raise UserError(f"hostfile={path}: cannot be read ({said}). Give a file of lines like: node1 slots=4") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        match, where = HOST_LINE.fullmatch(line), f"hostfile={path}, line {number}"
        if match is None:
            raise UserError(f"{where}: {line[:80]!r} is no host. Write lines like: node1 slots=4")
        host, slots = match[1], int(match[2])
        if host in hosts:
            raise UserError(f"{where}: {host} is named twice. Name it once, with all its slots.")
        if slots < (num_gpus or 1):
            raise UserError(f"{where}: {host} has {slots} slots, {num_gpus or 1} are asked for. Set num_gpus lower.")
        hosts[host] = num_gpus or slots
    if not hosts:
        raise UserError(f"hostfile={path}: names no host. Write lines like: node1 slots=4")
    return hosts


def check_reach(hosts: dict[str, int]) -> None:
    """Raises UserError when other hosts are named and this one lacks what the launcher reaches them with."""
    missing = [] if is_here(hosts) else [name for name in ("pdsh", "ssh") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"the hostfile names other hosts, which deepspeed reaches by pdsh and ssh, and {missing[0]} is not "
            f"installed here. Install it (apt-get install {missing[0]}), or leave hostfile out for this machine alone."
        )


def is_here(hosts: dict[str, int]) -> bool:
    """Whether this machine is the only host."""
    return len(hosts) == 1 and set(hosts) <= {"localhost", "127.0.0.1", socket.gethostname()}


def launcher_command(config_file: Path, *, share: Share, hostfile: str | None) -> list[str]:
    """The `deepspeed` command that starts the ranks of a launch.

    Args:
        share: its ranks over all hosts, and on each of them where `hostfile` is given.
    """
    program = Path(sys.executable).with_name("deepspeed")
    words, hosts = [str(program) if program.exists() else "deepspeed"], read_hostfile(hostfile) if hostfile else {}
    # without it every slot of the file is used, of which hosts may have different numbers
    if sum(hosts.values()) != share.total:
        words.append(f"--num_gpus={share.here}")
    if hostfile is not None:
        # alone it is not reached by ssh, which need not be installed
        words += [f"--hostfile={hostfile}", *(["--no_ssh_check", "--master_addr=127.0.0.1"] if is_here(hosts) else [])]
    return [*words, "--module", "ppt_kit", str(config_file)]


def run_launcher(record: Record, folder: Path, is_left_alone: Callable[[], bool]) -> End:
    """Runs the launcher of a record with a hostfile, passes signals on to its ranks, and says how it ended."""
    program, *words = record.launcher
    command = [program, f"--enable_each_rank_log={folder / LOGS}", f"--master_port={free_port()}", *words]
    print(" ".join(command), flush=True)
    asked: list[int] = []
    with on_stop_signals(asked.append):
        let_stops_in()
        launcher = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=end_with_parent
        )
        process, told, first = psutil.Process(launcher.pid), False, 0
        while launcher.poll() is None:
            if not told and is_left_alone():
                told = True
                asked.append(signal.SIGTERM)
            while asked:
                first = first or asked[0]
                _pass_on(process, asked.pop(0), folder / CONFIG, alone=record.ranks.here == record.ranks.total)
            time.sleep(POLL_S)
        _end_group(launcher.pid)
    code = exit_code(launcher.returncode)
    # the launcher says -9 as 247, and a stop before its ranks were there as 0 or as its own death
    code = 128 + 256 - code if code > FIRST_OF_SIGNALS else code
    return End(128 + first if first and code in (0, 1) else code)


def _pass_on(launcher: psutil.Process, number: int, config_file: Path, *, alone: bool) -> None:
    """A stop signal to the ranks; where others are elsewhere to the launcher too, which asks them by pdsh.

    Not to the launcher where all ranks are here: it kills ranks that need more than 30 s to save. Before there are any
    it ends itself, and what it has started.
    """
    try:
        children = launcher.children(recursive=True)
    # it ended meanwhile
    except psutil.NoSuchProcess:
        return
    ranks = [child for child in children if _is_rank(child, config_file)]
    for each in ranks if ranks and alone else [*children, launcher]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(number)


def _end_group(group: int) -> None:
    """Waits for what a launcher that has left may have left behind, and kills it in the end."""
    end = time.monotonic() + STOP_GRACE_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(POLL_S)
        os.killpg(group, signal.SIGKILL)


def _is_rank(process: psutil.Process, config_file: Path) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return words[-1:] == [str(config_file)] and "deepspeed.launcher.launch" not in words
