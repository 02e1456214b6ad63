"""What a run is built of: each file opened, each statistic fitted and each part made once, before the first step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from ppt_kit.augment.augmenter import Augmenter
from ppt_kit.checkpoint import load_model
from ppt_kit.config import typed
from ppt_kit.data.dataset import MultiTrajDataset, load_dataset
from ppt_kit.data.loader import BatchPlan, Loader, to_device
from ppt_kit.data.normalizer import check_same_source, check_stats, fit_normalizer, near_constant
from ppt_kit.engine import Engine, World, check_settings, from_first
from ppt_kit.errors import UserError
from ppt_kit.files import check_place
from ppt_kit.model_keys import can_see
from ppt_kit.models.describe import FEW, in_words
from ppt_kit.models.policy import PPTPolicy, build_policy
from ppt_kit.randomness import sample_seeds
from ppt_kit.schema import Config
from ppt_kit.sim.env import find_simulator
from ppt_kit.tracking import METRICS, PROVENANCE, MirrorOptions, Tracker, fingerprint_of, provenance
from ppt_kit.train.evaluations import check_evaluations, problem_with_simulators
from ppt_kit.train.features import check_cached, use_features
from ppt_kit.train.pretrained import begin_with
from ppt_kit.train.progress import Progress, resume
from ppt_kit.train.schedule import Schedule

log = logging.getLogger(__name__)

DEBUG_EPOCHS, DEBUG_EPOCH_ITERS = 2, 5


@dataclass
class Sources:
    """What a run reads, opened and checked; nothing is written yet.

    Attributes:
        given: the configuration as the user sees it, for what files are to hold.
        cfg: the same, typed.
        val_set: None when nothing is validated.
        augment: of training batches only.
        pretrained: what the file of train.pretrained_dir holds, until the policy has its weights.
        stats: statistics of normalizer.path; None = fitted on the training set.
    """

    given: DictConfig
    cfg: Config
    train_set: MultiTrajDataset
    val_set: MultiTrajDataset | None
    augment: Augmenter
    pretrained: dict | None
    stats: dict | None


@dataclass
class Run:
    """One run, ready for its next step.

    Attributes:
        plan: of the training batches.
        schedule: of the learning rate; it knows how many steps the run has.
        card: what a checkpoint carries beside its weights.
        progress: what a resume file holds beside the engine's state.
        listeners: called with every row of metrics.jsonl.
        borrowed: what it began with of train.pretrained_dir, in words.
        has_panel: something shows it already, so it has no bar.
    """

    run_dir: Path
    sources: Sources
    engine: Engine
    plan: BatchPlan
    schedule: Schedule
    tracker: Tracker
    card: dict
    progress: Progress
    listeners: list[Callable[[dict], None]]
    borrowed: list[str]
    has_panel: bool

    @property
    def cfg(self) -> Config:
        """The configuration, typed."""
        return self.sources.cfg

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.schedule.total_steps

    @property
    def num_epochs(self) -> int:
        """Of the whole run."""
        return self.epoch_of(self.total_steps - 1) + 1

    def epoch_of(self, step: int) -> int:
        """From 0, of the optimizer step `step`, from 0."""
        length = epoch_length(self.cfg, self.plan)
        return step // length if length else self.plan.locate(step)[0]

    def steer_rate(self, peak: float) -> None:
        """Another peak of the learning rate, from the next step on, also after a stop."""
        self.schedule = replace(self.schedule, peak=peak)
        self.progress.steered["lr"] = [self.cfg.optimizer.lr, peak]

    def steer_epochs(self, epochs: int, *, done: int) -> None:
        """Another number of epochs, after the step `done`: the learning rate goes on from where it is."""
        self.schedule = self.schedule.stretched(done, num_steps(self.cfg, self.plan, epochs=epochs))
        self.progress.schedule = self.schedule.state()
        self.progress.steered["epochs"] = [self.cfg.train.total_epochs, epochs]


def open_sources(given: DictConfig, run_dir: Path) -> Sources:
    """Reads and checks everything that can be wrong before a file is written.

    Raises:
        UserError: a setting, a folder, a checkpoint or a dataset with which the run could not begin.
    """
    cfg = typed(given)
    check_settings(cfg)
    check_folder(cfg, run_dir)
    return read_sources(given)


def read_sources(given: DictConfig) -> Sources:
    """As `open_sources`, without a look at the run folder and at DeepSpeed's settings."""
    cfg = typed(given)
    other, borrowed = cfg.train.pretrained_dir, cfg.normalizer.path
    asked = {borrowed: "normalizer.path", other: "train.pretrained_dir"}
    models = {path: load_model(path, key=key) for path, key in asked.items() if path}
    train_set = load_dataset(cfg, modalities=can_see(cfg.policy), shared=cfg.policy.modalities is None)
    check_cached(cfg, train_set.modalities)
    if cfg.dataset.env:
        # before hours of training, not at the evaluation behind them
        find_simulator(cfg.dataset.env)
    check_evaluations(cfg, train_set)
    augment = augmenter(cfg, train_set)
    validates = cfg.train.val_interval > 0 and cfg.dataset.val_ratio > 0
    return Sources(
        given=given,
        cfg=cfg,
        train_set=train_set,
        val_set=train_set.other_split("val") if validates else None,
        augment=augment,
        pretrained=models[other] if other else None,
        stats=models[borrowed]["normalizer"] if borrowed else None,
    )


def build_run(
    sources: Sources, world: World, run_dir: Path, listeners: list[Callable[[dict], None]], *, has_panel: bool = False
) -> Run:
    """Puts a run together, new or where it was left; rank 0 writes the first files of its folder.

    Args:
        has_panel: something shows the run already: there is no bar, and the screen has warnings only.

    Raises:
        UserError: the state to go on from is of another run, or the pretrained parts do not fit.
    """
    check_simulators(sources, world)
    cfg, fitted = sources.cfg, statistics(sources)
    config = cast(dict, OmegaConf.to_container(sources.given, resolve=True))
    policy, borrowed = new_policy(sources, fitted)
    use_features(policy, cfg, [each for each in (sources.train_set, sources.val_set) if each is not None], world)
    engine = Engine(policy, cfg, world)
    left = None
    if cfg.train.resume != "never":
        left = resume(
            engine, run_dir, config=config, stats=fitted, encoders=policy.encoder_fingerprints,
            modalities=policy.modalities,
        )  # fmt: skip
    before, stats = left or (None, fitted)
    plan = batch_plan(sources, world, origin=(engine.step, *before.position) if before else (0, 0, 0))
    schedule = schedule_from(cfg, plan, step=engine.step, before=before)
    if world.is_first:
        run_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(sources.given, run_dir / "config.yaml")
    tracker = start_tracker(
        cfg, run_dir, engine, settings=config, wandb_id=before.wandb_id if before else None, on_screen=not has_panel
    )
    progress = replace(
        before or Progress(), global_batch=plan.global_batch, schedule=schedule.state(), wandb_id=tracker.wandb_id
    )
    run = Run(
        run_dir=run_dir, sources=sources, engine=engine, plan=plan, schedule=schedule, tracker=tracker,
        card=card_of(sources.train_set, policy, config=config, stats=stats),
        progress=progress, listeners=listeners, borrowed=borrowed, has_panel=has_panel,
    )  # fmt: skip
    if world.is_first:
        say_start(run, before)
    return run


def check_simulators(sources: Sources, world: World) -> None:
    """Begins an episode of what checkpoints will be evaluated in, by rank 0 for all.

    Raises:
        UserError: it cannot be begun, or does not show what the policy sees. On every rank.
    """
    if not sources.cfg.train.eval_interval:
        return
    problem = problem_with_simulators(sources.cfg, sources.train_set) if world.is_first else None
    problem = from_first(problem)
    if problem:
        raise UserError(problem)


def check_folder(cfg: Config, run_dir: Path) -> None:
    """Raises UserError when the run folder is taken, or nothing can be written there."""
    if (run_dir / METRICS).exists() and cfg.train.resume == "never":
        raise UserError(
            f"{run_dir} holds a run already. Go on with it by train.resume=auto, or choose another suffix=…."
        )
    check_place(run_dir, key="output_dir")


# ---------------------------------------------------------------- data and policy


def augmenter(cfg: Config, dataset: MultiTrajDataset) -> Augmenter:
    """What changes the training batches."""
    return Augmenter(cfg.augment, dataset.specs)


def statistics(sources: Sources) -> dict:
    """The statistics that the configuration asks for: fitted on the training set, or another run's."""
    asked = sources.cfg.normalizer
    stats = fit_normalizer(sources.train_set, asked)
    if sources.stats is None:
        return stats
    check_stats(sources.stats, sources.train_set.specs, source=f"normalizer.path={asked.path}")
    check_same_source(sources.stats, stats, any_dataset=asked.any_dataset)
    return {name: sources.stats[name] for name in stats}


def new_policy(sources: Sources, stats: dict) -> tuple[PPTPolicy, list[str]]:
    """The policy at step 0: random weights of the seed, and another run's parts, which the lines tell of."""
    cfg = sources.cfg
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        policy = build_policy(cfg, sources.train_set.specs)
    policy.set_normalizer(stats)
    for _, trunk in policy.all_trunks():
        trunk.recompute = cfg.activation_checkpointing
    # taken out: a run must not hold another run's weights while it trains
    content, sources.pretrained = sources.pretrained, None
    return policy, begin_with(policy, content, cfg.train) if content is not None else []


def card_of(dataset: MultiTrajDataset, policy: PPTPolicy, *, config: dict, stats: dict) -> dict:
    """What a checkpoint carries beside its weights."""
    return {
        "config": config,
        "normalizer": stats,
        "views": {name: domain.view.plain() for name, domain in dataset.domains.items()},
        "sources": {name: domain.source() for name, domain in dataset.domains.items()},
        "encoders": policy.encoder_fingerprints,
        "architectures": policy.encoder_architectures,
        "parts": policy.foreign_parts,
    }


# ---------------------------------------------------------------- batches, and how many of them


def batch_plan(sources: Sources, world: World, *, origin: tuple[int, int, int]) -> BatchPlan:
    """Who sees which training windows when, from `origin` (step, pass, place in it) on."""
    cfg, dataset = sources.cfg, sources.train_set
    return BatchPlan(
        len(dataset), cfg.batch_size, world_size=world.size, accumulation=cfg.gradient_accumulation_steps,
        seed=cfg.seed, mixture=mixture_of(cfg.domains, dataset), origin=origin,
    )  # fmt: skip


def mixture_of(domains: Any, dataset: MultiTrajDataset) -> tuple[tuple[int, float], ...]:
    """(windows, weight) of each domain when `domains` gives weights, else nothing."""
    if not isinstance(domains, Mapping):
        return ()
    return tuple((size, float(domains[name])) for name, size in dataset.domain_sizes().items())


def training_batches(run: Run) -> Loader:
    """(step, [micro batches]) of every step that is left, in host memory."""
    world = run.engine.world
    return Loader(
        run.sources.train_set, run.plan, rank=world.rank, first_step=run.engine.step, last_step=run.total_steps,
        pin=world.device.type == "cuda",
    )  # fmt: skip


def validation_batches(run: Run) -> Iterator[tuple[dict, int]]:
    """(batch on the device, windows in it over all ranks) of a pass over the validation set."""
    world, dataset = run.engine.world, run.sources.val_set
    assert dataset is not None, "nothing is validated"
    plan = BatchPlan(len(dataset), run.cfg.batch_size, world_size=world.size)
    order = torch.arange(len(dataset)).numpy()
    loader = Loader(dataset, plan, rank=world.rank, first_step=0, last_step=plan.steps_per_pass, pin=False)
    for step in range(plan.steps_per_pass):
        (batch,) = loader.batches(step, order)
        # of the window alone: the loss is the same at every validation, and on any number of ranks
        batch["noise_seed"] = torch.from_numpy(sample_seeds(plan.seed, 0, batch["index"].numpy()))
        yield to_device(batch, world.device), min(plan.global_batch, len(dataset) - step * plan.global_batch)


def epoch_length(cfg: Config, plan: BatchPlan) -> int | None:
    """Optimizer steps that count as one epoch; None: an epoch is a pass."""
    if cfg.debug:
        return min(cfg.train.epoch_iters or plan.steps_per_pass, DEBUG_EPOCH_ITERS)
    return cfg.train.epoch_iters


def num_steps(cfg: Config, plan: BatchPlan, *, epochs: int | None = None) -> int:
    """Optimizer steps of a whole run; of another number of epochs than the configuration's when it is given."""
    length, epochs = epoch_length(cfg, plan), epochs or cfg.train.total_epochs
    if cfg.debug:
        epochs = min(epochs, DEBUG_EPOCHS)
    total = length * epochs if length else plan.steps_until(epochs)
    return min(total, cfg.train.total_iters) if cfg.train.total_iters else total


def schedule_from(cfg: Config, plan: BatchPlan, *, step: int, before: Progress | None) -> Schedule:
    """The learning rate from `step` on; of a resumed run it goes on from where it was, whatever the batch is now."""
    peak = _steered(before, "lr", cfg.optimizer.lr)
    epochs = _steered(before, "epochs", cfg.train.total_epochs)
    schedule = Schedule(peak, cfg.optimizer.warmup_steps, num_steps(cfg, plan, epochs=epochs))
    if before is None:
        return schedule
    schedule = schedule.resumed(before.schedule)
    if before.global_batch == plan.global_batch:
        return schedule
    as_it_was = replace(plan, batch_size=before.global_batch, world_size=1, accumulation=1)
    return replace(schedule, total_steps=num_steps(cfg, as_it_was, epochs=epochs)).stretched(step, schedule.total_steps)


def _steered(before: Progress | None, name: str, configured: Any) -> Any:
    """What was asked of a run while it trained, unless its configuration says something else since."""
    asked = before.steered.get(name) if before else None
    return asked[1] if asked and asked[0] == configured else configured


# ---------------------------------------------------------------- what is told


def start_tracker(
    cfg: Config, run_dir: Path, engine: Engine, *, settings: dict, wandb_id: str | None, on_screen: bool
) -> Tracker:
    """Where the rows go, from the engine's step on."""
    mirrors = MirrorOptions(
        wandb_mode="disabled" if cfg.debug else cfg.wandb.mode, wandb_project=cfg.wandb.project, wandb_id=wandb_id,
        settings=settings, tensorboard=cfg.tensorboard,
    )  # fmt: skip
    active = engine.world.is_first
    return Tracker(
        run_dir, active=active, job_name=cfg.job_name, mirrors=mirrors, resumed_step=engine.step, on_screen=on_screen
    )


def say_start(run: Run, before: Progress | None) -> None:
    """Writes down where the run comes from, and says what is about to be trained."""
    cfg, engine, plan, dataset = run.cfg, run.engine, run.plan, run.sources.train_set
    origin = provenance({name: fingerprint_of(domain.store.path) for name, domain in dataset.domains.items()})
    OmegaConf.save(OmegaConf.create(origin), run.run_dir / PROVENANCE)
    log.info("run folder %s", run.run_dir)
    if engine.step:
        log.info("resumed after step %d", engine.step)
    log.info(
        "policy %.2fM parameters, %.2fM trained; %d windows of %d episodes",
        engine.num_parameters / 1e6, engine.num_trained / 1e6, len(dataset), dataset.num_episodes,
    )  # fmt: skip
    for name, spec in list(dataset.specs.items())[:FEW]:
        numbers = ", ".join(f"{key} {width}" for key, width in spec.state.items())
        log.info("%s: sees %s%s", name, in_words(spec), f" ({numbers})" if numbers else "")
    if told_from := cast(PPTPolicy, engine.policy).cloud_origin:
        log.info("points are told from %s", told_from)
    for line in run.borrowed:
        log.info("%s", line)
    still = near_constant(run.card["normalizer"], dataset.specs)
    if still:
        log.warning("hardly moving in the data, so centred but not scaled: %s", ", ".join(still))
    log.info(
        "global batch %d = batch_size %d x %d process(es) x accumulation %d; %d steps in all on %s, %s, %s",
        plan.global_batch, plan.batch_size, plan.world_size, plan.accumulation, run.total_steps, engine.world.device,
        cfg.precision, cfg.deepspeed,
    )  # fmt: skip
    if before and before.global_batch != plan.global_batch and engine.step < run.total_steps:
        log.warning(
            "the global batch was %d and is %d now: data and learning rate go on where they were",
            before.global_batch, plan.global_batch,
        )  # fmt: skip
