"""A process that works beside training: asked with one line of JSON, answering with one, ending with its parent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ppt_kit.data.store import plain
from ppt_kit.train.evaluator import EVALUATE

# training has the other cores; more threads would not make one observation faster, and numbers depend on how many
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS"), "1")
POLL_S = 0.1


class Beside:
    """A process that evaluates, in a session of its own: no terminal's signal comes there, and it ends with this one.

    To be made by the training thread: Linux ends the process with the thread that started it.
    """

    def __init__(self, request: Mapping[str, Any], *, log_file: Path):
        self._began, self._log_file = time.monotonic(), log_file
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with open(log_file, "ab") as printed:
            self._said_before = printed.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ppt_kit", EVALUATE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=printed, env=os.environ | ONE_THREAD, start_new_session=True,
            )  # fmt: skip
        text = json.dumps({"parent": os.getpid(), **request}, default=plain) + "\n"
        # one that died at once has said why
        with contextlib.suppress(BrokenPipeError), self._pipe(self._process.stdin) as stdin:
            stdin.write(text.encode())

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def result(self) -> dict:
        """What it found, once it has ended; {"error": …} where it did not come to its end."""
        with self._pipe(self._process.stdout) as stdout:
            said = stdout.read()
        try:
            return json.loads(said)
        except ValueError:
            return {"error": self._last_words()}

    def kill(self) -> None:
        """With its workers; of one that has ended they are gone."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _last_words(self) -> str:
        code = self._process.returncode
        if code < 0:
            return f"its process died of {signal.Signals(-code).name}"
        with open(self._log_file, "rb") as printed:
            printed.seek(self._said_before)
            lines = printed.read().decode("utf-8", "replace").strip().splitlines()
        return f"its process left with exit code {code}" + (f" ({lines[-1].strip()[:200]})" if lines else "")

    @staticmethod
    def _pipe(end: IO[bytes] | None) -> IO[bytes]:
        assert end is not None, "Popen was asked for a pipe"
        return end
