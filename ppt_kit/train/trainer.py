"""UnifiedTrainer: which process does what, whether this is one in a notebook or one rank of many."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, overload

import psutil
from omegaconf import DictConfig, OmegaConf

from ppt_kit.checks import check_fits, check_values, domain_names
from ppt_kit.config import from_mapping
from ppt_kit.engine import World, from_first, join_world, leave_world
from ppt_kit.errors import UserError
from ppt_kit.jobs.decide import decide, is_rank, launch_numbers, local_share, num_visible_devices, why_on_cpu
from ppt_kit.jobs.failures import note_failure, tell_first_failure
from ppt_kit.jobs.job import run_job
from ppt_kit.jobs.parents import watch_launchers
from ppt_kit.jobs.taken import held, refuse_second
from ppt_kit.memory.failure import bytes_held, give_back, is_out_of_memory, what_ran_out
from ppt_kit.signals import Stopped, end_with_parent, interrupt
from ppt_kit.tracking import note_end
from ppt_kit.train.assemble import Sources, build_run, open_sources
from ppt_kit.train.background import Background
from ppt_kit.train.loop import train
from ppt_kit.train.planning import told_of_memory
from ppt_kit.train.steering import STOP, ask, forget_requests

log = logging.getLogger(__name__)

# the exit code after Ctrl-C, or a notebook's stop button
INTERRUPTED = 128 + signal.SIGINT


class UnifiedTrainer:
    """Trains the policy of a configuration.

    Constructing one touches no file, device or global, so two live in one kernel.

    Args:
        cfg: what `ppt_kit.load_config` gives, or part of it: missing keys have the schema's defaults.
        mode: "single", "distributed" or "auto"; "auto" leaves it to cfg.train_mode.
    Attributes:
        cfg: the whole configuration, as a DictConfig.
        run_dir: <output_dir>/<domains joined by +>/<suffix>.
        listeners: called with every row that metrics.jsonl gets, by the thread that trains.
        panel: what shows this run in a notebook; None where nothing does.
    Raises:
        UserError: the configuration is not valid, or the mode is unknown.
    """

    def __init__(self, cfg: DictConfig, mode: str = "auto"):
        if mode not in ("single", "distributed", "auto"):
            raise UserError(f"mode={mode!r}: takes single, distributed or auto.")
        self.cfg = from_mapping(cfg)
        check_values(self.cfg)
        check_fits(self.cfg)
        self.mode = self.cfg.train_mode if mode == "auto" else mode
        if self.cfg.suffix is None:
            OmegaConf.update(self.cfg, "suffix", datetime.now().strftime("%Y%m%d-%H%M%S"))
        self.run_dir = Path(self.cfg.output_dir) / "+".join(domain_names(self.cfg.domains)) / self.cfg.suffix
        self.listeners: list[Callable[[dict], None]] = []
        self.panel: Any = None
        self._has_panel = False
        self._started = time.time()
        self._background: Background | None = None
        self._failure: BaseException | None = None

    def __repr__(self) -> str:
        trains = ", trains in the background" if self.running else ""
        if self.failure is not None:
            trains = f", failed: {type(self.failure).__name__}: {self.failure}"
        return f"run of {'+'.join(domain_names(self.cfg.domains))} in {self.run_dir}, train_mode={self.mode}{trains}"

    @overload
    def run(self, *, background: Literal[False] = False) -> int: ...

    @overload
    def run(self, *, background: bool) -> int | None: ...

    def run(self, *, background: bool = False) -> int | None:
        """Trains in the mode that configuration and environment ask for; the exit code, 0 when all went well.

        Args:
            background: train in a thread, and return None as soon as it has begun: `wait` gives the exit code, `stop`
                ends it with a checkpoint. It ends with this process, saved too.
        Raises:
            KeyboardInterrupt: it was interrupted and has saved; what follows in a notebook does not run.
            UserError: this run trains already (in a notebook, `background` shows it again), or could not begin.
        """
        if self.running:
            # a cell that is run again shows it again
            if background and self._shown() is not None:
                return None
            raise UserError(
                f"{self.run_dir}: trains in the background already: ppt.live(run) shows it; run.wait(), or run.stop()."
            )
        try:
            work = self._work()
            if not is_rank(os.environ):
                self._has_panel = self._shown() is not None
            if background:
                self._background = Background(lambda: self._noted(work), stop=self.stop)
                return None
            code = self._noted(work)
        # between the first step and the last one an interrupt only asks, and all is saved
        except KeyboardInterrupt as stop:
            if isinstance(stop, Stopped):
                raise
            there = f"{self.run_dir} was about to begin or to end; run.resume() goes on with what is there"
            kept = there if self.run_dir.exists() else "nothing had begun"
            raise interrupt(kept) from None
        # of a launched rank the launcher asks for the code
        if code == INTERRUPTED and not is_rank(os.environ):
            kept = f"{self.run_dir} is saved; run.resume(), or train.resume=auto suffix={self.cfg.suffix}, goes on"
            raise interrupt(kept)
        return code

    def resume(self, *, background: bool = False) -> int | None:
        """Goes on from the run folder's newest checkpoint, or starts if there is none; as `run`."""
        OmegaConf.update(self.cfg, "train.resume", "auto")
        return self.run(background=background)

    @property
    def running(self) -> bool:
        """Whether it trains in the background."""
        return self._background is not None and self._background.running

    @property
    def failure(self) -> BaseException | None:
        """What ended the training that could not go on; None where nothing did."""
        return self._failure

    def wait(self, timeout_s: float | None = None) -> int:
        """The exit code of `run(background=True)` once it has ended.

        Raises:
            TimeoutError: it trains after `timeout_s` still.
            Exception: what ended it, if it could not go on.
            UserError: nothing was started in the background.
        """
        if self._background is None:
            raise UserError("nothing trains in the background: start it by run.run(background=True).")
        return self._background.wait(timeout_s)

    def stop(self) -> None:
        """Asks the run, wherever its processes are, to end with a checkpoint; returns at once."""
        ask(self.run_dir, STOP)

    def _shown(self) -> Any:
        """What shows the run where it is started; None where it has a bar or lines in the log."""
        return None

    def _noted(self, work: Callable[[], int]) -> int:
        self._failure = None
        try:
            return work()
        except BaseException as error:
            self._failure = error
            raise

    def _work(self) -> Callable[[], int]:
        """What trains, and gives the exit code; what can be wrong before is told by this."""
        num_devices, world_size = num_visible_devices(), self.cfg.world_size
        what = decide(self.mode, world_size=world_size, env=os.environ, num_devices=num_devices)
        if what == "single":
            if world_size > 1:
                log.warning(
                    "world_size=%d, but one process trains (train_mode=%s, %d devices visible). "
                    "Type train_mode=distributed for %d.",
                    world_size, self.mode, num_devices, world_size,
                )  # fmt: skip
            return self._alone()
        if what == "rank":
            return self.run_distributed
        return self._ranks(num_devices)

    def run_single_gpu(self) -> int:
        """Trains in this process, on its GPU or its CPU; 0, or 128 + the signal that stopped it."""
        return self._alone()()

    def _alone(self) -> Callable[[], int]:
        asked_from = time.time()
        refuse_second(self.run_dir)
        sources = open_sources(self.cfg, self.run_dir)
        return lambda: self._train(sources, join_world(), asked_from=asked_from)

    def run_distributed(self) -> int:
        """Trains as one rank of a launched job (RANK, LOCAL_RANK and WORLD_SIZE are set); as `run_single_gpu`."""
        if not is_rank(os.environ):
            raise UserError(
                "no launcher started this process: RANK, LOCAL_RANK and WORLD_SIZE are not all set. "
                "Start it by deepspeed or torchrun, or call run() with train_mode=distributed."
            )
        numbers = launch_numbers(os.environ)
        end_with_parent()
        watch_launchers()
        refuse_second(self.run_dir)
        sources = open_sources(self.cfg, self.run_dir)
        world = self._setup_distributed(numbers["LOCAL_RANK"], numbers["WORLD_SIZE"])
        if world.is_first and world.device.type == "cpu":
            log.warning("no GPU is visible: %d rank(s) train on the CPU. %s", world.size, why_on_cpu(os.environ))
        try:
            return self._train(sources, world, asked_from=psutil.Process().create_time())
        except UserError:
            raise
        except Exception:
            # a survivor's broken connection must not be the last thing on the screen: the first failure is
            code = tell_first_failure(self.run_dir, rank=world.rank, started=self._started)
            # leaving the group politely would wait for ranks that are gone
            os._exit(code)
        finally:
            self._cleanup_distributed()

    def _setup_distributed(self, local_rank: int, world_size: int) -> World:
        self._world = join_world(
            rank=int(os.environ.get("RANK", local_rank)),
            local_rank=local_rank,
            world_size=world_size,
            rendezvous_timeout_s=self.cfg.rendezvous_timeout_s,
        )
        # the ranks' clocks may give different suffixes
        self.run_dir = Path(from_first(str(self.run_dir)))
        return self._world

    def _cleanup_distributed(self) -> None:
        leave_world(self._world)

    def _train(self, sources: Sources, world: World, *, asked_from: float) -> int:
        """`asked_from`: requests from before were another part of the run's."""
        with self._held(world):
            return self._train_alone(sources, world, asked_from=asked_from)

    def _held(self, world: World) -> contextlib.ExitStack:
        """The run folder, which rank 0 holds for all ranks.

        Raises:
            UserError: another run trains there. On every rank.
        """
        stack, problem = contextlib.ExitStack(), ""
        try:
            if world.is_first:
                stack.enter_context(held(self.run_dir))
        except UserError as error:
            problem = str(error)
        problem = from_first(problem)
        if problem:
            raise UserError(problem)
        return stack

    def _train_alone(self, sources: Sources, world: World, *, asked_from: float) -> int:
        before = bytes_held()
        try:
            return self._steps(sources, world, asked_from=asked_from)
        except UserError as error:
            # a damaged row is met by one rank alone: the others print this in place of a broken connection
            if world.size > 1:
                note_failure(self.run_dir, rank=world.rank, text=f"error: {error}")
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            give_back(error)
            ran_out = what_ran_out(error)
        # not while the exception is handled: it holds what ran out
        said = told_of_memory(sources, self.run_dir, world, before=before, said=ran_out)
        if world.size > 1:
            note_failure(self.run_dir, rank=world.rank, text=f"error: {said}")
        raise UserError(said)

    def _steps(self, sources: Sources, world: World, *, asked_from: float) -> int:
        run = build_run(sources, world, self.run_dir, self.listeners, has_panel=self._has_panel)
        if world.is_first:
            forget_requests(self.run_dir, before=asked_from)
        try:
            return train(run)
        except Exception as error:
            # of several ranks the first failure is told by what started them
            if world.size == 1:
                # a full disk has no room for it either
                with contextlib.suppress(OSError):
                    note_end(self.run_dir, error)
            raise

    def _ranks(self, num_devices: int) -> Callable[[], int]:
        """Starts the ranks and waits for them; what can be wrong is told first, once, and by no rank."""
        world_size = self.cfg.world_size
        local_share(os.environ, world_size=world_size, num_devices=num_devices)
        open_sources(self.cfg, self.run_dir)
        return lambda: run_job(self.cfg, self.run_dir, world_size=world_size, num_devices=num_devices)
