"""Worker processes: a task whose worker died is run again, also where every other worker has been told to end."""

import os
import time
from functools import partial

import pytest

from ppt_kit.sim.workers import BEGUN, Died, work_in_processes


def begin(folder):
    """In a worker: the first try of "dies" waits until the other worker has been told to end, and dies then."""

    def work(group):
        for task in group:
            yield task, BEGUN
            if task == "dies" and not (folder / "died").exists():
                (folder / "died").touch()
                wait_for(folder / "told to end")
                os._exit(7)
            yield task, "done"

    def close():
        (folder / "told to end").touch()
        # the other one is buried first
        time.sleep(1)

    return work, close


def wait_for(path):
    end = time.monotonic() + 60
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_task_is_run_again_where_the_other_workers_have_been_told_to_end(tmp_path, retries):
    told = list(work_in_processes(partial(begin, tmp_path), [["dies"], ["lives"]], n_procs=2, retries=retries))
    died = [result for _, result in told if isinstance(result, Died)]
    assert [result.how for result in died] == ["the worker process died with exit code 7"]
    assert died[0].is_last == (retries == 0)
    done = {task for task, result in told if result == "done"}
    assert done == {"lives"} if retries == 0 else {"lives", "dies"}
