"""The process that evaluates a checkpoint while its run trains on: one line of JSON in, one line out."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ppt_kit.errors import UserError
from ppt_kit.signals import end_with_parent

# the word behind `python -m ppt_kit` that makes a process evaluate what it is handed
EVALUATE = "--evaluate"


def evaluate_request() -> int:
    """Does what the line on the standard input asks for, and answers with a line on the standard output.

    A request has "checkpoint", "domains" and "options", and is answered by domain: task, success, n, low_95, high_95,
    errors, error; or "check" and "seed", and the answer is an "error" that may be null.
    """
    request = json.loads(sys.stdin.readline() or "{}")
    end_with_parent(signal.SIGKILL)
    # it may have gone before that was said, or before it had asked for anything
    if os.getppid() != request.get("parent"):
        return 1
    # whatever simulators print goes where the log goes
    answer = os.dup(1)
    os.dup2(2, 1)
    found = _told(partial(_check if "check" in request else _evaluate, request))
    with os.fdopen(answer, "w") as out:
        out.write(json.dumps(found) + "\n")
    return 0


def failed(error: str) -> dict[str, Any]:
    """What is said of a domain that could not be evaluated."""
    return {"task": None, "success": None, "n": 0, "low_95": 0.0, "high_95": 1.0, "errors": 0, "error": error}


def _evaluate(request: Mapping[str, Any]) -> dict[str, Any]:
    """domain -> how it went."""
    from ppt_kit.checkpoint import load_policy

    policy = load_policy(request["checkpoint"])
    return {domain: _told(partial(_rates, policy, domain, request["options"])) for domain in request["domains"]}


def _rates(policy: Any, domain: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What metrics.jsonl says of one domain; success is null where no episode could be run."""
    from ppt_kit.sim.evaluate import run_evaluation
    from ppt_kit.sim.results import success_table
    from ppt_kit.sim.runner.options import EvaluateOptions

    result = run_evaluation(policy, EvaluateOptions(domain=domain, **options))
    line = success_table(result).to_dict("records")[0]
    return {
        "task": line["task"], "success": line["rate"] if line["episodes"] else None, "n": line["episodes"],
        "low_95": line["low_95"], "high_95": line["high_95"], "errors": line["errors"],
        "error": next((row["error"] for row in result.rows if row["error"] is not None), None),
    }  # fmt: skip


def _check(request: Mapping[str, Any]) -> dict[str, Any]:
    """Whether an episode of each domain begins, and shows what the policy will see."""
    from ppt_kit.data.view import View
    from ppt_kit.models.chunks import Execution
    from ppt_kit.sim.env import close_env, make_env, show_only
    from ppt_kit.sim.episodes import EpisodePlan, check_seen

    for domain, shown in request["check"].items():
        view = View.from_plain(shown["view"])
        env = make_env(shown["env"], uses=["evaluating"])
        try:
            show_only(env, view.needs())
            plan = EpisodePlan(env=shown["env"], domain=domain, execution=Execution())
            check_seen(view, env, plan, seed=request["seed"])
        finally:
            close_env(env)
    return {"error": None}


def _told(work: Callable[[], dict]) -> dict[str, Any]:
    """What `work` gives; or why it could not, in one line, with the traceback in the log."""
    try:
        return work()
    except UserError as error:
        return failed(" ".join(str(error).split()))
    # a user's simulator or part raises whatever it likes
    except Exception as error:
        traceback.print_exc()
        return failed(f"{type(error).__name__}: {' '.join(str(error).split())}")
