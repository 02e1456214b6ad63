"""JupyterLab on this machine alone: python scripts/lab.py [NOTEBOOK] [words of `jupyter lab`]

What it prints holds no token, which would let whoever reads a log of it run code here. The token reaches the server
through a pipe, so that no file and no environment of a kernel has it.
"""

from __future__ import annotations

import os
import secrets
import sys

LOGIN = (
    f"Where no browser opens: {os.path.dirname(sys.executable)}/jupyter lab list tells the address that lets you in."
)


def main(words: list[str]) -> None:
    """Becomes the server."""
    print(LOGIN, flush=True)
    command = [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", *words]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    # a text browser would take the terminal for its own
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        command.append("--no-browser")
    os.execve(sys.executable, command, {**os.environ, "JUPYTER_TOKEN_FILE": _told(secrets.token_hex(24))})


def _told(token: str) -> str:
    """A file that gives the token once, to this process."""
    reads, writes = os.pipe()
    os.write(writes, token.encode())
    os.close(writes)
    os.set_inheritable(reads, True)
    return f"/dev/fd/{reads}"


if __name__ == "__main__":
    main(sys.argv[1:])
