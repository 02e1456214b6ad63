"""Files of weights: model.pth, model_{epoch}.pth, which of them are kept, and the policy that is rebuilt from them.

A file is finished or absent: it is written beside, flushed to the disk, and renamed. It is read anywhere by
`torch.load(path, weights_only=True)`, whatever the ZeRO stage of the run was.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ppt_kit.checks import check_value
from ppt_kit.config import from_mapping, typed
from ppt_kit.data.normalizer import check_stats
from ppt_kit.data.view import View
from ppt_kit.errors import UserError
from ppt_kit.files import path_of, write_whole
from ppt_kit.keys import leaves_of
from ppt_kit.models.encoders import remade
from ppt_kit.models.policy import PPTPolicy, build_policy
from ppt_kit.schema import Config
from ppt_kit.tables import Table
from ppt_kit.torch_file import check_parts, checkpoints_near, read_tensors, save_tensors
from ppt_kit.tracking import rows_so_far
from ppt_kit.upgrade import upgraded_engine, upgraded_model

log = logging.getLogger(__name__)

LATEST = "model.pth"
BEST = "model_best.pth"
RESUME = "resume"
# what the files are read for
MODEL_PARTS = {
    "policy": dict, "ema": (dict, type(None)), "config": dict, "step": int, "epoch": int, "normalizer": dict,
    "sources": dict,
}  # fmt: skip
RESUME_PARTS = {
    "engine": {"weights": dict, "moments": dict, "step": int}, "config": dict, "normalizer": dict,
    "generators": {"torch": torch.Tensor},
}  # fmt: skip
OTHERS = "Use another model_*.pth of the run."
ONLY_ONE = "It is the only one: start anew with another suffix=…, train.pretrained_dir takes the trunk of model.pth."


def save_model(
    run_dir: Path,
    content: dict,
    *,
    epoch: int | None,
    keep_last: int,
    keep_epochs: Collection[int] = (),
    safetensors: bool = False,
) -> Path:
    """Writes model.pth, and model_{epoch}.pth when `epoch` is given; then deletes the oldest beyond `keep_last`.

    Args:
        content: "policy", "ema", "config", "step", "epoch", … as `load_policy` reads it.
        keep_last: model_{epoch}.pth files that stay; 0 = all.
        keep_epochs: those that stay too: the best one, and those that are still to be evaluated.
        safetensors: write model.safetensors beside it.
    Returns:
        The file to name in a log: model_{epoch}.pth, or model.pth.
    Raises:
        OSError: the disk is full or read-only; the files from before are untouched.
    """
    latest = run_dir / LATEST
    save_tensors(content, latest)
    if safetensors:
        write_whole(run_dir / "model.safetensors", lambda path: _write_safetensors(content, path))
    if epoch is None:
        return latest
    numbered = model_of(run_dir, epoch)
    write_whole(numbered, lambda path: _same_bytes(latest, path))
    prune(run_dir, keep_last=keep_last, keep_epochs=keep_epochs)
    return numbered


def prune(run_dir: Path, *, keep_last: int, keep_epochs: Collection[int] = ()) -> None:
    """Deletes the oldest model_{epoch}.pth beyond `keep_last` (0 = all stay), but never those of `keep_epochs`."""
    for old in numbered_models(run_dir)[:-keep_last] if keep_last else []:
        if old not in [model_of(run_dir, epoch) for epoch in keep_epochs]:
            old.unlink()


def model_of(run_dir: Path, epoch: int) -> Path:
    """The checkpoint of an epoch, whether it is there or not."""
    return run_dir / f"model_{epoch}.pth"


def mark_best(run_dir: Path, epoch: int) -> None:
    """Has model_best.pth be the checkpoint of an epoch: another name for the same bytes.

    Raises:
        OSError: the disk is full or read-only, or that checkpoint is gone; what was the best stays it.
    """
    write_whole(run_dir / BEST, lambda path: _same_bytes(model_of(run_dir, epoch), path))


def save_resume(run_dir: Path, content: dict) -> Path:
    """Writes resume/step_{n}.pt, then deletes all but the one before: the newest complete file is the latest.

    Args:
        content: "engine" (with its "step") and whatever else the run goes on from; tensors and plain values.
    """
    folder = run_dir / RESUME
    folder.mkdir(exist_ok=True)
    path = folder / f"step_{content['engine']['step']:09d}.pt"
    save_tensors(content, path)
    for old in resume_files(run_dir)[:-2]:
        old.unlink()
    return path


def resume_files(run_dir: Path) -> list[Path]:
    """The resume files of a run, oldest first; each is whole."""
    return sorted((run_dir / RESUME).glob("step_*.pt"))


def load_resume(run_dir: Path) -> dict | None:
    """The newest state to go on from; None when the run has none yet.

    Raises:
        UserError: the newest file is damaged; the line says how to go on from the one before.
    """
    files = resume_files(run_dir)
    if not files:
        return None
    older = f"Move it away to go on from {files[-2].name}." if len(files) > 1 else ONLY_ONE
    content = read_tensors(files[-1], needs=RESUME_PARTS, remedy=older)
    if content.get("format", 1) >= 2:
        check_parts(content, {"progress": dict}, file=files[-1], remedy=older)
    with _described(files[-1], remedy=older):
        return {**content, "engine": upgraded_engine(content["engine"], format=content.get("format", 1))}


class BackgroundWriter:
    """Writes files in a thread, one job after the other, so that training waits for copies to memory only.

    A job that fails is logged and counted; the files from before are untouched, and the next save tries again.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        # of the last job, None when it went well
        self.failure: Exception | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Starts the job when the one before has ended."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(job,), name="ppt_kit-writer")
        self._thread.start()

    def wait(self) -> None:
        """Returns when nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
            self.failure = None
        except Exception as error:
            self.failure = error
            log.error("saving failed (%s): the checkpoints from before are untouched, the next save tries again", error)


def numbered_models(run_dir: Path) -> list[Path]:
    """The model_{epoch}.pth files of a run, oldest epoch first."""
    found = {
        int(match[1]): path
        for path in run_dir.glob("model_*.pth")
        if (match := re.fullmatch(r"model_(\d+)\.pth", path.name))
    }
    return [found[epoch] for epoch in sorted(found)]


def load_model(path: str | Path, *, key: str = "") -> dict:
    """What `save_model` wrote, from a run folder (its model.pth) or one file.

    Args:
        key: of the configuration, that `path` is the value of: what is told begins with it.
    Raises:
        UserError: nothing there, a damaged file, or one that needs more than weights to be unpickled.
    """
    path, said = Path(path), f"{key}={path}" if key else str(path)
    file = path / LATEST if path.is_dir() else path
    if not file.is_file():
        raise UserError(_nothing_there(path, said))
    try:
        content = read_tensors(file, needs=MODEL_PARTS, remedy=OTHERS)
    except UserError as error:
        near = checkpoints_near(file) if key else []
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"{said}: {error}{hint}" if key else str(error)) from None
    if content.get("format", 1) >= 2:
        check_parts(content, {"views": dict}, file=file, remedy=OTHERS)
    with _described(file):
        return upgraded_model(content)


def _nothing_there(path: Path, said: str) -> str:
    """Why a path leads to no weights, and which do."""
    why = "holds no model.pth" if path.is_dir() else "no such file or folder"
    near = checkpoints_near(path)
    hint = f"Did you mean {' or '.join(near)}?" if near else "No checkpoint lies near."
    return f"{said}: {why}. {hint} Give a run folder, <output_dir>/<domain>/<suffix>, or a .pth file in one."


def load_policy(run_dir: str | Path, *, use_ema: bool = True, device: str | torch.device = "cpu") -> PPTPolicy:
    """The policy of a run, rebuilt from its folder (or from one model*.pth) alone, ready to act.

    Args:
        use_ema: averaged weights when the run kept them.
        device: where to put it.
    Returns:
        In eval mode; `policy.card` has config, step, epoch, the normaliser, and where each domain's data came from.
    Raises:
        UserError: see `load_model`; or the weights do not fit the configuration stored with them.
    """
    run_dir = path_of(run_dir, what="a run folder, as outputs/models/door-open/exp1, or a .pth file in one")
    content = load_model(run_dir)
    _check_whole(content, run_dir)
    policy = _rebuilt(content, run_dir)
    weights = content["policy"]
    if use_ema and content.get("ema") is not None:
        weights = content["ema"]
    _check_weights(weights, run_dir)
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"{run_dir}: the weights do not fit the configuration beside them: {str(error).splitlines()[-1].strip()}"
        ) from None
    check_encoders(content.get("encoders", {}), policy.encoder_fingerprints, run_dir)
    policy.card = {name: value for name, value in content.items() if name not in ("policy", "ema")}
    policy.card["path"] = str(run_dir)
    return policy.to(device).eval()


def _check_whole(content: Mapping[str, Any], run_dir: str | Path) -> None:
    """Raises UserError where parts of another program's policy were taken over, and others were not."""
    if not content.get("lacking"):
        return
    has = sorted({name.split(".")[0] for name in content["policy"]} & {"trunk", "stems", "heads"})
    raise UserError(
        f"{run_dir}: is no whole policy: {', '.join(content['lacking'])} of ppt_learning have no counterpart here "
        f"(adopted.txt says why). Train one that begins with the rest: train.pretrained_dir={run_dir} "
        f"train.pretrained_parts=[{','.join(has)}]."
    )


def check_encoders(before: Mapping[str, str], now: Mapping[str, str], run_dir: str | Path) -> None:
    """Refuses frozen encoders, whose weights no file of a run holds, with other weights than in training.

    Args:
        before, now: modality -> fingerprint.
    Raises:
        UserError: names the first that differs.
    """
    for name, weights in before.items():
        if now.get(name) != weights:
            raise UserError(
                f"{run_dir}: the frozen encoder of {name} had the weights {weights} in training and has "
                f"{now.get(name)} now. Give policy.encoders.{name} the weights it was trained with."
            )


def _rebuilt(content: dict, run_dir: str | Path) -> PPTPolicy:
    """The policy that a checkpoint describes, with random weights."""
    with _described(run_dir):
        try:
            cfg = from_mapping(content["config"])
            _check_sizes(cfg)
            specs = {name: View.from_plain(view).spec for name, view in content["views"].items()}
            check_stats(content["normalizer"], specs, source="stored beside the weights")
            with remade(content.get("architectures", {})):
                return build_policy(typed(cfg), specs)
        except UserError as error:
            places = ", ".join(f"{part} was in {place}" for part, place in content.get("parts", {}).items())
            raise UserError(f"{run_dir}: {error}" + (f" In training {places}." if places else "")) from None


def _check_sizes(cfg: DictConfig) -> None:
    """What builds a policy is in range; a run's names and seed may be of a version that took others."""
    for dotted, (kind, leaf) in leaves_of(Config).items():
        if dotted.startswith(("policy.", "dataset.")) and kind is not Any:
            value = OmegaConf.select(cfg, dotted)
            check_value(dotted, list(value) if OmegaConf.is_list(value) else value, leaf.metadata)


@contextmanager
def _described(place: str | Path, *, remedy: str = OTHERS) -> Iterator[None]:
    """Inside, what a file says of its weights is read; it can say anything, as a user can.

    Raises:
        UserError: it does not describe a policy.
    """
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        said = f"{type(error).__name__}: {(str(error) or '-').splitlines()[0]}"
        raise UserError(
            f"{place}: what stands beside the weights does not describe a policy ({said}). {remedy}"
        ) from None


def _check_weights(weights: Mapping, run_dir: str | Path) -> None:
    """Raises UserError where a policy would act by numbers that are none."""
    for name, value in weights.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(
                f"{run_dir}: {name} holds values that are not finite: the run had diverged when it was saved. "
                "Use an earlier model_*.pth."
            )


def checkpoints(run_dir: str | Path) -> Table:
    """The checkpoints of a run that exist; model.pth too, where it is another one than those with a number.

    epoch, step, path, size_mb, and the losses known when they were written.

    And success, where they were evaluated beside training: the mean over the domains, once it is known in each.
    """
    run_dir = path_of(run_dir, what="a run folder, as outputs/models/door-open/exp1")
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such folder. Give a run folder, <output_dir>/<domain>/<suffix>.")
    rows, val_loss = [], None
    written: dict[str, dict] = {}
    said = rows_so_far(run_dir)
    evaluated = [row for row in said if row.get("kind") == "eval"]
    rates = mean_success(evaluated, {row.get("domain") for row in evaluated})
    for row in said:
        if row.get("kind") == "val":
            val_loss = row.get("loss")
        if row.get("kind") == "checkpoint":
            # the last one written is the last one here
            written.pop(name := Path(row["path"]).name, None)
            written[name] = row | {"val_loss": val_loss}
    models = [(path, int(path.stem.removeprefix("model_"))) for path in numbered_models(run_dir)]
    newest, latest = next(reversed(written.values()), {}), run_dir / LATEST
    # what a stop or Save now wrote has no number
    if latest.is_file() and newest.get("path", "").endswith(LATEST):
        models.append((latest, newest["epoch"]))
    for path, epoch in models:
        row = written.get(path.name, {})
        rows.append(
            {
                "epoch": epoch, "step": row.get("step"), "loss": row.get("loss"), "val_loss": row.get("val_loss"),
                "success": rates.get(epoch) if path != latest else None,
                "size_mb": round(path.stat().st_size / 1e6, 2), "path": str(path),
            }
        )  # fmt: skip
    return Table(rows, columns=["epoch", "step", "loss", "val_loss", "success", "size_mb", "path"])


def mean_success(rows: Iterable[Mapping[str, Any]], domains: Collection[Any]) -> dict[int, float]:
    """Epoch -> mean success over the domains, of those that were evaluated in all of them.

    Args:
        rows: of metrics.jsonl, kind "eval".
    """
    rates: dict[int, dict[Any, float]] = {}
    for row in rows:
        if row.get("success") is not None:
            rates.setdefault(row["epoch"], {})[row.get("domain")] = row["success"]
    return {epoch: sum(of.values()) / len(of) for epoch, of in rates.items() if set(of) >= set(domains)}


def _write_safetensors(content: dict, path: Path) -> None:
    from safetensors.torch import save_file

    weights = content["policy"] | (content.get("ema") or {})
    save_file(
        {name: value.contiguous() for name, value in weights.items()},
        str(path),
        metadata={"step": str(content.get("step"))},
    )


def _same_bytes(source: Path, target: Path) -> None:
    try:
        # both names are only ever replaced, never written into
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
