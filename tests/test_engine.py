"""What the engine refuses, and that its options change the memory or the speed but not the numbers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_WORDS, latest, run_script

from ppt_kit.config import load_config, typed
from ppt_kit.engine import Engine, check_settings, join_world
from ppt_kit.errors import UserError
from ppt_kit.jobs.ranks import free_port
from ppt_kit.randomness import dropout, sample_seeds
from ppt_kit.tracking import read_metrics
from ppt_kit.train.trainer import UnifiedTrainer

TRAIN = str(ROOT / "scripts/train.py")
SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"zero_optimisation": {"stage": 1}}, "Did you mean zero_optimization"),
        (
            {"zero_optimization": {"stage": 1, "reduce_buket_size": 5}},
            "zero_optimization.reduce_buket_size.*Did you mean reduce_bucket_size",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}},
            "offload_optimizer.devise.*Did you mean device",
        ),
        ({"flops_profiler": {"enable": True}}, "Did you mean enabled"),
        ({"train_batch_size": 8}, "set batch_size"),
        ({"gradient_clipping": 1.0}, "set gradient_clipping"),
        ({"bf16": {"enabled": True}}, "set precision=bf16"),
        ({"optimizer": {"type": "Adam"}}, "optimizer.lr"),
    ],
)
def test_an_unknown_or_foreign_key_is_named_at_every_level(tmp_path, settings, says):
    (tmp_path / "mine.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=says):
        check_settings(load_config("quickstart", f"deepspeed={tmp_path / 'mine.json'}"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["precision=bf16"], "deepspeed=zero1"),
        (["precision=fp16", "deepspeed=zero1"], "needs a GPU"),
        (["compile=true", "deepspeed=zero3"], "deepspeed=zero2"),
        (["deepspeed=zero7"], "zero0, zero1, zero2, zero2_offload, zero3"),
    ],
)
def test_combinations_that_are_known_to_be_wrong_are_refused_with_the_alternative(words, says):
    if "precision=fp16" in words and torch.cuda.is_available():
        pytest.skip("a GPU can do fp16")
    with pytest.raises(UserError, match=says):
        check_settings(load_config("quickstart", *words))


def losses_with(small_cfg, name, *words):
    run = UnifiedTrainer(small_cfg(f"suffix={name}", "policy.dropout=0.2", *words))
    run.run()
    return read_metrics(run.run_dir, "train")["loss"].to_numpy()


@pytest.mark.parametrize(
    "words",
    [
        ["activation_checkpointing=true"],
        ["activation_checkpointing=true", "deepspeed=zero3"],
        ["deepspeed=zero2_offload"],
    ],
    ids=" ".join,
)
def test_saving_memory_changes_no_number(small_cfg, words):
    plain, other = losses_with(small_cfg, "plain"), losses_with(small_cfg, "other", *words)
    assert np.abs(plain / other - 1).max() < 1e-5


def test_bf16_follows_fp32_within_its_precision(small_cfg):
    plain, half = losses_with(small_cfg, "plain"), losses_with(small_cfg, "half", "precision=bf16", "deepspeed=zero1")
    assert np.abs(plain / half - 1).max() < 0.05
    assert not np.array_equal(plain, half)


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.parametrize(
    "words",
    [
        ["deepspeed=zero0"],
        ["deepspeed=zero1", "activation_checkpointing=true"],
        pytest.param(["deepspeed=zero1"], marks=pytest.mark.long),
        pytest.param(["deepspeed=zero2"], marks=pytest.mark.long),
        pytest.param(["deepspeed=zero2_offload"], marks=pytest.mark.long),
    ],
    ids=" ".join,
)
def test_a_compiled_policy_gives_the_same_losses(small_cfg, words):
    """Dropout on: its numbers are counted, so the compiler must reproduce them."""
    torch._dynamo.reset()
    plain, compiled = losses_with(small_cfg, "plain"), losses_with(small_cfg, "compiled", "compile=true", *words)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # it was compiled indeed
    assert np.abs(plain / compiled - 1).max() < 1e-4


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.long
def test_compiled_dropout_drops_the_same_elements():
    x, seeds = torch.ones(5, 7, 13), torch.from_numpy(sample_seeds(5, 9, np.arange(5)))
    compiled = torch.compile(dropout, fullgraph=True)(x, seeds, rate=0.2, stream="x")
    assert torch.equal(compiled, dropout(x, seeds, rate=0.2, stream="x"))


class OnFrozen(torch.nn.Module):
    """A trained layer on a frozen one that checkpoints leave out, as a policy's pretrained encoder."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5)).requires_grad_(False)
        self.head = torch.nn.Linear(5, 1)

    def forward(self, batch):
        return {"loss": (self.head(self.encoder.eval()(batch["x"])) - 1).square().mean()}

    def state_dict(self, *args, **kwargs):
        whole = super().state_dict(*args, **kwargs)
        return {name: value for name, value in whole.items() if not name.startswith("encoder.")}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_frozen_part_outside_the_state_dict_is_neither_saved_nor_touched_by_loading(stage):
    cfg = typed(load_config("quickstart", f"deepspeed=zero{stage}", "batch_size=8"))
    batches = [{"x": torch.randn(8, 3, generator=torch.Generator().manual_seed(i))} for i in range(6)]
    one, two = (Engine(OnFrozen(), cfg, join_world()) for _ in range(2))
    for batch in batches[:3]:
        one.train_step([batch], learning_rate=1e-2)
        two.train_step([batch], learning_rate=1e-1)
    state = one.state()
    names = {"head.weight", "head.bias"}
    assert set(state["weights"]) == set(state["averaged"]) == names
    assert all(set(moment) == names for moment in state["moments"].values())
    assert not torch.equal(two.state()["weights"]["head.weight"], state["weights"]["head.weight"])
    two.load_state(state)
    for batch in batches[3:]:
        ours, theirs = (engine.train_step([batch], learning_rate=1e-2) for engine in (one, two))
        assert torch.equal(ours, theirs)
    for part in ("weights", "averaged"):
        assert all(torch.equal(one.state()[part][name], two.state()[part][name]) for name in names)
    other = Engine(
        torch.nn.ModuleDict({"head": torch.nn.Linear(5, 1), "more": torch.nn.Linear(2, 2)}), cfg, join_world()
    )
    with pytest.raises(ValueError, match="more.bias is absent in the checkpoint"):
        other.load_state(state)


AUGMENT = (
    "augment.cloud_dropout=0.3", "augment.cloud_jitter_m=0.02", "augment.rotation_deg=[0,0,20]", "augment.translation_m=[0.1,0.1,0]",
    "augment.action_parts=[displacement,none]", "augment.state_parts.eef_pos=none",
)  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "steps"), [(2, 15), *(pytest.param(stage, 50, marks=pytest.mark.long) for stage in (0, 1, 2, 3))]
)
def test_a_batch_of_two_b_two_ranks_and_accumulation_are_the_same_mathematics(small_data, tmp_path, stage, steps):
    """Dropout and augmentation on, two domains of different sizes; relative difference of the losses below 1e-5."""
    base = [
        *SMALL_WORDS, f"deepspeed=zero{stage}", "policy.dropout=0.2", "domains=a,wide", f"dataset_path={small_data}", f"output_dir={tmp_path}",
        f"train.total_iters={steps}", "train.total_epochs=99", "train.val_interval=0", "optimizer.lr=1e-4", *AUGMENT,
    ]  # fmt: skip
    here = {"whole": ["batch_size=8"], "accumulated": ["batch_size=4", "gradient_accumulation_steps=2"]}
    for name, words in here.items():
        assert UnifiedTrainer(load_config("quickstart", *latest(*base, f"suffix={name}", *words))).run() == 0
    ranks = ["batch_size=4", "train_mode=distributed", "world_size=2", "suffix=ranks"]
    done = run_script(TRAIN, *latest(*base, *ranks))
    assert done.returncode == 0, done.stderr[-3000:]
    losses = {name: read_metrics(tmp_path / "a+wide" / name, "train")["loss"].to_numpy() for name in (*here, "ranks")}
    assert all(len(each) == steps for each in losses.values())
    for name in ("ranks", "accumulated"):
        assert np.abs(losses[name] / losses["whole"] - 1).max() < 1e-5, name


# ------------------------------------------------------------------ launches


def launch_words(small_data, tmp_path, *words):
    return latest(
        *SMALL_WORDS, "domains=a", f"dataset_path={small_data}", f"output_dir={tmp_path}", "suffix=run",
        "train.total_iters=3", "batch_size=4", *words,
    )  # fmt: skip


def program(name):
    return os.path.join(os.path.dirname(sys.executable), name)


def test_torchrun_on_one_node(small_data, tmp_path):
    command = [
        program("torchrun"),
        "--nproc_per_node=2",
        f"--master_port={free_port()}",
        TRAIN,
        *launch_words(small_data, tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(read_metrics(tmp_path / "a/run", "train")) == 3
    assert "x 2 process(es)" in (tmp_path / "a/run/train.log").read_text()


def test_a_taken_port_is_a_clear_line_in_seconds(small_data, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        env = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(taken.getsockname()[1]),
            "WORLD_SIZE": "2",
            "RANK": "0",
            "LOCAL_RANK": "0",
        }
        done = subprocess.run(
            [sys.executable, TRAIN, *launch_words(small_data, tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            env=env,
        )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Set MASTER_PORT to a free port" in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(("rank", "says"), [("0", "1 of 2 processes came to"), ("1", "did not reach rank 0")])
def test_a_rendezvous_nobody_comes_to_is_a_clear_line_in_seconds(small_data, tmp_path, rank, says):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
        "RANK": rank,
        "LOCAL_RANK": "0",
    }
    began = time.monotonic()
    words = launch_words(small_data, tmp_path, "rendezvous_timeout_s=3")
    done = subprocess.run(
        [sys.executable, TRAIN, *words], cwd=ROOT, capture_output=True, text=True, timeout=90, env=env
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert says in done.stderr.strip().splitlines()[-1]
    assert time.monotonic() - began < 60


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a veth pair: 10.77.0.1 and 10.77.0.2."""
    made = [f"ppt{os.getpid()}a", f"ppt{os.getpid()}b"]
    ends = [f"v{os.getpid()}a", f"v{os.getpid()}b"]
    ip = lambda *words: subprocess.run(["ip", *words], check=True, capture_output=True)
    try:
        for name in made:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for index, (name, end) in enumerate(zip(made, ends)):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{index + 1}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not permitted here: {error}")
    else:
        yield made
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def on_both(hosts, commands, envs=({}, {})):
    started = [
        subprocess.Popen(["ip", "netns", "exec", host, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **env})
        for host, command, env in zip(hosts, commands, envs)
    ]  # fmt: skip
    return [(process.communicate(timeout=200)[0], process.returncode) for process in started]


@pytest.mark.parametrize(
    "way", ["variables", *(pytest.param(way, marks=pytest.mark.long) for way in ("torchrun", "deepspeed without ssh"))]
)
def test_two_nodes_across_a_network(small_data, tmp_path, two_hosts, way):
    words = launch_words(small_data, tmp_path)
    if way == "variables":
        common = {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29641", "WORLD_SIZE": "2"}
        envs = [{**common, "RANK": str(node)} for node in (0, 1)]
        results = on_both(
            two_hosts, [[sys.executable, TRAIN, *words, "train_mode=distributed", "world_size=2"]] * 2, envs
        )
    elif way == "torchrun":
        ends = [["--node_rank", str(node), TRAIN, *words] for node in (0, 1)]
        results = on_both(two_hosts, [[program("torchrun"), "--nnodes=2", "--nproc_per_node=1", "--master_addr=10.77.0.1", "--master_port=29642", *end] for end in ends])  # fmt: skip
    else:
        (tmp_path / "hosts").write_text("10.77.0.1 slots=1\n10.77.0.2 slots=1\n")
        head = [
            program("deepspeed"),
            "--hostfile",
            str(tmp_path / "hosts"),
            "--no_ssh",
            "--master_addr=10.77.0.1",
            "--master_port=29643",
        ]
        envs = [{"PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]}] * 2
        results = on_both(two_hosts, [[*head, f"--node_rank={node}", TRAIN, *words] for node in (0, 1)], envs)
    assert [code for _, code in results] == [0, 0], [text[-1500:] for text, _ in results]
    assert len(read_metrics(tmp_path / "a/run", "train")) == 3
    assert "x 2 process(es)" in (tmp_path / "a/run/train.log").read_text()


def test_two_nodes_without_a_suffix_make_one_run_folder(small_data, tmp_path):
    """Started two seconds apart: each node's clock would name the folder differently."""
    words = [word for word in launch_words(small_data, tmp_path) if word != "suffix=run"]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    nodes = []
    for rank in ("0", "1"):
        command = [sys.executable, TRAIN, *words, "train_mode=distributed", "world_size=2"]
        env = {**os.environ, **common, "RANK": rank}
        nodes.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))  # fmt: skip
        time.sleep(2)
    told = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told
    (run_dir,) = (tmp_path / "a").iterdir()
    assert len(read_metrics(run_dir, "train")) == 3


@pytest.fixture
def two_hosts_with_ssh(two_hosts, tmp_path):
    """As `two_hosts`, each with an sshd of its own; gives (hosts, a folder whose `ssh` reaches them without a password)."""
    missing = [name for name in ("sshd", "ssh", "ssh-keygen", "pdsh") if not shutil.which(name, path=SYSTEM_PATH)]
    if missing:
        pytest.skip(f"apt-get install openssh-server pdsh: {', '.join(missing)} not found")
    folder = tmp_path / "ssh"
    folder.mkdir()
    for key in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/user_key.pub\nPidFile none\nStrictModes no\n"
        "PermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\n"
    )
    (folder / "ssh").write_text(
        f"#!/bin/sh\nexec {shutil.which('ssh')} -F none -i {folder}/user_key -o BatchMode=yes -o StrictHostKeyChecking=no "
        f'-o UserKnownHostsFile={folder}/known_hosts "$@"\n'
    )
    (folder / "ssh").chmod(0o755)
    # `ip netns exec` has its own mounts: this /run is nobody else's, and sshd wants a folder there
    serve = f"mount -t tmpfs none /run && mkdir /run/sshd && exec {shutil.which('sshd', path=SYSTEM_PATH)} -D -e -f {folder}/sshd_config"
    try:
        for host in two_hosts:
            with open(folder / f"{host}.log", "w") as told:
                subprocess.Popen(["ip", "netns", "exec", host, "sh", "-c", serve], stdout=told, stderr=told)
        for number in (1, 2):
            knock = ["ip", "netns", "exec", two_hosts[0], folder / "ssh", f"10.77.0.{number}", "true"]
            end = time.monotonic() + 20
            while subprocess.run(knock, capture_output=True).returncode:
                if time.monotonic() > end:
                    pytest.skip(f"sshd does not run here: {[log.read_text() for log in folder.glob('*.log')]}")
                time.sleep(0.2)
        yield two_hosts, folder
    finally:
        for host in two_hosts:
            pids = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True).stdout.split()
            for pid in map(int, pids):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_two_nodes_by_the_deepspeed_launcher_over_ssh(small_data, tmp_path, two_hosts_with_ssh):
    """One command on one of the nodes; its exit code is the ranks', also when a rank finds a mistake of the user's."""
    hosts, ssh = two_hosts_with_ssh
    (tmp_path / "hosts").write_text("10.77.0.1 slots=1\n10.77.0.2 slots=1\n")
    words = launch_words(small_data, tmp_path)
    command = [program("deepspeed"), "--hostfile", str(tmp_path / "hosts"), "--master_port=29644", TRAIN, *words]
    env = {**os.environ, "PATH": os.pathsep.join([str(ssh), os.path.dirname(sys.executable), os.environ["PATH"]])}
    run = lambda: subprocess.run(
        ["ip", "netns", "exec", hosts[0], *command], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200
    )  # fmt: skip
    done = run()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(read_metrics(tmp_path / "a/run", "train")) == 3
    assert "x 2 process(es)" in (tmp_path / "a/run/train.log").read_text()
    again = run()
    assert again.returncode == 2, again.stdout[-3000:] + again.stderr[-3000:]
    assert "holds a run already" in again.stderr


@pytest.mark.parametrize("way", ["own", pytest.param("torchrun", marks=pytest.mark.long)])
def test_the_first_real_traceback_is_the_last_thing_on_the_screen(small_data, tmp_path, way):
    """Rank 1 cannot read its dataset any more; rank 0 only loses the connection, a moment later."""
    breaker = tmp_path / "site/sitecustomize.py"
    breaker.parent.mkdir()
    breaker.write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import ppt_kit.data.loader as loader\n"
        "    real = loader.Loader.batches\n"
        "    def batches(self, step, order):\n"
        "        if step == 2: raise OSError('the disk of rank 1 is gone')\n"
        "        return real(self, step, order)\n"
        "    loader.Loader.batches = batches\n"
    )
    words = launch_words(small_data, tmp_path, "train.val_interval=0", "train.total_iters=50", "train.total_epochs=99")
    if way == "own":
        command = [sys.executable, TRAIN, *words, "train_mode=distributed", "world_size=2"]
    else:
        command = [program("torchrun"), "--nproc_per_node=2", f"--master_port={free_port()}", TRAIN, *words]
    began = time.monotonic()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(breaker.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 1, done.stderr[-3000:]
    assert time.monotonic() - began < 110
    tracebacks = [
        line for line in done.stderr.splitlines() if line.startswith(("OSError", "RuntimeError", "torch.distributed"))
    ]
    assert tracebacks[-1] == "OSError: the disk of rank 1 is gone" or way == "torchrun"
    assert "rank 1 failed:" in done.stderr
    assert done.stderr.count("Connection") == 0  # the survivor tells the first failure, not its own
