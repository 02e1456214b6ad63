"""docs/troubleshooting.md quotes what is really printed: each mistake is made here, and its section holds the message."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from conftest import ROOT, SMALL_WORDS, latest, run_script, untrained_run
from mistakes import SIMULATOR

import ppt_kit as ppt
from ppt_kit.errors import UserError

PAGE = ROOT / "docs/troubleshooting.md"
# heading of a section -> the messages that it quotes; … in them stands for what differs from one machine to the next
QUOTED = {
    section.splitlines()[0]: re.findall(r"^```text\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    for section in PAGE.read_text().split("\n## ")[1:]
}
RUN = "outputs/models/push/exp1"
TRAIN = (*SMALL_WORDS, "domains=push", "suffix=new", "train.total_iters=2")
RANKS_THAT_DO_NOT_MEET = """
import os, socket
from ppt_kit.engine import join_world
with socket.create_server(("127.0.0.1", 0)) as taken:
    for port in (taken.getsockname()[1], 0):
        if not port:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        try:
            join_world(rank=0, world_size=2, rendezvous_timeout_s=1)
        except ValueError as error:
            print("error:", error, flush=True)
"""


ON_A_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="the limit is on the memory of the host")


def plain(text: str) -> str:
    return " ".join(text.split())


def is_quoted(said: str, quotes: list[str]) -> bool:
    return any(re.fullmatch(".*?".join(map(re.escape, plain(quote).split("…"))), plain(said)) for quote in quotes)


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A folder in which somebody works: a dataset, a trained run, a simulator of their own."""
    folder = tmp_path_factory.mktemp("house")
    run_dir = untrained_run(folder, SIMULATOR, "Push", "dataset.state_keys=[hand]", task="push")
    shutil.move(run_dir, folder / RUN)
    shutil.copy(next((folder / RUN).glob("model_*.pth")), folder / RUN / "model.pth")
    (folder / RUN / "metrics.jsonl").touch()
    return folder


class Person:
    """Who makes mistakes in a house; each gives what was printed of it."""

    def __init__(self, house, run_here, monkeypatch):
        self.house, self.run_here, self.monkeypatch = house, run_here, monkeypatch
        monkeypatch.chdir(house)

    def typed(self, script: str, *words: str, **env: str) -> str:
        for name, value in env.items():
            self.monkeypatch.setenv(name, value)
        done = self.run_here(str(ROOT / "scripts" / script), *latest(*words), cwd=self.house)
        assert done.returncode == 2, done.stderr
        return done.stderr.splitlines()[-1]

    def typed_anew(self, script: str, *words: str, **env: str) -> str:
        """In a process of its own: what a library reads once, this one may have read."""
        done = run_script(str(ROOT / "scripts" / script), *latest(*words), cwd=self.house, env=env)
        assert done.returncode == 2, done.stderr
        return done.stderr.splitlines()[-1]

    def train(self, *words: str, **env: str) -> str:
        return self.typed("train.py", *TRAIN, *words, **env)

    def evaluate(self, *words: str) -> str:
        return self.typed("eval_sim.py", f"train.pretrained_dir={RUN}", "episodes=1", "videos=0", *words)

    def meeting(self) -> list[str]:
        """What two ranks of which one comes say, at a port that is taken and at a free one."""
        if not (self.house / "meeting.txt").exists():
            done = run_script(
                sys.executable, "-c", RANKS_THAT_DO_NOT_MEET, cwd=self.house, env={"PYTHONPATH": str(ROOT)}
            )
            (self.house / "meeting.txt").write_text(done.stdout)
        return [line for line in (self.house / "meeting.txt").read_text().splitlines() if line.startswith("error: ")]

    def look(self, name: str) -> str:
        from ppt_kit.installation.report import line_of, look

        return line_of(name, look(name, timeout_s=100))


@pytest.fixture
def person(house, run_here, monkeypatch) -> Person:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return Person(house, run_here, monkeypatch)


@contextlib.contextmanager
def told():
    """Inside a cell makes a mistake; the list has what it shows."""
    said: list[str] = []
    with pytest.raises(UserError) as caught:
        yield said
    said.append(str(caught.value))


# ------------------------------------------------------------------ mistakes, by the section that tells them


def weights_of_another_program(person: Person) -> str:
    torch.save({"policy": pytest.raises, "config": {}}, person.house / "theirs.pth")
    return person.evaluate("train.pretrained_dir=theirs.pth")


def weights_of_a_later_version(person: Person) -> str:
    from ppt_kit.torch_file import FORMAT

    content = torch.load(person.house / RUN / "model.pth", weights_only=True)
    torch.save(content | {"format": FORMAT + 1}, person.house / "later.pth")
    return person.evaluate("train.pretrained_dir=later.pth")


def infinite_reading(person: Person) -> str:
    broken = shutil.copytree(person.house / "data/push.zarr", person.house / "data/broken.zarr")
    zarr.open_group(str(broken), mode="a")["data/obs/hand"][3] = np.inf
    return person.train("domains=broken", "suffix=broken", "dataset.val_ratio=0", "train.val_interval=0")


def finite_but_huge(person: Person) -> str:
    huge = shutil.copytree(person.house / "data/push.zarr", person.house / "data/huge.zarr")
    hands = zarr.open_group(str(huge), mode="a")["data/obs/hand"]
    hands[:] = 1e37 + hands[:]
    words = ("domains=huge", "suffix=huge", "normalizer.mode=identity", "dataset.val_ratio=0", "train.val_interval=0")
    with pytest.raises(FloatingPointError) as caught:
        ppt.UnifiedTrainer(ppt.load_config("quickstart", *latest(*TRAIN, *words))).run()
    return f"FloatingPointError: {caught.value}"


def hosts_without_pdsh(person: Person) -> str:
    (person.house / "hosts").write_text("node1 slots=2\nnode2 slots=2\n")
    person.monkeypatch.setenv("PATH", str(person.house))
    with told() as said:
        ppt.launch(ppt.load_config("quickstart", *TRAIN), hostfile="hosts")
    return said[0]


def ranks_without_a_gpu(person: Person) -> str:
    words = latest(*TRAIN, "suffix=on_the_cpu", "train_mode=distributed", "world_size=2", "train.total_iters=1")
    env = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = run_script(str(ROOT / "scripts/train.py"), *words, cwd=person.house, env=env)
    (said,) = [line for line in (done.stdout + done.stderr).splitlines() if "no GPU is visible" in line]
    return said


def with_two_gpus(person: Person) -> None:
    person.monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    person.monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    person.monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def more_ranks_than_gpus(person: Person) -> str:
    with_two_gpus(person)
    return person.train("train_mode=distributed", "world_size=4")


def more_gpus_than_there_are(person: Person) -> str:
    with_two_gpus(person)
    with told() as said:
        ppt.launch(ppt.load_config("quickstart", *TRAIN), num_gpus=4)
    return said[0]


def memory_that_runs_out(person: Person) -> str:
    """A limit on address space: Python, torch and DeepSpeed take 3 GB of it while they are imported."""
    folder, limit = person.house / "limited", (3_600_000_000, 3_600_000_000)
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"import resource\nresource.setrlimit(resource.RLIMIT_AS, {limit})\n")
    size = ("policy.width=256", "policy.depth=4", "policy.num_heads=4", "batch_size=16384", "dataset.pad_before=0")
    words = latest(*TRAIN, "suffix=limited", "train.total_iters=1", "train.val_interval=0", *size)
    env = {"PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
    done = run_script(str(ROOT / "scripts/train.py"), *words, cwd=person.house, env=env)
    return next(line for line in done.stderr.splitlines() if "out of memory" in line)


def port_that_is_taken(person: Person) -> str:
    return person.meeting()[0]


def ranks_that_do_not_come(person: Person) -> str:
    return person.meeting()[1]


def no_interface(person: Person) -> str:
    person.monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    person.monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    return person.look("two ranks")


def other_versions(person: Person) -> str:
    folder = person.house / "site/zarr-2.18.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: zarr\nVersion: 2.18.0\n")
    person.monkeypatch.setenv("PYTHONPATH", f"{folder.parent}:{ROOT}")
    return person.look("packages")


def little_shared_memory(person: Person) -> str:
    from ppt_kit.installation.probes import PROBES
    from ppt_kit.installation.report import line_of

    usage = shutil.disk_usage("/")
    person.monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=10_000_000))
    return line_of("shared memory", PROBES["shared memory"][0]())


def not_logged_in(person: Person) -> str:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        person.monkeypatch.delenv(name, raising=False)
    person.monkeypatch.setenv("HOME", str(person.house))
    person.monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return person.look("W&B")


def faster_than_the_policy(person: Person) -> str:
    from my_lab.sim import Push

    with told() as said:
        ppt.PolicyRunner(ppt.load_policy(RUN), Push("push"), hz=10_000).run(max_steps=2)
    return said[0]


def a_key_of_ours_in_their_file(person: Person) -> str:
    (person.house / "mine.json").write_text(json.dumps({"train_batch_size": 64}))
    return person.train("deepspeed=mine.json")


def a_key_of_nobodys(person: Person) -> str:
    (person.house / "mine.json").write_text(json.dumps({"zero_optimization": {"stage": 1, "overlap_com": True}}))
    return person.train("deepspeed=mine.json")


def a_pointer_in_place_of_data(person: Person) -> str:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (person.house / "data/lift.hdf5").write_text(pointer)
    return person.train("domains=lift")


MISTAKES = [
    ("Model checkpoint not found", lambda person: person.train("train.pretrained_dir=outputs/models/push/exp9")),
    pytest.param("No CUDA devices available", ranks_without_a_gpu, marks=pytest.mark.long),
    ("No CUDA devices available", more_ranks_than_gpus),
    ("No CUDA devices available", more_gpus_than_there_are),
    ("Unknown key, and other words that are refused", lambda person: person.train("train.total_epoch=3")),
    ("Unknown key, and other words that are refused", lambda person: person.train("precison=bf16")),
    ("Unknown key, and other words that are refused", lambda person: person.train("--config-name=quickstrat")),
    ("Dataset not found", lambda person: person.train("domains=puhs")),
    ("Dataset not found", a_pointer_in_place_of_data),
    ("The run folder holds a run already", lambda person: person.train("suffix=exp1")),
    ("EGL, and nothing to render with", lambda person: person.typed_anew("collect_demos.py", "task=reach", MUJOCO_GL="elg")),
    ("Loss is NaN", infinite_reading),
    ("Loss is NaN", finite_but_huge),
    ("Weights only load failed, and files that are refused", weights_of_another_program),
    ("Weights only load failed, and files that are refused", weights_of_a_later_version),
    ("pdsh is not installed", hosts_without_pdsh),
    ("Address already in use", port_that_is_taken),
    ("Training stuck in distributed mode", ranks_that_do_not_come),
    ("NCCL and gloo do not connect", no_interface),
    ("Version mismatch", other_versions),
    ("Shared memory, /dev/shm", little_shared_memory),
    ("W&B asks for a login", not_logged_in),
    ("The robot is faster than the policy", faster_than_the_policy),
    ("DeepSpeed configuration errors", a_key_of_ours_in_their_file),
    ("DeepSpeed configuration errors", a_key_of_nobodys),
    ("DeepSpeed configuration errors", lambda person: person.train("precision=bf16")),
    ("Import errors with old scripts", lambda person: person.train("policy.head.kind=old_lab.heads:MyHead")),
    ("Out of memory", lambda person: person.train("batch_size=1000000", "dataset.num_points=100000")),
    pytest.param("Out of memory", memory_that_runs_out, marks=[pytest.mark.long, ON_A_CPU]),
    ("Training stuck in distributed mode", lambda person: person.train("train_mode=single", RANK="0", LOCAL_RANK="0", WORLD_SIZE="2")),
    ("Training stuck in distributed mode", lambda person: person.train(RANK="0")),
    ("Evaluation refuses the seeds", lambda person: person.evaluate("seed=0")),
    ("Clouds of another size", lambda person: person.train("dataset.num_points=512")),
]  # fmt: skip


def test_every_quote_of_the_page_is_a_mistake_that_is_made():
    made = Counter(getattr(each, "values", each)[0] for each in MISTAKES)
    assert made == {section: len(quotes) for section, quotes in QUOTED.items() if quotes}


@pytest.mark.parametrize(("section", "mistake"), MISTAKES, ids=[getattr(each, "values", each)[0] for each in MISTAKES])
def test_the_page_quotes_what_is_printed(person, section, mistake):
    assert section in QUOTED, f"no section {section!r}"
    said = mistake(person)
    assert is_quoted(said, QUOTED[section]), said
