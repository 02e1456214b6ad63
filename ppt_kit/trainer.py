"""UnifiedTrainer: one loop, whether this is one process in a notebook or one rank of many."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm.auto import tqdm

from ppt_kit import engine, launch
from ppt_kit.checkpoint import load_model, save_model
from ppt_kit.config import UserError, check_values, domain_names
from ppt_kit.data.dataset import MultiTrajDataset, load_dataset
from ppt_kit.data.loader import BatchPlan, Loader, to_device
from ppt_kit.data.normalizer import fit_normalizer
from ppt_kit.models.policy import MODALITIES, PPTPolicy, build_policy
from ppt_kit.models.pretrained import load_trunk
from ppt_kit.tracking import METRICS, Tracker, bar_pace, fingerprint_of, provenance

log = logging.getLogger(__name__)

DEBUG_EPOCHS, DEBUG_EPOCH_ITERS = 2, 5


class UnifiedTrainer:
    """Trains the policy of a configuration.

    Constructing one touches no file, device or global, so two live in one kernel.

    Args:
        cfg: what `ppt_kit.load_config` gives.
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
        check_values(cfg)
        self.cfg = cfg.copy()
        self.mode = cfg.train_mode if mode == "auto" else mode
        if self.cfg.suffix is None:
            OmegaConf.update(self.cfg, "suffix", datetime.now().strftime("%Y%m%d-%H%M%S"))
        self.run_dir = Path(self.cfg.output_dir) / "+".join(domain_names(cfg.domains)) / self.cfg.suffix
        self.listeners: list[Callable[[dict], None]] = []

    def run(self) -> int:
        """Trains in the mode that configuration and environment ask for; the exit code, 0 when all went well."""
        num_devices = launch.num_visible_devices()
        what = launch.decide(self.mode, world_size=self.cfg.world_size, env=os.environ, num_devices=num_devices)
        if what == "single":
            self.run_single_gpu()
        elif what == "rank":
            self.run_distributed()
        else:
            return self._run_ranks(num_devices)
        return 0

    def run_single_gpu(self) -> None:
        """Trains in this process, on its GPU or its CPU."""
        self._check()
        self._train(engine.join_world())

    def run_distributed(self) -> None:
        """Trains as one rank of a launched job (RANK, LOCAL_RANK and WORLD_SIZE are set)."""
        self._check()
        world = self._setup_distributed(int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"]))
        try:
            self._train(world)
        finally:
            self._cleanup_distributed()

    def _setup_distributed(self, local_rank: int, world_size: int) -> engine.World:
        self._world = engine.join_world(
            rank=int(os.environ.get("RANK", local_rank)), local_rank=local_rank, world_size=world_size
        )
        self.run_dir = Path(engine.from_first(str(self.run_dir)))  # the ranks' clocks may give different suffixes
        return self._world

    def _cleanup_distributed(self) -> None:
        engine.leave_world(self._world)

    def _run_ranks(self, num_devices: int) -> int:
        """Starts the ranks from the run folder's config.yaml and waits for them."""
        launch.local_share(os.environ, world_size=self.cfg.world_size, num_devices=num_devices)
        self._check()
        self._write_config()
        return launch.run_ranks(self.run_dir / "config.yaml", world_size=self.cfg.world_size, num_devices=num_devices)

    def _check(self) -> None:
        """Everything that can be wrong before a file is written."""
        engine.check_settings(self.cfg)
        if (self.run_dir / METRICS).exists():
            raise UserError(f"{self.run_dir} holds a run already. Choose another suffix=…, or move that folder away.")
        if self.cfg.train.pretrained_dir:
            load_model(self.cfg.train.pretrained_dir)
        for split in ("train", "val") if self._validates() else ("train",):
            load_dataset(self.cfg, split=split, modalities=MODALITIES)

    def _validates(self) -> bool:
        return self.cfg.train.val_interval > 0 and self.cfg.dataset.val_ratio > 0

    def _write_config(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.cfg, self.run_dir / "config.yaml")

    # ---------------------------------------------------------------- one run, straight down

    def _train(self, world: engine.World) -> None:
        cfg = self.cfg
        train_set = load_dataset(cfg, split="train", modalities=MODALITIES)
        val_set = load_dataset(cfg, split="val", modalities=MODALITIES) if self._validates() else None
        stats = fit_normalizer(train_set)
        policy = self._build_policy(train_set, stats)
        plan = BatchPlan(
            len(train_set),
            cfg.batch_size,
            world_size=world.size,
            accumulation=cfg.gradient_accumulation_steps,
            seed=cfg.seed,
        )
        steps_per_epoch, total_steps = self._steps(plan)
        ppt = engine.Engine(policy, cfg, world, total_steps=total_steps)
        if world.is_first:
            self._write_config()
        tracker = Tracker(
            self.run_dir, active=world.is_first, job_name=cfg.job_name, wandb_project=cfg.wandb.project,
            wandb_mode="disabled" if cfg.debug else cfg.wandb.mode, settings=OmegaConf.to_container(cfg),  # type: ignore[arg-type]
        )  # fmt: skip
        self._say_start(tracker, train_set, policy=policy, plan=plan, total_steps=total_steps, world=world)
        card = self._card(train_set, policy=policy, stats=stats)
        failed = True
        try:
            with torch.autograd.set_detect_anomaly(cfg.debug):
                self._loop(
                    ppt,
                    tracker,
                    plan,
                    train_set,
                    val_set,
                    card=card,
                    steps_per_epoch=steps_per_epoch,
                    total_steps=total_steps,
                )
            failed = False
        finally:
            tracker.close(exit_code=int(failed))

    def _loop(
        self,
        ppt: engine.Engine,
        tracker: Tracker,
        plan: BatchPlan,
        train_set: MultiTrajDataset,
        val_set: MultiTrajDataset | None,
        *,
        card: dict,
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        cfg, world = self.cfg, ppt.world
        loader = Loader(
            train_set,
            plan,
            rank=world.rank,
            first_step=ppt.step,
            last_step=total_steps,
            pin=world.device.type == "cuda",
        )
        losses = torch.zeros((), device=world.device)
        counted, began, waited = 0, time.perf_counter(), 0.0
        loss = float("nan")
        epochs = -(-total_steps // steps_per_epoch)
        with tqdm(total=total_steps, desc="training", unit="step", disable=not world.is_first, **bar_pace()) as bar:
            asked = time.perf_counter()
            for step, micro_batches in loader:
                waited += time.perf_counter() - asked
                losses += ppt.train_step([to_device(batch, world.device) for batch in micro_batches])
                counted, done, last = counted + 1, step + 1, step + 1 == total_steps
                bar.update()
                # every log_interval steps: the only place where the host waits for the device
                if done % cfg.log_interval == 0 or last:
                    loss = float(ppt.mean_over_ranks(losses) / counted)
                    seconds = time.perf_counter() - began
                    self._tell(
                        tracker.row(
                            "train", step=done, epoch=step // steps_per_epoch + 1, loss=loss, lr=ppt.learning_rate(step),
                            grad_norm=ppt.gradient_norm(), samples_per_s=round(counted * plan.global_batch / seconds, 2),
                            steps_per_s=round(counted / seconds, 4), data_wait_s=round(waited / counted, 6),
                        )
                    )  # fmt: skip
                    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                    losses.zero_()
                    counted, began, waited = 0, time.perf_counter(), 0.0
                # at the end of an epoch: validate, save
                if done % steps_per_epoch == 0 or last:
                    epoch = -(-done // steps_per_epoch)
                    paused = time.perf_counter()
                    if val_set is not None and (epoch % cfg.train.val_interval == 0 or last):
                        val_loss = ppt.eval_loss(self._val_batches(val_set, ppt))
                        self._tell(tracker.row("val", step=done, epoch=epoch, loss=val_loss))
                        log.info("epoch %d/%d  loss %.4f  val %.4f", epoch, epochs, loss, val_loss)
                    if epoch % cfg.save_interval == 0 or last:
                        self._save(ppt, tracker, card=card, epoch=epoch, loss=loss)
                    began += time.perf_counter() - paused  # the rate is that of training
                asked = time.perf_counter()
        log.info("finished after %d steps: %s", total_steps, self.run_dir)

    def _save(self, ppt: engine.Engine, tracker: Tracker, *, card: dict, epoch: int, loss: float) -> None:
        content = {"policy": ppt.whole_weights(), "ema": ppt.whole_averaged(), "step": ppt.step, "epoch": epoch, **card}
        if ppt.world.is_first:
            path = save_model(self.run_dir, content, epoch=epoch, keep_last=self.cfg.train.last_k_checkpoints)
            self._tell(tracker.row("checkpoint", step=ppt.step, epoch=epoch, loss=loss, path=str(path)))
            log.info("saved %s", path)
        engine.barrier()

    def _tell(self, row: dict) -> None:
        for listener in self.listeners:
            listener(row)

    def _val_batches(self, dataset: MultiTrajDataset, ppt: engine.Engine) -> Iterator[tuple[dict, int]]:
        plan = BatchPlan(len(dataset), self.cfg.batch_size, world_size=ppt.world.size)
        order = torch.arange(len(dataset)).numpy()
        loader = Loader(dataset, plan, rank=ppt.world.rank, first_step=0, last_step=plan.steps_per_pass, pin=False)
        for step in range(plan.steps_per_pass):
            (batch,) = loader.batches(step, order)
            yield to_device(batch, ppt.world.device), min(plan.global_batch, len(dataset) - step * plan.global_batch)

    def _steps(self, plan: BatchPlan) -> tuple[int, int]:
        """(optimizer steps an epoch, in all)."""
        train = self.cfg.train
        per_epoch, epochs = train.epoch_iters or plan.steps_per_pass, train.total_epochs
        if self.cfg.debug:
            per_epoch, epochs = min(per_epoch, DEBUG_EPOCH_ITERS), min(epochs, DEBUG_EPOCHS)
        total = per_epoch * epochs
        return per_epoch, min(total, train.total_iters) if train.total_iters else total

    def _build_policy(self, dataset: MultiTrajDataset, stats: dict) -> PPTPolicy:
        cfg = self.cfg
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            policy = build_policy(cfg, dataset.shapes)
        policy.set_normalizer(stats)
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
        plan: BatchPlan,
        total_steps: int,
        world: engine.World,
    ) -> None:
        cfg = self.cfg
        if not world.is_first:
            return
        origin = provenance({name: fingerprint_of(store.path) for name, store in dataset.stores.items()})
        OmegaConf.save(OmegaConf.create(origin), self.run_dir / "provenance.yaml")
        log.info("run folder %s", self.run_dir)
        log.info(
            "policy %.2fM parameters, %.2fM trained; %d windows of %d episodes",
            sum(p.numel() for p in policy.parameters()) / 1e6,
            sum(p.numel() for p in policy.parameters() if p.requires_grad) / 1e6,
            len(dataset), dataset.num_episodes,
        )  # fmt: skip
        log.info(
            "global batch %d = batch_size %d x %d process(es) x accumulation %d; %d steps in all on %s, %s, %s",
            plan.global_batch, plan.batch_size, world.size, plan.accumulation, total_steps, world.device, cfg.precision, cfg.deepspeed,
        )  # fmt: skip
