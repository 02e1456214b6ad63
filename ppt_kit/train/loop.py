"""The one training loop, straight down, and the rows, saves and stops it calls."""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm

from ppt_kit.checkpoint import BackgroundWriter, mark_best, save_model, save_resume
from ppt_kit.data.loader import to_device
from ppt_kit.engine import barrier, from_first
from ppt_kit.signals import StopSignals
from ppt_kit.tracking import bar_pace, has_bars
from ppt_kit.train.assemble import Run, training_batches, validation_batches
from ppt_kit.train.evaluations import Due, evaluations_of
from ppt_kit.train.lines import Lines
from ppt_kit.train.progress import resume_content
from ppt_kit.train.steering import STOP, Request, Requests, answer, obey

log = logging.getLogger(__name__)

# the reason in the row of kind end of a run that was asked to stop
STOPPED = "Stop"
OVER = "everything is trained, only evaluations are left: Stop ends them"


def train(run: Run) -> int:
    """Trains what is left of a run; 0, 128 + the signal that stopped it, or 1 when a stop could not be saved.

    Raises:
        FloatingPointError: a loss is not finite, and train.on_nan=stop.
        OSError: the last save failed.
    """
    loop, code = _Loop(run), 1
    try:
        with torch.autograd.set_detect_anomaly(run.cfg.debug), loop.signals:
            code = loop.go() if run.engine.step < run.total_steps else loop.evaluate_rest()
    finally:
        loop.close()
        run.tracker.close(exit_code=code)
        if code > 1 and not loop.trained:
            # no rank leaves while another still closes its files: the launcher ends what is left
            barrier()
    return code


@dataclass
class _Pace:
    """Where the time since the last row of metrics.jsonl went, in seconds of the host."""

    began: float = field(default_factory=time.perf_counter)
    steps: int = 0
    waited: float = 0.0
    augmenting: float = 0.0
    saving: float = 0.0
    validating: float = 0.0


class _Loop:
    """One run while it trains."""

    def __init__(self, run: Run):
        self.run, self.signals, self.writer = run, StopSignals(), BackgroundWriter()
        # whether the last step is done and saved, after which ranks leave one by one
        self.trained = run.engine.step >= run.total_steps
        self._evaluations = evaluations_of(run)
        self._pace, self._saved_at = _Pace(), time.monotonic()
        # the learning rate of the last step
        self._rate = 0.0
        # a request to stop came, on every rank
        self._told_to_stop = False
        # what rank 0 was asked and no rank has heard of yet
        self._inbox, self._asked = Requests(run.run_dir), list[Request]()
        self._loader = training_batches(run)
        self._lines = Lines(shown=run.engine.world.is_first and not run.has_panel and not has_bars())
        # () each, on the device, this rank's: of the steps that are not in progress.losses yet
        self._losses: list[torch.Tensor] = []
        # written by the writer's thread, not yet told
        self._left_rows: list[dict] = []
        # of that thread too: checkpoints that can be evaluated
        self._left_due: list[Due] = []

    def go(self) -> int:
        """Every step that is left; the exit code."""
        run, cfg = self.run, self.run.cfg
        with self._bar() as bar:
            asked = time.perf_counter()
            for step, micro_batches in self._loader:
                self._pace.waited += time.perf_counter() - asked
                self._step(step, micro_batches)
                bar.update()
                self._tell(*self._evaluated())
                done, epoch = step + 1, run.epoch_of(step) + 1
                stopped, due = self._heard(done, bar)
                last = done == run.total_steps
                ends_epoch = run.epoch_of(done) != run.epoch_of(step) or last
                # every log_interval steps: the only place where the host waits for the device
                if done % cfg.log_interval == 0 or last:
                    self._row(done, epoch)
                    bar.set_postfix(loss=f"{run.progress.loss:.4f}", refresh=False)
                # at the end of every val_interval epochs, and of the last: validate
                if run.sources.val_set is not None and ends_epoch and (epoch % cfg.train.val_interval == 0 or last):
                    self._validate(done, epoch)
                # at the end of save_interval and eval_interval epochs, every save_every_minutes, before a stop: save
                evaluates = ends_epoch and self._evaluates(epoch, last=last)
                numbered = evaluates or (ends_epoch and (epoch % cfg.save_interval == 0 or last))
                if numbered or due or stopped:
                    self._save(done, epoch, numbered=numbered, evaluates=evaluates)
                if stopped and not last:
                    return self._stop(done)
                asked = time.perf_counter()
        return self._finish()

    def evaluate_rest(self) -> int:
        """What a run that is trained to its end has not evaluated; the exit code."""
        run = self.run
        log.info("nothing left to train: %s is at step %d of %d", run.run_dir, run.engine.step, run.total_steps)
        return self._finish() if self._evaluations is not None and self._evaluations.waiting else 0

    def close(self) -> None:
        """Nothing is being written or evaluated from here on."""
        self.writer.wait()
        if self._evaluations is not None:
            self._evaluations.close()

    def _evaluates(self, epoch: int, *, last: bool) -> bool:
        """Whether the checkpoint of an epoch is evaluated."""
        interval = self.run.cfg.train.eval_interval
        return bool(interval) and (epoch % interval == 0 or last)

    def _evaluated(self) -> list[dict]:
        """Rows of an evaluation that has ended; begins the next, of a checkpoint that is on the disk."""
        if self._evaluations is None:
            return []
        while self._left_due:
            self._evaluations.add(self._left_due.pop(0))
        return self._evaluations.poll()

    def _bar(self) -> tqdm:
        engine, total = self.run.engine, self.run.total_steps
        hidden = not engine.world.is_first or self.run.has_panel or not has_bars()
        return tqdm(total=total, initial=engine.step, desc="training", unit="step", disable=hidden, **bar_pace())

    def _step(self, step: int, micro_batches: list[dict]) -> None:
        """The optimizer step `step`, from 0."""
        run, began = self.run, time.perf_counter()
        batches = [run.sources.augment(to_device(batch, run.engine.world.device)) for batch in micro_batches]
        self._pace.augmenting += time.perf_counter() - began
        self._rate = run.schedule.rate(step)
        self._losses.append(run.engine.train_step(batches, learning_rate=self._rate))
        self._pace.steps += 1
        run.progress.position, run.progress.skipped = run.plan.locate(step + 1), run.engine.skipped

    def _heard(self, done: int, bar: tqdm) -> tuple[bool, bool]:
        """(whether the run is to stop, whether it is to save) after the step `done`, on every rank alike."""
        engine = self.run.engine
        if engine.world.is_first:
            self._asked += self._inbox.take()
        stopped, due, asked = engine.any_rank(self.signals.asked is not None, self._is_due(), bool(self._asked))
        if not asked:
            return stopped, due
        requests = from_first(self._asked)
        self._asked = []
        rows = obey(self.run, requests, done=done)
        self._tell(*rows)
        self._loader.last_step = bar.total = self.run.total_steps
        self._told_to_stop |= any(each.what == STOP for each in requests)
        # saved at once: a run that is killed later goes on as it was asked to
        return stopped or self._told_to_stop, due or any(row["refused"] is None for row in rows)

    def _is_due(self) -> bool:
        """Whether train.save_every_minutes have passed; rank 0 decides for all."""
        minutes = (time.monotonic() - self._saved_at) / 60
        return self.run.engine.world.is_first and minutes >= (self.run.cfg.train.save_every_minutes or math.inf)

    def _tell(self, *rows: dict) -> None:
        """Hands rows to the listeners, those the writer's thread left first; always from the training thread."""
        told: list[dict] = []
        while self._left_rows:
            told.append(self._left_rows.pop(0))
        for row in (*told, *rows):
            for listener in self.run.listeners:
                listener(row)

    def _row(self, done: int, epoch: int) -> None:
        run, pace, progress = self.run, self._pace, self.run.progress
        losses = self._fetch_losses(done)
        progress.loss = sum(losses) / len(losses)
        seconds = max(1e-9, time.perf_counter() - pace.began - pace.saving - pace.validating)
        timing = {name: round(value / pace.steps, 6) for name, value in run.engine.seconds.items()}
        row = run.tracker.row(
            "train",
            step=done,
            epoch=epoch,
            loss=progress.loss,
            lr=self._rate,
            grad_norm=run.engine.gradient_norm(),
            samples_per_s=round(pace.steps * run.plan.global_batch / seconds, 2),
            steps_per_s=round(pace.steps / seconds, 4),
            data_wait_s=round(pace.waited / pace.steps, 6),
            augment_s=round(pace.augmenting / pace.steps, 6),
            **timing,
            save_s=round(pace.saving, 6),
            skipped=progress.skipped,
            total_steps=run.total_steps,
            epochs=run.num_epochs,
            **run.engine.world.memory_gb(),
        )
        self._tell(row)
        self._lines.tell(row)
        run.engine.seconds = dict.fromkeys(run.engine.seconds, 0.0)
        progress.losses, self._pace = [], _Pace()

    def _fetch_losses(self, done: int) -> list[float]:
        """The ranks' mean of every step since the last row; waits for the device.

        Raises:
            FloatingPointError: one is not finite. On every rank, before anything is saved.
        """
        run, losses = self.run, self.run.progress.losses
        if self._losses:
            losses += run.engine.mean_over_ranks(torch.stack(self._losses)).tolist()
            self._losses = []
        bad = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is not None:
            raise _told_of_nan(run, step=done - len(losses) + bad, loss=losses[bad])
        return losses

    def _validate(self, done: int, epoch: int) -> None:
        run, began = self.run, time.perf_counter()
        run.progress.val_loss = run.engine.eval_loss(validation_batches(run))
        self._tell(run.tracker.row("val", step=done, epoch=epoch, loss=run.progress.val_loss))
        epochs = run.epoch_of(run.total_steps - 1) + 1
        # before the first row of training none is known
        loss = f"loss {run.progress.loss:.4f}  " if math.isfinite(run.progress.loss) else ""
        log.info("epoch %d/%d  %sval %.4f", epoch, epochs, loss, run.progress.val_loss)
        self._pace.validating += time.perf_counter() - began

    def _save(self, done: int, epoch: int, *, numbered: bool, evaluates: bool) -> None:
        """Copies the state to host memory; a thread writes model.pth, model_{epoch}.pth and resume/ from there."""
        run, progress, began = self.run, self.run.progress, time.perf_counter()
        if self._evaluations is not None:
            # which checkpoints wait to be evaluated, and so must stay, is known once the last is on the disk
            self.writer.wait()
            self._tell(*self._evaluated())
        losses = self._fetch_losses(done)
        loss = sum(losses) / len(losses) if losses else progress.loss
        state = run.engine.state()
        self._saved_at = time.monotonic()
        if state is not None:
            metric = run.cfg.train.best_metric
            measured = progress.val_loss if metric == "val_loss" else loss
            if metric in ("loss", "val_loss") and numbered and measured < progress.best[0]:
                progress.best = (measured, epoch)
            row = {"step": done, "epoch": epoch, "loss": loss, **({"to_evaluate": True} if evaluates else {})}
            self._write(state, row, numbered=numbered)
        self._pace.saving += time.perf_counter() - began

    def _write(self, state: dict, row: dict, *, numbered: bool) -> None:
        """Starts the thread; `row` is the one of metrics.jsonl, which it completes."""
        run, train, row = self.run, self.run.cfg.train, {**row, "val_loss": self.run.progress.val_loss}
        content = {"policy": state["weights"], "ema": state["averaged"], "step": row["step"], "epoch": row["epoch"]}
        # copied now: the loop goes on while the thread writes
        onward, best_epoch = resume_content(state, run.progress, run.card), run.progress.best[1]
        kept = {best_epoch} if best_epoch is not None else set()
        kept |= self._evaluations.kept if self._evaluations is not None else set()

        def write() -> None:
            path = save_model(
                run.run_dir, content | run.card, epoch=row["epoch"] if numbered else None,
                keep_last=train.last_k_checkpoints, keep_epochs=kept, safetensors=train.safetensors,
            )  # fmt: skip
            if numbered and row["epoch"] == best_epoch:
                mark_best(run.run_dir, row["epoch"])
            self._left_rows.append(run.tracker.row("checkpoint", **row, path=str(path)))
            if "to_evaluate" in row:
                self._left_due.append(Due(row["epoch"], row["step"]))
            run.tracker.sync()
            save_resume(run.run_dir, onward)
            log.info("saved %s", path)

        self.writer.submit(write)

    def _stop(self, done: int) -> int:
        """A signal or a request asked for it, and the state is being saved."""
        self.writer.wait()
        number, name = self._why(from_first(self.signals.asked))
        failed = from_first(self.writer.failure and str(self.writer.failure))
        if failed:
            self._end(done, f"{name}, not saved: {failed}")
            log.error("stopped by %s after step %d, but the state could not be saved: %s", name, done, failed)
            return 1
        self._end(done, name)
        suffix = self.run.cfg.suffix
        log.info("stopped by %s after step %d, saved; go on with train.resume=auto suffix=%s", name, done, suffix)
        return 128 + number

    def _finish(self) -> int:
        """After the last step."""
        self.writer.wait()
        if self.writer.failure is not None:
            raise self.writer.failure
        self.trained, end = True, self.run.total_steps
        self._tell(*self._evaluated())
        if self._evaluations is not None:
            if not self._evaluations.wait(self._tell, until=self._is_told_to_stop):
                return self._stop_evaluating()
            self._evaluations.conclude()
        self._end(end, "finished")
        log.info("finished after %d steps: %s", end, self.run.run_dir)
        return 0

    def _is_told_to_stop(self) -> bool:
        """Of rank 0, once everything is trained: there is nothing else left to change."""
        for request in self._inbox.take():
            self._tell(
                answer(self.run, request, done=self.run.total_steps, refused=None if request.what == STOP else OVER)
            )
            self._told_to_stop |= request.what == STOP
        return self._told_to_stop or self.signals.asked is not None

    def _why(self, asked: int | None) -> tuple[int, str]:
        """(the signal that stopped the run, SIGTERM for a request; what it is called), of what rank 0 got."""
        number = asked or signal.SIGTERM
        return int(number), STOPPED if asked is None and self._told_to_stop else signal.Signals(number).name

    def _stop_evaluating(self) -> int:
        """A signal or a request asked for it, once everything is trained and saved."""
        assert self._evaluations is not None, "rank 0 evaluates"
        number, name = self._why(self.signals.asked)
        self._end(self.run.total_steps, name)
        log.info(
            "stopped by %s: trained to the end, %d checkpoint(s) not evaluated; go on with train.resume=auto suffix=%s",
            name, self._evaluations.waiting, self.run.cfg.suffix,
        )  # fmt: skip
        return 128 + number

    def _end(self, step: int, reason: str) -> None:
        self._tell(self.run.tracker.row("end", step=step, reason=reason))


def _told_of_nan(run: Run, *, step: int, loss: float) -> FloatingPointError:
    """Writes down which windows gave a loss that is not finite in the optimizer step `step`, from 0."""
    windows = run.plan.step_windows(step).tolist()
    path, in_data = run.run_dir / f"nan_step_{step + 1}.json", run.sources.train_set.not_finite(windows)
    if run.engine.world.is_first:
        told = {"step": step + 1, "loss": str(loss), "windows": windows, "not_finite_in_the_data": in_data}
        path.write_text(json.dumps(told, indent=1))
        run.tracker.row("end", step=step + 1, reason="the loss is not finite")
    finite = "The data is finite: lower optimizer.lr, or look at those windows."
    return FloatingPointError(
        f"the loss of step {step + 1} is {loss}; its windows are in {path}. The checkpoints are from before. "
        f"{f'In the data: {in_data[0]}' if in_data else finite} train.on_nan=skip leaves such batches out."
    )
