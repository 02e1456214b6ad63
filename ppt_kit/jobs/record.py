"""What is written down about a launched run: launch/job.json in its folder."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ppt_kit.errors import UserError
from ppt_kit.files import write_text
from ppt_kit.jobs.decide import Share

# in a run folder; it holds:
FOLDER = "launch"
RECORD, CONFIG, OUTPUT = "job.json", "config.yaml", "output.log"
# what each rank prints, and an empty file once somebody has asked for the ranks to be killed
LOGS, KILLED_MARK = "logs", "killed"

CLOCK_SLACK_S = 2.0  # Linux knows when it was booted, and with it when a process started, to the second


@dataclass(frozen=True)
class Record:
    """Of one launch on one node."""

    pid: int  # of the process that supervises the ranks; 0: a queue has not started it yet
    started: float  # when it was, s since 1970
    host: str
    ranks: Share
    command: list[str]
    parent: int | None = None  # a process that it must not outlive
    exit_code: int | None = None  # as a shell says it; None: it runs, or was killed
    failed_rank: int | None = None  # of all ranks the first that left with a code other than 0
    ended: float | None = None  # when the last rank left, s since 1970
    cwd: str = ""  # the folder that names in its configuration are relative to; "" = not written down
    own_logs: bool = False  # each rank prints to a file of its own, not where its starter prints
    launcher: list[str] = field(default_factory=list)  # the `deepspeed` command that starts the same ranks
    hostfile: str | None = None  # its ranks are started by `deepspeed --hostfile`
    meets: str = ""  # address and port where its ranks of all nodes meet, where somebody has set them on each node
    slurm: dict | None = None  # what the queue was asked for, and the job_id that it gave

    @classmethod
    def from_text(cls, text: str) -> Record:
        """What `text` of another gave."""
        values = json.loads(text)
        return cls(**values | {"ranks": Share(**values["ranks"])})

    def text(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self) | {"ranks": self.ranks._asdict()}) + "\n"

    def write(self, folder: Path) -> None:
        """To `folder`/job.json."""
        write_text(folder / RECORD, self.text())

    def is_of(self, process: Any) -> bool:
        """Whether a psutil.Process of that pid is the one meant here, and not a later one that got its number.

        Raises:
            psutil.Error: the process is gone.
        """
        # the first moves when the clock is set
        same_time = abs(process.create_time() - self.started) <= CLOCK_SLACK_S
        return self.host == socket.gethostname() and (same_time or process.cmdline() == self.command)


def read_record(folder: Path) -> Record | None:
    """Of the newest launch in `folder`; None when there was none.

    Raises:
        UserError: it is not what a launch wrote.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return Record.from_text(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}): which process trains there is not known."
        ) from None
    # ValueError: no JSON, no UTF-8; TypeError: JSON of other things
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: damaged ({error}): which process trains there is not known. Look for it, then delete the file."
        ) from None
