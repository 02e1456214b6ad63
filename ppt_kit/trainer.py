"""UnifiedTrainer: one loop, whether this is one process in a notebook or one rank of many."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm.auto import tqdm

from ppt_kit import engine, launch
from ppt_kit.augment.augmenter import Augmenter
from ppt_kit.checkpoint import BackgroundWriter, load_model, load_resume, save_model, save_resume
from ppt_kit.checks import check_values, domain_names
from ppt_kit.config import from_mapping
from ppt_kit.data.dataset import MultiTrajDataset, load_dataset
from ppt_kit.data.loader import BatchPlan, Loader, to_device
from ppt_kit.data.normalizer import check_same_source, fit_normalizer, near_constant
from ppt_kit.errors import UserError
from ppt_kit.models.policy import MODALITIES, PPTPolicy, build_policy
from ppt_kit.models.pretrained import load_trunk
from ppt_kit.signals import StopSignals
from ppt_kit.spec import Spec
from ppt_kit.tracking import METRICS, MirrorOptions, Tracker, bar_pace, fingerprint_of, provenance

log = logging.getLogger(__name__)

DEBUG_EPOCHS, DEBUG_EPOCH_ITERS = 2, 5


@dataclass
class _SinceRow:
    """What happened since the last row of metrics.jsonl."""

    past: list[float] = field(default_factory=list)  # losses before the run was resumed, the ranks' means
    losses: list[torch.Tensor] = field(default_factory=list)  # () each, on the device, this rank's
    began: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    augmenting: float = 0.0
    saving: float = 0.0
    validating: float = 0.0

    def all_losses(self, ppt: engine.Engine) -> list[float]:
        """The ranks' mean of every step; waits for the device."""
        if not self.losses:
            return list(self.past)
        return self.past + ppt.mean_over_ranks(torch.stack(self.losses)).tolist()

    def clear(self) -> None:
        """A row was written."""
        self.past, self.losses = [], []
        self.began = time.perf_counter()
        self.waited = self.augmenting = self.saving = self.validating = 0.0


@dataclass
class _Run:
    """One run while it trains."""

    ppt: engine.Engine
    tracker: Tracker
    plan: BatchPlan
    train_set: MultiTrajDataset
    val_set: MultiTrajDataset | None
    augment: Augmenter  # of training batches only
    steps_per_epoch: int | None  # None: an epoch is a pass
    total_steps: int
    card: dict
    since: _SinceRow
    best: tuple
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    left_rows: list[dict] = field(default_factory=list)  # written by the writer's thread, not yet told
    loss: float = float("nan")
    val_loss: float = float("nan")
    saved_at: float = field(default_factory=time.monotonic)

    def epoch_of(self, step: int) -> int:
        """From 0, of the optimizer step `step`, from 0."""
        return step // self.steps_per_epoch if self.steps_per_epoch else self.plan.locate(step)[0]

    def tell(self, listeners: list[Callable[[dict], None]], *rows: dict) -> None:
        """Hands rows to the listeners, those that the writer's thread left first; always from the training thread."""
        while self.left_rows:
            rows = (self.left_rows.pop(0), *rows)
        for row in rows:
            for listener in listeners:
                listener(row)

    def minutes_since_save(self) -> float:
        """On rank 0, which decides for all; elsewhere never due."""
        return (time.monotonic() - self.saved_at) / 60 if self.ppt.world.is_first else 0.0


class UnifiedTrainer:
    """Trains the policy of a configuration.

    Constructing one touches no file, device or global, so two live in one kernel.

    Args:
        cfg: what `ppt_kit.load_config` gives, or part of it: missing keys have the schema's defaults.
        mode: "single", "distributed" or "auto"; "auto" leaves it to cfg.train_mode.
    Attributes:
        run_dir: <output_dir>/<domains joined by +>/<suffix>.
        listeners: called with every row that metrics.jsonl gets; live plots hook in here.
    Raises:
        UserError: the configuration is not valid, or the mode is unknown.
    """

    def __init__(self, cfg: DictConfig, mode: str = "auto"):
        if mode not in ("single", "distributed", "auto"):
            raise UserError(f"mode={mode!r}: takes single, distributed or auto.")
        self.cfg = from_mapping(cfg)
        check_values(self.cfg)
        self.mode = self.cfg.train_mode if mode == "auto" else mode
        if self.cfg.suffix is None:
            OmegaConf.update(self.cfg, "suffix", datetime.now().strftime("%Y%m%d-%H%M%S"))
        self.run_dir = Path(self.cfg.output_dir) / "+".join(domain_names(self.cfg.domains)) / self.cfg.suffix
        self.listeners: list[Callable[[dict], None]] = []
        self._started = time.time()

    def run(self) -> int:
        """Trains in the mode that configuration and environment ask for; the exit code, 0 when all went well."""
        num_devices = launch.num_visible_devices()
        what = launch.decide(self.mode, world_size=self.cfg.world_size, env=os.environ, num_devices=num_devices)
        if what == "single":
            if self.cfg.world_size > 1:
                log.warning(
                    "world_size=%d, but one process trains (train_mode=%s, %d devices visible). Type train_mode=distributed for %d.",
                    self.cfg.world_size, self.mode, num_devices, self.cfg.world_size,
                )  # fmt: skip
            return self.run_single_gpu()
        if what == "rank":
            return self.run_distributed()
        return self._run_ranks(num_devices)

    def run_single_gpu(self) -> int:
        """Trains in this process, on its GPU or its CPU; 0, or 128 + the signal that stopped it."""
        data = self._check()
        return self._train(engine.join_world(), *data)

    def run_distributed(self) -> int:
        """Trains as one rank of a launched job (RANK, LOCAL_RANK and WORLD_SIZE are set); as `run_single_gpu`."""
        launch.end_with_parent()
        launch.watch_launchers()
        data = self._check()
        world = self._setup_distributed(int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"]))
        try:
            return self._train(world, *data)
        except UserError:
            raise
        except Exception:
            # a survivor's broken connection must not be the last thing on the screen: the first failure is
            launch.tell_first_failure(self.run_dir / "failures", rank=world.rank, started=self._started)
            os._exit(1)  # leaving the group politely would wait for ranks that are gone
        finally:
            self._cleanup_distributed()

    def _setup_distributed(self, local_rank: int, world_size: int) -> engine.World:
        self._world = engine.join_world(
            rank=int(os.environ.get("RANK", local_rank)),
            local_rank=local_rank,
            world_size=world_size,
            rendezvous_timeout_s=self.cfg.rendezvous_timeout_s,
        )
        self.run_dir = Path(engine.from_first(str(self.run_dir)))  # the ranks' clocks may give different suffixes
        return self._world

    def _cleanup_distributed(self) -> None:
        engine.leave_world(self._world)

    def _run_ranks(self, num_devices: int) -> int:
        """Starts the ranks and waits for them; they get their configuration from a file beside the run folder.

        Not in it: which folder that is, is rank 0's to say, and on another node the clock may have named another one.
        """
        launch.local_share(os.environ, world_size=self.cfg.world_size, num_devices=num_devices)
        self._check()
        self.run_dir.parent.mkdir(parents=True, exist_ok=True)
        name = f".launch-{self.run_dir.name}-"
        with tempfile.NamedTemporaryFile("w", dir=self.run_dir.parent, prefix=name, suffix=".yaml") as handed:
            OmegaConf.save(self.cfg, handed)
            handed.flush()
            code = launch.run_ranks(Path(handed.name), world_size=self.cfg.world_size, num_devices=num_devices)
        first = launch.first_failure(self.run_dir / "failures", started=self._started)
        if code and first:
            print(first, file=sys.stderr)
        return code

    def _check(self) -> tuple[MultiTrajDataset, MultiTrajDataset | None]:
        """Everything that can be wrong before a file is written; the training and the validation set, opened."""
        engine.check_settings(self.cfg)
        if (self.run_dir / METRICS).exists() and self.cfg.train.resume == "never":
            raise UserError(
                f"{self.run_dir} holds a run already. Go on with it by train.resume=auto, or choose another suffix=…."
            )
        there = next(
            folder for folder in (self.run_dir.absolute(), *self.run_dir.absolute().parents) if folder.exists()
        )
        if not os.access(there, os.W_OK):
            raise UserError(
                f"output_dir={self.cfg.output_dir}: {there} cannot be written to. Set output_dir to a folder of yours."
            )
        for other in (self.cfg.train.pretrained_dir, self.cfg.normalizer.path):
            if other:
                load_model(other)
        train_set = load_dataset(self.cfg, split="train", modalities=MODALITIES)
        self._augmenter(train_set)
        validates = self.cfg.train.val_interval > 0 and self.cfg.dataset.val_ratio > 0
        if not validates:
            return train_set, None
        return train_set, load_dataset(self.cfg, split="val", modalities=MODALITIES, stores=train_set.stores)

    def _write_config(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.cfg, self.run_dir / "config.yaml")

    # ---------------------------------------------------------------- one run, straight down

    def _train(self, world: engine.World, train_set: MultiTrajDataset, val_set: MultiTrajDataset | None) -> int:
        cfg = self.cfg
        stats = self._normalizer(train_set)
        policy = self._build_policy(train_set, stats)
        plan = BatchPlan(
            len(train_set), cfg.batch_size, world_size=world.size, accumulation=cfg.gradient_accumulation_steps,
            seed=cfg.seed, mixture=_mixture(cfg.domains, train_set),
        )  # fmt: skip
        ppt = engine.Engine(policy, cfg, world)
        saved = self._resume(ppt, stats)
        stats = saved.get("normalizer", stats)
        if saved:
            plan = replace(plan, origin=(ppt.step, *saved["position"]))
        steps_per_epoch, total_steps = self._steps(plan)
        ppt.total_steps = total_steps
        if saved:
            ppt.schedule = tuple(saved["schedule"])
        if saved and saved["global_batch"] != plan.global_batch:
            _, ppt.total_steps = self._steps(
                replace(plan, batch_size=saved["global_batch"], world_size=1, accumulation=1)
            )
            ppt.change_total_steps(total_steps)
        if world.is_first:
            self._write_config()
        mirrors = MirrorOptions(
            wandb_mode="disabled" if cfg.debug else cfg.wandb.mode, wandb_project=cfg.wandb.project,
            wandb_id=saved.get("wandb_id"), settings=OmegaConf.to_container(cfg), tensorboard=cfg.tensorboard,
        )  # fmt: skip
        tracker = Tracker(
            self.run_dir, active=world.is_first, job_name=cfg.job_name, mirrors=mirrors, resumed_step=ppt.step
        )
        self._say_start(tracker, train_set, policy=policy, stats=stats, plan=plan, total_steps=total_steps, ppt=ppt)
        run = _Run(
            ppt=ppt, tracker=tracker, plan=plan, train_set=train_set, val_set=val_set, augment=self._augmenter(train_set), steps_per_epoch=steps_per_epoch,
            total_steps=total_steps, card=self._card(train_set, policy=policy, stats=stats), since=_SinceRow(past=saved.get("losses", [])),
            best=tuple(saved.get("best", (float("inf"), None))),
            loss=saved.get("loss", float("nan")),
            val_loss=saved.get("val_loss", float("nan")),
        )  # fmt: skip
        code = 1
        if ppt.step >= total_steps:
            log.info("nothing left to train: %s is at step %d of %d", self.run_dir, ppt.step, total_steps)
            tracker.close()
            return 0
        if saved and saved["global_batch"] != plan.global_batch:
            log.warning(
                "the global batch was %d and is %d now: data and learning rate go on where they were",
                saved["global_batch"],
                plan.global_batch,
            )
        try:
            with torch.autograd.set_detect_anomaly(cfg.debug), StopSignals() as self._signals:
                code = self._loop(run)
        finally:
            run.writer.wait()
            tracker.close(exit_code=code)
            if code > 1:
                engine.barrier()  # no rank leaves while another still closes its files: the launcher ends what is left
        return code

    def _loop(self, run: _Run) -> int:
        cfg, ppt, since = self.cfg, run.ppt, run.since
        device, first = ppt.world.device, ppt.step
        loader = Loader(
            run.train_set,
            run.plan,
            rank=ppt.world.rank,
            first_step=first,
            last_step=run.total_steps,
            pin=device.type == "cuda",
        )
        with tqdm(
            total=run.total_steps,
            initial=first,
            desc="training",
            unit="step",
            disable=not ppt.world.is_first,
            **bar_pace(),
        ) as bar:
            asked = time.perf_counter()
            for step, micro_batches in loader:
                since.waited += time.perf_counter() - asked
                began = time.perf_counter()
                batches = [run.augment(to_device(batch, device)) for batch in micro_batches]
                since.augmenting += time.perf_counter() - began
                since.losses.append(ppt.train_step(batches))
                done, last = step + 1, step + 1 == run.total_steps
                ends_epoch = run.epoch_of(done) != run.epoch_of(step) or last
                epoch = run.epoch_of(step) + 1
                bar.update()
                run.tell(self.listeners)
                stopped, due = ppt.any_rank(
                    self._signals.asked is not None,
                    run.minutes_since_save() >= (cfg.train.save_every_minutes or math.inf),
                )
                # every log_interval steps: the only place where the host waits for the device
                if done % cfg.log_interval == 0 or last:
                    self._row(run, step=done, epoch=epoch)
                    bar.set_postfix(loss=f"{run.loss:.4f}", refresh=False)
                # at the end of an epoch: validate
                if ends_epoch and run.val_set is not None and (epoch % cfg.train.val_interval == 0 or last):
                    paused = time.perf_counter()
                    run.val_loss = ppt.eval_loss(self._val_batches(run.val_set, ppt))
                    run.tell(self.listeners, run.tracker.row("val", step=done, epoch=epoch, loss=run.val_loss))
                    log.info(
                        "epoch %d/%d  loss %.4f  val %.4f",
                        epoch,
                        run.epoch_of(run.total_steps - 1) + 1,
                        run.loss,
                        run.val_loss,
                    )
                    since.validating += time.perf_counter() - paused
                # at the end of save_interval epochs, every save_every_minutes, before a stop: save
                numbered = ends_epoch and (epoch % cfg.save_interval == 0 or last)
                if numbered or due or stopped:
                    self._save(run, step=done, epoch=epoch, numbered=numbered)
                if stopped and not last:
                    return self._stop(run, step=done)
                asked = time.perf_counter()
        run.writer.wait()
        if run.writer.failure is not None:
            raise run.writer.failure
        run.tell(self.listeners, run.tracker.row("end", step=run.total_steps, reason="finished"))
        log.info("finished after %d steps: %s", run.total_steps, self.run_dir)
        return 0

    def _row(self, run: _Run, *, step: int, epoch: int) -> None:
        ppt, since = run.ppt, run.since
        losses = since.all_losses(ppt)
        self._refuse_nan(run, losses, last_step=step)
        run.loss = sum(losses) / len(losses)
        count = max(1, len(since.losses))
        seconds = max(1e-9, time.perf_counter() - since.began - since.saving - since.validating)
        timing = {name: round(value / count, 6) for name, value in ppt.seconds.items()}
        run.tell(
            self.listeners,
            run.tracker.row(
                "train", step=step, epoch=epoch, loss=run.loss, lr=ppt.learning_rate(step - 1), grad_norm=ppt.gradient_norm(),
                samples_per_s=round(count * run.plan.global_batch / seconds, 2), steps_per_s=round(count / seconds, 4),
                data_wait_s=round(since.waited / count, 6), augment_s=round(since.augmenting / count, 6), **timing, save_s=round(since.saving, 6), skipped=ppt.skipped,
            )
        )  # fmt: skip
        ppt.seconds = dict.fromkeys(ppt.seconds, 0.0)
        since.clear()

    def _refuse_nan(self, run: _Run, losses: list[float], *, last_step: int) -> None:
        """Writes down which windows gave a loss that is not finite, and stops.

        Raises:
            FloatingPointError: one is not finite. On every rank, before anything is saved.
        """
        bad = [index for index, loss in enumerate(losses) if not math.isfinite(loss)]
        if not bad:
            return
        step = last_step - len(losses) + bad[0]  # from 0
        windows = run.plan.step_windows(step).tolist()
        path, in_data = self.run_dir / f"nan_step_{step + 1}.json", run.train_set.not_finite(windows)
        if run.ppt.world.is_first:
            told = {
                "step": step + 1,
                "loss": str(losses[bad[0]]),
                "windows": windows,
                "not_finite_in_the_data": in_data,
            }
            path.write_text(json.dumps(told, indent=1))
            run.tracker.row("end", step=step + 1, reason="the loss is not finite")
        why = (
            f"In the data: {in_data[0]}"
            if in_data
            else "The data is finite: lower optimizer.lr, or look at those windows."
        )
        raise FloatingPointError(
            f"the loss of step {step + 1} is {losses[bad[0]]}; its windows are in {path}. The checkpoints are from before. "
            f"{why} train.on_nan=skip leaves such batches out."
        )

    def _save(self, run: _Run, *, step: int, epoch: int, numbered: bool) -> None:
        """Copies the state to host memory; a thread writes model.pth, model_{epoch}.pth and resume/ from there."""
        began = time.perf_counter()
        ppt, cfg = run.ppt, self.cfg
        losses = run.since.all_losses(ppt)
        self._refuse_nan(run, losses, last_step=step)
        loss = sum(losses) / len(losses) if losses else run.loss
        state = ppt.state()
        run.saved_at = time.monotonic()
        if state is not None:
            measured = run.val_loss if cfg.train.best_metric == "val_loss" else loss
            if cfg.train.best_metric and numbered and measured < run.best[0]:
                run.best = (measured, epoch)
            content = {"policy": state["weights"], "ema": state["averaged"], "step": step, "epoch": epoch, **run.card}
            onward = {
                "engine": state, "position": list(run.plan.locate(step)), "global_batch": run.plan.global_batch, "losses": losses, "best": list(run.best), "schedule": list(ppt.schedule), "wandb_id": run.tracker.wandb_id,
                "loss": run.loss,
                "val_loss": run.val_loss,
                "config": run.card["config"], "normalizer": run.card["normalizer"], "generators": {"torch": torch.get_rng_state()},
            }  # fmt: skip
            row = {"step": step, "epoch": epoch, "loss": loss, "val_loss": run.val_loss}
            best_epoch = run.best[1]

            def write() -> None:
                path = save_model(
                    self.run_dir, content, epoch=epoch if numbered else None, keep_last=cfg.train.last_k_checkpoints,
                    keep_epoch=best_epoch, safetensors=cfg.train.safetensors,
                )  # fmt: skip
                run.left_rows.append(run.tracker.row("checkpoint", **row, path=str(path)))
                run.tracker.sync()
                save_resume(self.run_dir, onward)
                log.info("saved %s", path)

            run.writer.submit(write)
        run.since.saving += time.perf_counter() - began

    def _stop(self, run: _Run, *, step: int) -> int:
        run.writer.wait()
        number = engine.from_first(self._signals.asked or signal.SIGTERM)
        name = signal.Signals(number).name
        failed = engine.from_first(run.writer.failure and str(run.writer.failure))
        if failed:
            run.tell(self.listeners, run.tracker.row("end", step=step, reason=f"{name}, not saved: {failed}"))
            log.error("stopped by %s after step %d, but the state could not be saved: %s", name, step, failed)
            return 1
        run.tell(self.listeners, run.tracker.row("end", step=step, reason=name))
        log.info(
            "stopped by %s after step %d, saved; go on with train.resume=auto suffix=%s", name, step, self.cfg.suffix
        )
        return 128 + int(number)

    def _resume(self, ppt: engine.Engine, stats: dict) -> dict:
        """Takes the newest state into the engine; {} when the run starts anew. On every rank, or an error on every rank."""
        if self.cfg.train.resume == "never":
            return {}
        saved, problem = None, None
        if ppt.world.is_first:
            try:
                saved = load_resume(self.run_dir)
                if saved is not None:
                    self._check_same(saved["config"])
                    check_same_source(saved["normalizer"], stats, any_dataset=self.cfg.normalizer.any_dataset)
            except UserError as error:
                problem = str(error)
        problem = engine.from_first(problem)
        if problem:
            raise UserError(problem)
        if not engine.from_first(saved is not None):
            log.info("nothing to resume in %s: starting", self.run_dir)
            return {}
        try:
            ppt.load_state(saved["engine"] if saved else None)
        except ValueError as error:
            raise UserError(f"{self.run_dir}: {error}. Resume with the configuration it was trained with.") from None
        if saved:
            torch.set_rng_state(saved["generators"]["torch"])
        extra = (
            {
                name: saved[name]
                for name in (
                    "losses",
                    "best",
                    "wandb_id",
                    "loss",
                    "val_loss",
                    "position",
                    "global_batch",
                    "normalizer",
                    "schedule",
                )
            }
            if saved
            else None
        )
        return engine.from_first(extra)

    def _check_same(self, stored: dict) -> None:
        """What decides the data and the weights must not change between the parts of a run."""
        now = OmegaConf.to_container(self.cfg, resolve=True)
        assert isinstance(now, dict)
        for part in ("domains", "dataset", "normalizer", "augment", "policy", "seed"):
            here, there = (_deciding(part, config[part]) for config in (now, stored))
            if here != there:
                raise UserError(
                    f"{part} is {here} here and {there} in {self.run_dir}: the run would not go on as it began. Set it back, or choose another suffix."
                )

    def _val_batches(self, dataset: MultiTrajDataset, ppt: engine.Engine) -> Iterator[tuple[dict, int]]:
        plan = BatchPlan(len(dataset), self.cfg.batch_size, world_size=ppt.world.size)
        order = torch.arange(len(dataset)).numpy()
        loader = Loader(dataset, plan, rank=ppt.world.rank, first_step=0, last_step=plan.steps_per_pass, pin=False)
        for step in range(plan.steps_per_pass):
            (batch,) = loader.batches(step, order)
            yield to_device(batch, ppt.world.device), min(plan.global_batch, len(dataset) - step * plan.global_batch)

    def _steps(self, plan: BatchPlan) -> tuple[int | None, int]:
        """(optimizer steps an epoch, None when an epoch is a pass; in all)."""
        train, per_epoch, epochs = self.cfg.train, self.cfg.train.epoch_iters, self.cfg.train.total_epochs
        if self.cfg.debug:
            per_epoch, epochs = min(per_epoch or plan.steps_per_pass, DEBUG_EPOCH_ITERS), min(epochs, DEBUG_EPOCHS)
        total = per_epoch * epochs if per_epoch else plan.steps_until(epochs)
        return per_epoch, min(total, train.total_iters) if train.total_iters else total

    def _normalizer(self, dataset: MultiTrajDataset) -> dict:
        """The statistics that the configuration asks for: fitted, or another run's."""
        asked = self.cfg.normalizer
        stats = fit_normalizer(
            dataset,
            mode=asked.mode,
            per_key=asked.per_key,
            per_domain=asked.per_domain,
            leave_alone=list(asked.leave_alone),
        )
        if not asked.path:
            return stats
        stored = load_model(asked.path)["normalizer"]
        check_same_source(stored, stats, any_dataset=asked.any_dataset)
        return {name: stored[name] for name in stats}

    def _augmenter(self, dataset: MultiTrajDataset) -> Augmenter:
        return Augmenter(self.cfg.augment, {name: _spec_of(dataset, name) for name in dataset.domains})

    def _build_policy(self, dataset: MultiTrajDataset, stats: dict) -> PPTPolicy:
        cfg = self.cfg
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            policy = build_policy(cfg, dataset.shapes)
        policy.set_normalizer(stats)
        policy.trunk.recompute = cfg.activation_checkpointing
        if cfg.train.pretrained_dir:
            content = load_model(cfg.train.pretrained_dir)
            try:
                load_trunk(policy, content.get("ema") or content["policy"], freeze=cfg.train.freeze_trunk)
            except ValueError as error:
                raise UserError(f"train.pretrained_dir={cfg.train.pretrained_dir}: {error}") from None
        return policy

    def _card(self, dataset: MultiTrajDataset, *, policy: PPTPolicy, stats: dict) -> dict:
        """What a checkpoint carries beside its weights."""
        return {
            "config": OmegaConf.to_container(self.cfg, resolve=True),
            "shapes": policy.shapes,
            "normalizer": stats,
            "sources": {name: dataset.describe_source(name) for name in dataset.domains},
        }

    def _say_start(
        self,
        tracker: Tracker,
        dataset: MultiTrajDataset,
        *,
        policy: PPTPolicy,
        stats: dict,
        plan: BatchPlan,
        total_steps: int,
        ppt: engine.Engine,
    ) -> None:
        cfg, world = self.cfg, ppt.world
        if not world.is_first:
            return
        origin = provenance({name: fingerprint_of(store.path) for name, store in dataset.stores.items()})
        OmegaConf.save(OmegaConf.create(origin), self.run_dir / "provenance.yaml")
        log.info("run folder %s", self.run_dir)
        if ppt.step:
            log.info("resumed after step %d", ppt.step)
        log.info(
            "policy %.2fM parameters, %.2fM trained; %d windows of %d episodes",
            ppt.num_parameters / 1e6, ppt.num_trained / 1e6,
            len(dataset), dataset.num_episodes,
        )  # fmt: skip
        still = near_constant(stats, dataset.layouts)
        if still:
            log.warning("hardly moving in the data, so centred but not scaled: %s", ", ".join(still))
        log.info(
            "global batch %d = batch_size %d x %d process(es) x accumulation %d; %d steps in all on %s, %s, %s",
            plan.global_batch, plan.batch_size, world.size, plan.accumulation, total_steps, world.device, cfg.precision, cfg.deepspeed,
        )  # fmt: skip


def _spec_of(dataset: MultiTrajDataset, name: str) -> Spec:
    """Sizes of what the batches hold of one domain; pictures under their stored names."""
    sizes: dict[str, Any] = {
        kind: {key: stop - start for key, (start, stop) in layout.items()}
        for kind, layout in dataset.layouts[name].items()
    }
    shape_of, columns = dataset.stores[name].shape, dataset.read_columns(name)
    sizes |= {kind: {key: shape_of(key)[1:3] for key in columns.get(kind, [])} for kind in ("rgb", "depth")}
    spec = Spec(**sizes, points=dataset.num_points, channels=dataset.point_channels, language=True)
    return spec.only(dataset.modalities)


def _deciding(part: str, value: Any) -> Any:
    """A part of a configuration without what may differ between the machines that a run goes on on."""
    free = {"dataset": ("cache_dir", "cache_gb"), "normalizer": ("path", "any_dataset")}.get(part, ())
    return {name: each for name, each in value.items() if name not in free} if isinstance(value, dict) else value


def _mixture(domains: Any, dataset: MultiTrajDataset) -> tuple[tuple[int, float], ...]:
    """(windows, weight) of each domain when `domains` gives weights, else nothing."""
    if not OmegaConf.is_dict(domains):
        return ()
    return tuple((size, float(domains[name])) for name, size in dataset.domain_sizes().items())
