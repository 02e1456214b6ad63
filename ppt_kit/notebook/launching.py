"""Runs with processes of their own, from a cell: `launch` starts one, `attach` finds it again."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ppt_kit.config import from_mapping
from ppt_kit.errors import UserError
from ppt_kit.files import path_of, show_short, write_text
from ppt_kit.jobs.decide import local_share, num_visible_devices, why_on_cpu
from ppt_kit.jobs.job import Job
from ppt_kit.jobs.launcher import check_reach, read_hostfile
from ppt_kit.jobs.record import FOLDER
from ppt_kit.jobs.slurm import share_of
from ppt_kit.jobs.taken import refuse_second
from ppt_kit.train.assemble import open_sources
from ppt_kit.train.trainer import UnifiedTrainer

log = logging.getLogger(__name__)

MOST_RANKS = 1024
LAUNCHERS = ("ppt_kit", "deepspeed")
# in the folder of a launch by DeepSpeed's launcher on this machine alone
HOSTS = "hosts"


class ShownJob(Job):
    """A job that a cell shows as a panel: what it does, its log and curves; Stop, Kill and Resume."""

    @cached_property
    def panel(self) -> Any:
        """The widget; one a job, in as many cells as it is shown in."""
        from ppt_kit.notebook.job_panel.panel import job_panel

        return job_panel(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        text = {"text/plain": repr(self)}
        try:
            import anywidget  # noqa: F401
        except ImportError:
            # without the notebook's packages it is one line, as in a terminal
            return text
        return {**self.panel._repr_mimebundle_(), **text}


def launch(
    cfg: DictConfig | Mapping[str, Any],
    *,
    num_gpus: int | None = None,
    launcher: str = LAUNCHERS[0],
    hostfile: str | Path | None = None,
    slurm: Mapping[str, Any] | None = None,
    detached: bool = True,
) -> ShownJob:
    """Starts a training run in processes of its own, one a GPU, and returns at once; show the job to watch it.

    Args:
        cfg: what `load_config` gives. What is wrong with it, or with its data, is told here, before anything starts.
        num_gpus: ranks, of each node where there are several; None = every GPU, or cfg.world_size. Without GPUs they
            are ranks on the CPU (gloo).
        launcher: who starts the ranks on this machine: "ppt_kit", whose supervising process is theirs, or "deepspeed".
        hostfile: `name slots=4` a line; the `deepspeed` launcher starts the ranks on these hosts, by pdsh and ssh.
            The run folder must be on a disk that they share.
        slurm: hands the run to a queue, with submitit's words: timeout_min (required), nodes, mem_gb, cpus_per_task,
            slurm_partition, slurm_account, …; {"cluster": "local", "timeout_min": 5} tries it out without a queue.
        detached: the run outlives this kernel, and `attach` or `jobs` finds it; False = it saves and leaves with it.
    Raises:
        UserError: cfg, the data, the hosts, or more ranks than GPUs; or a run trains in that folder already.
    """
    cfg = from_mapping(cfg)
    _check_choices(launcher, hostfile, slurm)
    here = _ranks_of_a_node(cfg, num_gpus, elsewhere=hostfile is not None or slurm is not None)
    total, words = _places(here, num_gpus=num_gpus, hostfile=hostfile, slurm=slurm)
    OmegaConf.update(cfg, "train_mode", "distributed")
    OmegaConf.update(cfg, "world_size", total)
    run = UnifiedTrainer(cfg)
    refuse_second(run.run_dir)
    open_sources(run.cfg, run.run_dir)
    if words["num_devices"] == 0:
        log.warning("no GPU is visible: %d rank(s) train on the CPU. %s", total, why_on_cpu(os.environ))
    if launcher == "deepspeed" and not words.get("nodes"):
        words |= {"num_devices": total, "nodes": _hosts_file(run.run_dir, total, num_devices=words["num_devices"])}
    return ShownJob.start(run.cfg, run.run_dir, world_size=total, detached=detached, own_logs=True, **words)


def attach(run_dir: str | Path) -> ShownJob:
    """The newest job that was launched in a run folder, from any process of this host, after a restart too.

    Raises:
        UserError: nothing was launched there, or from another host and into no queue.
    """
    return ShownJob.attach(run_dir)


def _places(
    here: int, *, num_gpus: int | None, hostfile: str | Path | None, slurm: Mapping[str, Any] | None
) -> tuple[int, dict[str, Any]]:
    """How many ranks in all, and the words of Job.start that say where they are."""
    if hostfile is not None:
        hosts = read_hostfile(hostfile, num_gpus=num_gpus)
        check_reach(hosts)
        return sum(hosts.values()), {"num_devices": max(hosts.values()), "nodes": str(Path(hostfile).absolute())}
    if slurm is not None:
        return share_of(slurm, num_gpus=here).total, {"num_devices": here, "nodes": dict(slurm)}
    there = num_visible_devices()
    _check_devices(num_gpus, there=there)
    return here, {"num_devices": there}


def _check_choices(launcher: str, hostfile: Any, slurm: Any) -> None:
    if launcher not in LAUNCHERS:
        raise UserError(f"launcher={launcher!r}. Give one of {', '.join(LAUNCHERS)}.")
    if slurm is not None and not isinstance(slurm, Mapping):
        raise UserError(f'slurm={show_short(slurm)}: takes submitit\'s words, e.g. slurm={{"timeout_min": 600}}.')
    if hostfile is not None:
        path_of(hostfile, what="a file of hosts, `name slots=4` a line")
    if hostfile is not None and slurm is not None:
        raise UserError("hostfile and slurm: both choose the nodes. Give one of them.")
    if slurm is not None and launcher != LAUNCHERS[0]:
        raise UserError("launcher and slurm: the queue starts the ranks. Give one of them.")


def _hosts_file(run_dir: Path, total: int, *, num_devices: int) -> str:
    """A file that names this machine alone, for `deepspeed --hostfile`.

    Raises:
        UserError: there are fewer GPUs.
    """
    local_share({}, world_size=total, num_devices=num_devices)
    path = (run_dir / FOLDER / HOSTS).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"localhost slots={total}\n")
    return str(path)


def _check_devices(given: int | None, *, there: int) -> None:
    """Raises UserError where there are GPUs, and fewer than were asked for."""
    if given is not None and 0 < there < given:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise UserError(
            f"num_gpus={given}, but {there} GPU(s) are visible"
            f"{'' if visible is None else f' (CUDA_VISIBLE_DEVICES={visible})'}. Type num_gpus={there}, or give "
            "hostfile=… or slurm={…} for other machines."
        )


def _ranks_of_a_node(cfg: DictConfig, num_gpus: int | None, *, elsewhere: bool) -> int:
    if num_gpus is None:
        return cfg.world_size if cfg.world_size > 1 or elsewhere else max(1, num_visible_devices())
    if isinstance(num_gpus, bool) or not isinstance(num_gpus, int) or not 1 <= num_gpus <= MOST_RANKS:
        raise UserError(f"num_gpus={num_gpus!r}: give a number of ranks from 1 to {MOST_RANKS}, or leave it out.")
    return num_gpus
