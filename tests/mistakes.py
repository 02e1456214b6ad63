"""What people get wrong, over every script: (script, words, what the line must name), and how each of them ends."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from conftest import ROOT, SMALL_WORDS, forget_my_lab

SIMULATOR = '''
import numpy as np


class Push:
    """A hand on a line; what it sees is a cloud at its goal."""

    def __init__(self, task, *, wind=0.0, max_steps=40):
        self.options, self.max_steps, self.description = {"task": task, "wind": wind, "max_steps": max_steps}, max_steps, task
        self.hand, self.goal = np.zeros(2, np.float32), np.zeros(2, np.float32)

    def reset(self, seed):
        self.hand[:], self.goal[:] = np.random.default_rng(seed).normal(size=(2, 2))
        return self._reading()

    def step(self, action):
        self.hand += np.clip(action, -0.2, 0.2)
        gap = np.abs(self.goal - self.hand).max()
        return self._reading(), -gap, gap < 0.05

    def expert_action(self):
        return np.clip(self.goal - self.hand, -0.2, 0.2)

    def spec(self):
        return {"simulator": "my_lab.sim:Push", **self.options}

    def render(self, size=256):
        return np.zeros((size, size, 3), np.uint8)

    def _reading(self):
        cloud = np.zeros((16, 3), np.float32)
        cloud[:, :2] = self.goal
        return {"obs/hand": self.hand, "obs/pointcloud/pos": cloud}
'''
TRAIN = [
    *SMALL_WORDS,
    "domains=push",
    "dataset.state_keys=[hand]",
    "train.total_epochs=1",
    "train.total_iters=2",
    "suffix=new",
]
EVAL = ["train.pretrained_dir=outputs/models/push/run", "episodes=1", "videos=0"]
COLLECT = ["simulator=my_lab.sim:Push", "task=pull", "episodes=1"]
CONVERT = ["source=data/push.zarr", "target=out.zarr"]
QUICK = [*TRAIN, "domains=button-press-topdown"]
# what a script needs beside the mistake, so that the mistake alone is wrong
BASE = {
    "train.py": TRAIN,
    "eval_sim.py": EVAL,
    "collect_demos.py": COLLECT,
    "convert_dataset.py": CONVERT,
    "quickstart.py": [],
}

NO_NAMES = [
    "../x",
    "/x",
    "a/b",
    "x\n",
    "two\nlines",
    "n" * 300,
    "x.zarr",
    "x.zarr.zip",
    ".",
    "..",
    "",
    "~",
    "-x",
    ".x",
    " x",
    "x\0y",
]
NAMES = [
    ("train.py", "suffix"),
    ("train.py", "job_name"),
    ("train.py", "domains"),
    ("collect_demos.py", "domain"),
    ("eval_sim.py", "eval_log_name"),
]
STRANGE_WORDS = [
    "--",
    "--trace",
    "--interactive",
    "--verbose",
    "-",
    "-seed=3",
    "-s",
    "--local_rankx=1",
    "---seed=1",
    "=3",
    "--=3",
    "seed",
    "seed=",
    "seed==1",
    ".seed=1",
    "--completion",
]
NUMBERS = [
    "seed=18446744073709551616", "seed=-1", "seed=1.5", "seed=1e3", "seed=true", "seed=٣", "seed=１２", "seed=0x10", "seed=1_000", "seed=null", "seed=[1]", "seed=nan",
]  # fmt: skip


@dataclass
class Mistake:
    """One, and what has to be in the line that answers it."""

    kind: str
    script: str
    words: list[str]
    names: str
    env: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        env = "".join(f"{name}={value} " for name, value in self.env.items())
        return f"{self.kind}: {env}{self.script} {' '.join(word[:60] for word in self.words)}"


def without(base: list[str], words: list[str]) -> list[str]:
    """The base's words less those that are about the same keys."""
    keys = {word.lstrip("-").split("=")[0] for word in words}
    return [word for word in base if word.split("=")[0] not in keys]


def mistakes() -> Iterator[Mistake]:
    """All of them."""
    for script, key in NAMES:
        for name in NO_NAMES:
            # suffix= is "null: the time it starts", domain= the task's name
            if name or key not in ("suffix", "domain"):
                yield Mistake("name", script, [f"{key}={name}"], key)
    for script in BASE:
        for word in STRANGE_WORDS:
            if script != "convert_dataset.py" or "seed" not in word:
                yield Mistake("grammar", script, [word], word.lstrip("-").split("=")[0][:3])
    for script in ("train.py", "eval_sim.py", "collect_demos.py", "quickstart.py"):
        for word in NUMBERS:
            yield Mistake("number", script, [word], "seed")
    yield from values()
    yield from files()
    yield from places()
    yield from environments()


def values() -> Iterator[Mistake]:
    """Of another kind, out of range, larger than machines, or without sense together."""
    for word in (
        "debug=7", "debug=maybe", "batch_size=0", "batch_size=1000000000", "policy.width=1000000", "policy.width=33", "policy.depth=100000", "policy.num_heads=3",
        "dataset.observation_horizon=1000000", "dataset.action_horizon=1000000", "dataset.action_horizon=0", "dataset.num_points=1000000000", "dataset.val_ratio=2",
        "dataset.point_channels=8", "dataset.crop_box=[1,2,3]", "dataset.crop_box=[1,1,1,0,0,0]", "dataset.format=zip", "dataset.state_keys=[nohand]", "dataset.action_key=torque",
        "dataset.ignored_keys=[nothing]", "dataset.filter_key=train", "dataset.episode_cnt=0", "dataset.data_ratio=0", "optimizer.lr=inf", "optimizer.lr=nan", "optimizer.lr=-1", "optimizer.betas=[1]",
        "optimizer.betas=[1,", "optimizer.betas=[a,b]", "optimizer.warmup_steps=-1", "train.ema_decay=1", "train.resume=always", "train.on_nan=hope", "train.best_metric=accuracy",
        "train.freeze_trunk=true", "train.total_epochs=0", "train_mode=both", "world_size=0", "world_size=1000000", "precision=fp8", "precision=bf16", "precision=fp16", "policy.head.kind=diffuson",
        "policy.head.kind=my_lab.heads:Absent", "policy.head.kind=nowhere.heads:Mine", "policy.stems.pointcloud.kind=null2", "policy.head.options.loss=l7", "normalizer.mode=zscore",
        "normalizer.per_key={hand: none}", "normalizer.per_key=3", "augment.rotation_deg=[1,2]", "augment.rotation_deg=[0,0,5]", "augment.state_parts={hand: spin}", "augment.state_parts=3",
        "augment.action_parts=[turn]", "augment.brightness=2", "wandb.mode=sometimes", "log_interval=0", "save_interval=0", "gradient_accumulation_steps=0", "gradient_clipping=-1",
        "polcy.width=3", "policy=3", "train=auto", "domains=[]", "domains=[push,push]", "domains={push: 0}", "domains={push: many}", "domains=3x", "rendezvous_timeout_s=0",
        "augment.blur_sigma=3 augment.blur_probability=0", "seed=1 seed=2", "seed=1 --seed=2", "dataset.num_points=100000000000000000000",
    ):  # fmt: skip
        yield Mistake(
            "value",
            "train.py",
            word.split(" ") if "augment.blur" in word or "seed" in word else [word],
            word.split("=")[0].split(".")[-1][:7],
        )
    for word in (
        "episodes=0", "episodes=1000000000000", "execute_steps=0", "execute_steps=1000", "n_procs=0", "n_procs=100000", "max_steps=0", "zero_keys=[smell]", "zero_keys=[rgb]", "task=dance?", "domains=elsewhere",
        "eval_mode=fast", "videos=-2", "seed=0", "use_ema=7", "temporal_ensembling=often", "episode=3", "train.pretrained=x",
    ):  # fmt: skip
        yield Mistake("value", "eval_sim.py", [word], word.split("=")[0][:5])
    for word in (
        "episodes=0", "episodes=1.5", "max_failures=-1", "max_steps=0", "num_points=-1", "image_size=8", "image_size=10000000", "simulator=isaac", "simulator=my_lab.sim:Pull", "simulator=nowhere.sim:X", "options=3",
        "options.gravity=1", "camera=front", "use_color=2", "save_images=maybe", "task=", "tasks=push", "overwrite=yes please",
    ):  # fmt: skip
        yield Mistake("value", "collect_demos.py", [word], word.split("=")[0].split(".")[-1][:5])
    for word in (
        "to=hdf5",
        "keys=[absent]",
        "format=zip",
        "filter_key=train",
        "to=lerobot",
        "to=lerobot fps=0",
        "target=out to=lerobot fps=10 codec=mpeg0",
        "sauce=x",
        "overwrite=2",
        "source=",
        "target=",
    ):
        yield Mistake(
            "value",
            "convert_dataset.py",
            word.split(" "),
            word.split(" ")[-1].split("=")[0][:4] if word != "to=lerobot" else "",
        )
    for word in (
        "train_mode=distributed",
        "domains=button-pres-topdown",
        "domains=a,b",
        "policy.width=33",
        "deepspeed=zero9",
        "precision=bf16",
        "train.total_epoch=3",
        "suffix=../x",
        "dataset.state_keys=[smell]",
    ):
        yield Mistake(
            "value",
            "quickstart.py",
            [word],
            word.split("=")[1 if word.startswith("d") else 0].strip("[]").split(",")[0][:5],
        )


YAMLS = {
    "list": b"- 1\n- 2\n", "open": b"policy: {width: 3\n", "tab": b"policy:\n\twidth: 3\n", "utf16": "seed: 1\n".encode("utf-16"), "binary": bytes(range(256)), "unknown": b"polcy: {width: 32}\n",
    "loop": b"defaults: [loop]\n", "absent": b"defaults: [nowhere]\nseed: 1\n", "unresolved": b"seed: ${sed}\n", "words": b"seed: many\n", "text": b"just text\n", "twice": b"seed: 1\nseed: 2\n", "number": b"3\n",
    "deep": b"policy: {stems: {state: {kind: [1]}}}\n", "group": b"policy: 3\n",
}  # fmt: skip
JSONS = {
    "list": b"[]", "number": b"3", "text": b'"zero"', "nothing": b"", "cut": b'{"zero_optimization": {"stage": 1}', "utf16": '{"zero_optimization": {"stage": 1}}'.encode("utf-16"), "seven": b'{"zero_optimization": {"stage": 7}}',
    "two": b'{"zero_optimization": {"stage": "two"}}', "minus": b'{"zero_optimization": {"stage": -1}}', "stages": b'{"zero_optimization": [1]}', "ours": b'{"train_batch_size": 8}', "unknown": b'{"zero_optimisation": {"stage": 1}}',
    "half": b'{"zero_optimization": {"stage": 1.5}}', "bucket": b'{"zero_optimization": {"stage": 1, "reduce_bucket_size": "big"}}', "breakdown": b'{"wall_clock_breakdown": 7}', "offload": b'{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "tape"}}}',
}  # fmt: skip


def files() -> Iterator[Mistake]:
    """That a word names: configurations, DeepSpeed's settings, checkpoints, datasets."""
    for name in YAMLS:
        yield Mistake("yaml", "train.py", [f"--config-name={name}", "--config-path=configs"], f"{name}.yaml")
    yield Mistake("yaml", "train.py", ["--config-name=folder", "--config-path=configs"], "folder")
    yield Mistake("yaml", "train.py", ["--config-name=nowhere"], "nowhere")
    yield Mistake("yaml", "train.py", ["--config-path=nowhere"], "nowhere")
    yield Mistake("yaml", "train.py", ["--config-name="], "config-name")
    for name in JSONS:
        yield Mistake("json", "train.py", [f"deepspeed=ds/{name}.json"], f"{name}.json")
    for word in ("deepspeed=zero4", "deepspeed=ds/nowhere.json", "deepspeed=ds", "deepspeed=ds/folder.json"):
        yield Mistake("json", "train.py", [word], word.split("=")[1])
    for place in (
        "nowhere",
        "odd/empty",
        "odd/text.txt",
        "odd/text.pth",
        "odd/none.pth",
        "data/push.zarr",
        "odd/loop",
        "",
    ):
        yield Mistake(
            "checkpoint",
            "train.py",
            [f"train.pretrained_dir={place}", "train.freeze_trunk=true"],
            place or "pretrained_dir",
        )
        yield Mistake("checkpoint", "eval_sim.py", [f"train.pretrained_dir={place}"], place or "pretrained_dir")
    for place in ("nowhere", "odd/text.pth", "odd/empty"):
        yield Mistake("checkpoint", "train.py", [f"normalizer.path={place}"], place)
    for place in (
        "nowhere",
        "odd/empty",
        "odd/text.txt",
        "odd/loop",
        "odd/none.zip",
        "odd/hollow.zarr",
        "outputs",
        "odd/pointer.hdf5",
        "odd/text.hdf5",
    ):
        yield Mistake("dataset", "convert_dataset.py", [f"source={place}"], place)
    for word in (
        "dataset_path=nowhere",
        "dataset_path=odd/text.txt",
        "dataset_path=data/push.zarr",
        "dataset_path=odd/loop",
        "domains=absent",
        "domains=push,absent",
    ):
        yield Mistake("dataset", "train.py", [word], word.split("=")[1].split(",")[-1])


def places() -> Iterator[Mistake]:
    """Where nothing can be written, or something stands that is not ours to replace."""
    long = "d" * 300
    for place in ("odd/text.txt", "odd/loop", "odd/text.txt/deeper", "/proc/models", "/dev/null", long):
        yield Mistake("place", "train.py", [f"output_dir={place}"], place[:20])
        yield Mistake("place", "collect_demos.py", [f"dataset_path={place}"], place[:20])
        yield Mistake("place", "convert_dataset.py", [f"target={place}/x.zarr"], place[:20])
    yield Mistake("taken", "train.py", ["suffix=run"], "resume=auto")
    yield Mistake("taken", "collect_demos.py", ["domain=push"], "push")
    yield Mistake("taken", "convert_dataset.py", ["target=data/copy.zarr"], "overwrite=true")
    for place in (
        "odd/text.txt",
        "odd/home",
        "outputs",
        "data",
        ".",
        "odd/mixed.zarr",
        "odd/link.zarr",
        "data/push.zarr",
        "my_lab",
    ):
        yield Mistake("overwrite", "convert_dataset.py", [f"target={place}", "overwrite=true"], place)
    for name in ("text", "home", "mixed"):
        yield Mistake("overwrite", "collect_demos.py", [f"domain={name}", "dataset_path=odd", "overwrite=true"], name)
    yield Mistake(
        "overwrite",
        "convert_dataset.py",
        ["target=data/copy.zarr", "to=lerobot", "keys=[actions,obs/hand]", "fps=10", "overwrite=true"],
        "copy",
    )


def environments() -> Iterator[Mistake]:
    """Variables that launchers and drivers set."""
    whole = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    for name, value in (
        ("RANK", "two"), ("RANK", "5"), ("RANK", "-1"), ("RANK", ""), ("LOCAL_RANK", "1.5"), ("LOCAL_RANK", "x"), ("WORLD_SIZE", "0"), ("WORLD_SIZE", "many"), ("WORLD_SIZE", "-2"), ("MASTER_PORT", "http"), ("MASTER_PORT", "99999999"),
    ):  # fmt: skip
        yield Mistake("launcher", "train.py", [], name, {**whole, name: value})
    for name, value in (
        ("RANK", "two"),
        ("WORLD_SIZE", "many"),
        ("RANK", "7"),
        ("LOCAL_WORLD_SIZE", "x"),
        ("LOCAL_WORLD_SIZE", "-1"),
        ("LOCAL_WORLD_SIZE", "0"),
    ):
        node = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", name: value}
        yield Mistake("launcher", "train.py", ["train_mode=distributed"], name, node)
    yield Mistake("launcher", "train.py", ["train_mode=single"], "train_mode=single", whole)
    yield Mistake("launcher", "train.py", ["world_size=3"], "world_size=3", whole)


# ------------------------------------------------------------------ the house they are made in


def build(folder: Path) -> None:
    """A person's folder: datasets, a trained run, a simulator, and odd things that stand in the way."""
    (folder / "my_lab").mkdir()
    (folder / "my_lab/sim.py").write_text(SIMULATOR)
    (folder / "my_lab/heads.py").write_text("NUMBER = 3\n")
    odd, configs, ds = folder / "odd", folder / "configs", folder / "ds"
    for place in (
        odd,
        configs,
        ds,
        odd / "empty",
        odd / "home",
        odd / "hollow.zarr",
        configs / "folder.yaml",
        ds / "folder.json",
    ):
        place.mkdir()
    (odd / "home/thesis.txt").write_text("years of work")
    (odd / "text.txt").write_text("not a dataset")
    (odd / "text.zarr").write_text("not a dataset")
    (odd / "text.pth").write_text("not weights")
    (odd / "text.hdf5").write_text("not HDF5")
    (odd / "none.pth").write_bytes(b"")
    (odd / "none.zip").write_bytes(b"PK\3\4 and nothing more")
    (odd / "pointer.hdf5").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (odd / "loop").symlink_to("loop")
    (odd / "home.zarr").mkdir()
    (odd / "home.zarr/thesis.txt").write_text("years of work")
    for name, data in YAMLS.items():
        (configs / f"{name}.yaml").write_bytes(data)
    for name, data in JSONS.items():
        (ds / f"{name}.json").write_bytes(data)
    for script, words in (
        ("collect_demos.py", ["simulator=my_lab.sim:Push", "task=push", "episodes=3"]),
        ("train.py", [*without(TRAIN, ["suffix="]), "suffix=run"]),
        ("convert_dataset.py", ["source=data/push.zarr", "target=data/copy.zarr"]),
    ):
        code = run(script, words, folder)
        assert code == 0, (script, words, code)
    shutil.copytree(folder / "data/push.zarr", odd / "mixed.zarr")
    (odd / "mixed.zarr/thesis.txt").write_text("years of work")
    shutil.copytree(folder / "data/push.zarr", folder / "elsewhere.zarr")
    (odd / "link.zarr").symlink_to(folder / "elsewhere.zarr")


def tree(folder: Path) -> dict[str, tuple]:
    """What lies in a folder: a name for each file and link, and what would change if it were written."""
    found: dict[str, tuple] = {}
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place, name)
            stat = path.lstat()
            found[str(path.relative_to(folder))] = (
                stat.st_ino,
                stat.st_size if path.is_file() else 0,
                stat.st_mtime_ns if path.is_file() else 0,
            )
    return found


def run(
    script: str, words: list[str], folder: Path, env: dict[str, str] | None = None, seconds: int = 90
) -> int | str | None:
    """The exit code of a script that runs in this process, in `folder`; the name of what it raised instead of leaving."""
    path, before = ROOT / "scripts" / script, (os.getcwd(), sys.argv, list(sys.path), dict(os.environ))
    os.chdir(folder)
    sys.argv, sys.path = [str(path), *words], [str(path.parent), *filter(None, sys.path)]
    os.environ.update(env or {})
    sys.dont_write_bytecode = True
    previous = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(seconds)
    try:
        runpy.run_path(str(path), run_name="__main__")
        return None
    except SystemExit as ended:
        return ended.code
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        os.chdir(before[0])
        sys.argv, sys.path = before[1], before[2]
        os.environ.clear()
        os.environ.update(before[3])
        forget_my_lab()


def _too_long(*_: object) -> None:
    raise TimeoutError("it went on")


def clear(folder: Path, before: dict[str, tuple]) -> None:
    """What a mistake has written goes, so that the next one finds the house as it was."""
    for name in sorted(tree(folder).keys() - before.keys(), reverse=True):
        path = folder / name
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def verdict(mistake: Mistake, code: int | str | None, stderr: str, *, written: list[str], lost: list[str]) -> str:
    """ "told", or the first thing that was not as it should be."""
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    if lost:
        return f"LOST {lost[:3]}"
    if isinstance(code, str):
        return f"traceback {code[:100]}"
    if code != 2:
        return f"exit code {code}"
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"{len(lines)} lines, {lines[:2]}"
    if written:
        return f"written {written[:3]}"
    if mistake.names.casefold() not in lines[0].casefold():
        return f"does not name {mistake.names!r}: {lines[0][:160]}"
    return "told"


def listed(results: list[tuple[Mistake, str]]) -> str:
    """The counts, by kind and script, and what was not told as it should be."""
    kinds: dict[str, list[str]] = {}
    for mistake, said in results:
        kinds.setdefault(f"{mistake.kind:<11} {mistake.script}", []).append(said)
    lines = [f"{name:<32} {said.count('told'):>4} of {len(said)}" for name, said in sorted(kinds.items())]
    total = sum(said == "told" for _, said in results)
    others = [f"  {mistake}\n      {said}" for mistake, said in results if said != "told"]
    return "\n".join([*lines, f"{'all':<32} {total:>4} of {len(results)}", *others, ""])


if __name__ == "__main__":
    print(json.dumps([str(mistake) for mistake in mistakes()], indent=1))
