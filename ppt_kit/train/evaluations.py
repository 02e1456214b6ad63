"""Checkpoints measured in simulation while training goes on: one at a time, each in a process of its own."""

from __future__ import annotations

import errno
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ppt_kit.checkpoint import BEST, mark_best, mean_success, model_of, prune
from ppt_kit.data.dataset import MultiTrajDataset
from ppt_kit.errors import UserError
from ppt_kit.models.chunks import Execution
from ppt_kit.programs import to_type
from ppt_kit.schema import Config
from ppt_kit.tracking import Tracker, bar_pace, rows_so_far
from ppt_kit.train.beside import POLL_S, Beside
from ppt_kit.train.evaluator import failed
from ppt_kit.train_keys import TrainConfig

if TYPE_CHECKING:
    from ppt_kit.train.assemble import Run

log = logging.getLogger(__name__)

# what the process that looks whether an episode begins gets to import what it needs (s)
BEGINNING_S = 120.0
# in the run folder: rows, summary and card of these evaluations, and what their processes printed
FOLDER, PRINTED = Path("eval/training"), "training.log"


@dataclass(frozen=True)
class Due:
    """A checkpoint that is to be evaluated."""

    epoch: int
    step: int


class Evaluations:
    """Those of a run, which rank 0 has: what waits, what runs, and which checkpoint is best.

    What was evaluated is what metrics.jsonl says: a run that goes on evaluates what has no row there.

    Args:
        domains: those that have a simulator.
    """

    def __init__(self, run_dir: Path, tracker: Tracker, options: TrainConfig, *, domains: Sequence[str]):
        self._run_dir, self._tracker, self._options, self._domains = run_dir, tracker, options, list(domains)
        self._rows, self._waiting = _left(run_dir, self._domains)
        self._child: Beside | None = None
        self.best: Due | None = None
        if self.chooses:
            self._choose()

    @property
    def chooses(self) -> bool:
        """Whether the best checkpoint is the one that succeeds most."""
        return self._options.best_metric in (None, "success")

    @property
    def waiting(self) -> int:
        """Checkpoints that are not evaluated yet, with the one that is being."""
        return len(self._waiting)

    @property
    def kept(self) -> set[int]:
        """Epochs whose model_{epoch}.pth must stay."""
        return {due.epoch for due in (*self._waiting, *([self.best] if self.best else []))}

    def add(self, due: Due) -> None:
        """One more checkpoint, which is on the disk."""
        self._waiting.append(due)

    def poll(self) -> list[dict]:
        """Rows of metrics.jsonl of the evaluation that has ended, if one has; begins the next. It never waits."""
        rows: list[dict] = []
        if self._child is not None and self._child.ended:
            child, due, self._child = self._child, self._waiting.pop(0), None
            rows = self._told(due, child.result(), seconds=child.seconds)
        if self._child is None and self._waiting:
            rows += self._begin(self._waiting[0])
        return rows

    def wait(self, tell: Callable[[dict], Any], *, until: Callable[[], bool]) -> bool:
        """Whether all that was left is evaluated: it waits for that, or until it is told to stop; `tell` gets rows."""
        if not self._waiting:
            return True
        log.info("training is done; waiting for the evaluation of %d checkpoint(s)", self.waiting)
        with tqdm(total=self.waiting, desc="evaluating", unit="checkpoint", **bar_pace()) as bar:
            while self._waiting and not until():
                left = self.waiting
                for row in self.poll():
                    tell(row)
                bar.update(left - self.waiting)
                time.sleep(POLL_S)
        return not self._waiting

    def conclude(self) -> None:
        """After the last: what is kept of the checkpoints, and what is known of the best."""
        prune(self._run_dir, keep_last=self._options.last_k_checkpoints, keep_epochs=self.kept)
        if self.best is None:
            return
        candidates = len(_means(self._rows, self._domains))
        log.info(
            "best of %d evaluated: %s, success %.2f on the goals that chose it; measure it on others: "
            "%s train.pretrained_dir=%s",
            candidates, model_of(self._run_dir, self.best.epoch).name, _means(self._rows, self._domains)[self.best],
            to_type("eval_sim"), self._run_dir / BEST,
        )  # fmt: skip

    def close(self) -> None:
        """Ends the process that evaluates, and those it has started."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _begin(self, due: Due) -> list[dict]:
        """Starts its process; the rows that say why where it cannot be started."""
        path = model_of(self._run_dir, due.epoch)
        options = self._options
        common = {
            "episodes": options.eval_episodes, "n_procs": options.eval_procs, "seed": options.eval_seed,
            "max_steps": options.eval_max_steps, "execute_steps": options.eval_execute_steps,
            "out_dir": str(self._run_dir / FOLDER), "episode_timeout_s": options.eval_timeout_s,
        }  # fmt: skip
        request = {"checkpoint": str(path), "domains": self._domains, "options": common}
        try:
            if not path.is_file():
                raise OSError(errno.ENOENT, "is gone", str(path))
            self._child = Beside(request, log_file=self._run_dir / FOLDER / PRINTED)
        except OSError as error:
            self._waiting.remove(due)
            return self._told(due, {"error": str(error)}, seconds=0.0)
        return []

    def _told(self, due: Due, result: Mapping[str, Any], *, seconds: float) -> list[dict]:
        path, told = (
            model_of(self._run_dir, due.epoch),
            {row["domain"] for row in self._rows if row["epoch"] == due.epoch},
        )
        rows = []
        for domain in self._domains:
            if domain in told:
                continue
            found = result.get(domain) or failed(result["error"])
            common = {"step": due.step, "epoch": due.epoch, "checkpoint": str(path), "domain": domain}
            rows.append(self._tracker.row("eval", **common, **found, seconds=round(seconds, 2)))
            _say(rows[-1], path)
        self._rows += rows
        if self.chooses:
            self._choose()
        return rows

    def _choose(self) -> None:
        """The highest mean success over the domains; of equal ones the later, which has learned longer."""
        means = {due: mean for due, mean in _means(self._rows, self._domains).items() if self._is_there(due)}
        best = max(means, key=lambda due: (means[due], due.epoch), default=None)
        if best is None or best == self.best:
            return
        self.best = best
        try:
            mark_best(self._run_dir, best.epoch)
        except OSError as error:
            log.warning("%s: %s; %s is the best", self._run_dir / BEST, error, model_of(self._run_dir, best.epoch).name)

    def _is_there(self, due: Due) -> bool:
        return model_of(self._run_dir, due.epoch).is_file()


def evaluations_of(run: Run) -> Evaluations | None:
    """Of a run that is about to train: None where nothing is evaluated, and on ranks other than the first."""
    if not run.cfg.train.eval_interval or not run.engine.world.is_first:
        return None
    return Evaluations(run.run_dir, run.tracker, run.cfg.train, domains=simulated(run.sources.train_set))


def check_evaluations(cfg: Config, dataset: MultiTrajDataset) -> None:
    """Tells at the door what could not be evaluated.

    Raises:
        UserError: no domain says which simulator it comes from, a demonstration had one of the seeds, or a chunk does
            not hold what is to be executed.
    """
    train = cfg.train
    if not train.eval_interval:
        return
    known = simulated(dataset)
    asked = f"train.eval_interval={train.eval_interval}"
    if not known:
        raise UserError(
            f"{asked}: the dataset of {', '.join(dataset.domains)} does not say which simulator it comes from, so no "
            "checkpoint can be evaluated. Set train.eval_interval=0."
        )
    for name in [name for name in dataset.domains if name not in known]:
        log.warning("%s: %s does not say which simulator it comes from, so it is not evaluated", asked, name)
    seeds = range(train.eval_seed, train.eval_seed + train.eval_episodes)
    for name in known:
        demonstrated = dataset.domains[name].source()["seeds"]
        met = [int(seed) for seed in demonstrated if int(seed) in seeds]
        if met:
            raise UserError(
                f"train.eval_seed={train.eval_seed}: {len(met)} of the {train.eval_episodes} seeds from there on were "
                f"demonstrated in {name} (e.g. {met[0]}). Set train.eval_seed above {max(demonstrated)}."
            )
    try:
        Execution(execute_steps=train.eval_execute_steps).check(dataset.horizon)
    except ValueError as error:
        raise UserError(str(error).replace("execute_steps", "train.eval_execute_steps")) from None


def problem_with_simulators(cfg: Config, dataset: MultiTrajDataset) -> str | None:
    """Begins an episode of each domain in a process of its own; why it cannot be, or does not show what is seen."""
    train, domains = cfg.train, simulated(dataset)
    spec = {name: dataset.domains[name].source()["env"] for name in domains}
    if train.eval_max_steps is not None:
        spec = {name: {**env, "max_steps": train.eval_max_steps} for name, env in spec.items()}
    shown = {name: {"env": spec[name], "view": dataset.domains[name].view.plain()} for name in domains}
    with tempfile.TemporaryDirectory() as elsewhere:
        child = Beside({"check": shown, "seed": train.eval_seed}, log_file=Path(elsewhere) / "check.log")
        try:
            while not child.ended and child.seconds < train.eval_timeout_s + BEGINNING_S:
                time.sleep(POLL_S)
            late = f"an episode did not begin within {child.seconds:.0f} s"
            error = child.result()["error"] if child.ended else late
        finally:
            child.kill()
    return f"train.eval_interval={train.eval_interval}: {error}" if error else None


def simulated(dataset: MultiTrajDataset) -> list[str]:
    """Domains whose data says which simulator it comes from."""
    return [name for name, domain in dataset.domains.items() if domain.source()["env"]]


def _left(run_dir: Path, domains: Sequence[str]) -> tuple[list[dict], list[Due]]:
    """(rows of the evaluations so far, checkpoints that are still to be evaluated) of what metrics.jsonl says."""
    rows = rows_so_far(run_dir)
    done = [row for row in rows if row.get("kind") == "eval"]
    saved = [Due(row["epoch"], row["step"]) for row in rows if row.get("to_evaluate")]
    told = {(row.get("epoch"), row.get("domain")) for row in done}
    return done, [due for due in saved if any((due.epoch, domain) not in told for domain in domains)]


def _means(rows: Sequence[Mapping[str, Any]], domains: Sequence[str]) -> dict[Due, float]:
    """Checkpoint -> mean success over the domains, of those that were evaluated in all of them."""
    steps = {row["epoch"]: row["step"] for row in rows}
    return {Due(epoch, steps[epoch]): mean for epoch, mean in mean_success(rows, domains).items()}


def _say(row: Mapping[str, Any], path: Path) -> None:
    if row["success"] is None:
        log.warning(
            "%s could not be evaluated in %s: %s. Training goes on; %s has the rest",
            path.name, row["domain"], row["error"], FOLDER / PRINTED,
        )  # fmt: skip
        return
    log.info(
        "epoch %d  success %.2f in %s (%d episodes, 95 %% interval %.2f to %.2f%s), evaluated in %.0f s",
        row["epoch"], row["success"], row["task"], row["n"], row["low_95"], row["high_95"],
        f", {row['errors']} could not be run: {row['error']}" if row["errors"] else "", row["seconds"],
    )  # fmt: skip
