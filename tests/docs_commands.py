"""How a command of the documentation is run by the suite: in this process, small, in a folder with demonstrations."""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, SMALL_WORDS, latest, run_script
from docs_blocks import Command

# what makes a script's command small: these words take the place of the command's own
TRAIN = (*SMALL_WORDS, "train.total_iters=2", "train.total_epochs=1", "save_interval=1", "train.eval_interval=0")
UNNAMED = itertools.count()
SMALL = {
    "train.py": TRAIN,
    "sweep.py": (*TRAIN, "jobs=2"),
    "eval_sim.py": ("episodes=2", "max_steps=5", "videos=0"),
    "collect_demos.py": ("episodes=4",),
    "verify_card.py": ("episodes=1",),
    "convert_dataset.py": (),
    "migrate_train_scripts.py": (),
    "ds_checkpoint.py": (),
}
# keywords of a call in a python block, by the function's name
KEYWORDS = {
    "collect": {"episodes": 4},
    "evaluate": {"episodes": 2, "max_steps": 5},
    "compare": {"episodes": 2, "max_steps": 5},
    "launch": {"num_gpus": 2},
}
ADDED = {"collect": {"num_points": 64}, "evaluate": {"max_steps": 5}, "compare": {"max_steps": 5}}
LAUNCHERS = ("deepspeed", "torchrun")
# of a launcher, how many processes there are, and what says so small
PROCESSES = re.compile(r"(--num_gpus|--nproc_per_node|--nproc-per-node|-np)=?(\d+)?")

ELSEWHERE = "another test runs it: "
# (what a command begins with, why it is not run here)
NOT_RUN = [
    (r"make ", "it makes or fills .venv, or is the suite itself: its target is looked up"),
    (r"(python -m )?pip install", "it downloads: its extras are looked up"),
    (r"conda env create|conda activate", "it downloads: its file is looked up"),
    (r"sudo |apt-get |git clone|docker ", "it changes the machine, or downloads"),
    (r"sbatch |srun |squeue|scancel|ssh |scp |rsync |pdsh ", "there is no cluster here"),
    (r"nvidia-smi|ds_report|nvtop|htop|df |free ", "it looks at the machine, and not every machine has it"),
    (r"python run\w*\.py|torchrun .*run_train\.py", ELSEWHERE + "tests/test_migrate.py"),
    (r"python scripts/migrate_train_scripts\.py .*--convert-checkpoint", ELSEWHERE + "tests/test_adopt.py, on policies of a replica"),
    (r"(python -m ppt_kit|ppt) doctor", ELSEWHERE + "tests/test_installation.py"),
    (r"python scripts/bench\.py", "it measures for minutes: its words are read here, small ones run in tests/test_*bench*.py"),
    (r"python scripts/(draw_screens|draw_structure|build_docs|quickstart)\.py", ELSEWHERE + "tests/test_layout.py, tests/test_docs.py, tests/test_stopped.py"),
    (r"python scripts/ds_checkpoint\.py .*FOLDER", ELSEWHERE + "tests/test_ds_checkpoint.py, on folders that plain DeepSpeed wrote"),
    (r"python scripts/\w+\.py (--help|help)", ELSEWHERE + "tests/test_scripts.py"),
    (r"python -m (pytest|ruff|mypy)|pytest |ruff |mypy", "it is the suite itself"),
    (r"jupyter |tensorboard|wandb ", "it serves until it is stopped, or asks an account"),
    (r"kill |pkill ", "it ends what a person has started"),
]  # fmt: skip
# in a shell, and here: they look at or make files in the page's folder
PLAIN = ("ls", "cat", "head", "tail", "mkdir", "cp", "mv", "echo", "printf", "touch", "unzip", "tree", "wc")
SHELL = ("cd", "export", "source", "unset", ".")
HUB = re.compile(r"weights=[\w.-]+/[\w.-]+")


def why_not_run(command: Command) -> str | None:
    line = " ".join(command.words)
    return next((why for pattern, why in NOT_RUN if re.match(pattern, line)), None)


def looked_up(command: Command) -> None:
    """As far as a command that is not run can be checked.

    Raises:
        AssertionError: its target, extra, file or words are not there.
    """
    line, words = " ".join(command.words), command.words
    if words[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        asked = {word for word in words[1:] if "=" not in word}
        assert asked <= targets, (
            f"{command.where}: make {', '.join(asked - targets)}: the Makefile has {sorted(targets)}"
        )
    for extras in re.findall(r"(?:ppt_kit|\.)\[([\w,]+)\]", line):
        import tomllib

        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(extras.split(",")) <= set(known), f"{command.where}: {extras}: pyproject.toml has {sorted(known)}"
    for word in words:
        if re.fullmatch(r"(scripts|ds_configs|tests|notebooks)/[\w./-]+|\w+\.(yml|txt|toml)", word):
            assert (ROOT / word.partition("::")[0]).exists(), f"{command.where}: {word} is not there"
    if re.match(r"python scripts/bench\.py", line):
        bench_words(command)


def bench_words(command: Command) -> None:
    """The words of a measurement are keys of its schema."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import bench

        from ppt_kit.config import load_config

        name, rest = command.words[2], [word for word in command.words[3:] if word != "--help"]
        load_config("", *rest, schema=bench.WAYS[name][1])
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def script_of(words: tuple[str, ...]) -> tuple[list[str], str, list[str]] | None:
    """(launcher's words, script's name, its words) of a command that runs one of scripts/."""
    for at, word in enumerate(words):
        name = Path(word).name
        if word.endswith(".py") and (ROOT / "scripts" / name).exists() and word.startswith("scripts/"):
            return list(words[:at]), name, list(words[at + 1 :])
    return None


def small(script: str, words: list[str]) -> list[str]:
    """The words of a command, made small; of a sweep's lists the first value."""
    given = [re.sub(r"^((?:--)?sweep\.[\w.]+=\[[^,\]]+),.*\]$", r"\1]", word) for word in words]
    assert script in SMALL, (
        f"scripts/{script}: tests/docs_commands.py does not say how it is made small: add it to SMALL"
    )
    added = list(SMALL[script])
    if script == "collect_demos.py" and not any(
        re.match(r"(--)?(simulator|num_points|list_tasks)=", word) for word in words
    ):
        added.append("num_points=64")
    # its expert takes 600 steps
    if "simulator=ur5" in given:
        added = ["episodes=1"]
    if script == "eval_sim.py" and any(word.startswith("controls=") and "replay" in word for word in given):
        added.remove("max_steps=5")
    if script == "train.py" and not any(re.match(r"(--)?suffix=", word) for word in words):
        # the time, which is a run's name without one, is the same for two within a second
        added.append(f"suffix=unnamed-{next(UNNAMED)}")
    first = [word for word in given if "=" not in word and not word.startswith("-")]
    return [*first, *latest(*(word for word in given if word not in first), *added)]


def in_one_process(words: list[str]) -> list[str]:
    """Without what starts further processes, which README.md's own commands do."""
    return [word for word in words if not re.match(r"(--)?(train_mode|world_size|eval_mode|n_procs)=", word)]


class Small(ast.NodeTransformer):
    """A python block, made small: keywords of calls, words of configurations, lists of sweeps."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        have = {each.arg: each for each in node.keywords}
        for key, value in KEYWORDS.get(name, {}).items():
            if key in have and isinstance(have[key].value, ast.Constant) and isinstance(have[key].value.value, int):
                have[key].value = ast.Constant(min(value, have[key].value.value))
        for key, value in ADDED.get(name, {}).items():
            # other simulators have no clouds, or their own
            if key not in have and not {None, "simulator"} & set(have):
                node.keywords.append(ast.keyword(key, ast.Constant(value)))
        if name == "load_config" and not any(isinstance(each, ast.Starred) for each in node.args):
            self._configuration(node)
        if name == "sweep" and len(node.args) > 1 and isinstance(node.args[1], ast.Dict):
            node.args[1].values = [self._first(value) for value in node.args[1].values]
        return node

    @staticmethod
    def _configuration(node: ast.Call) -> None:
        given = {
            ast.literal_eval(each).partition("=")[0].removeprefix("--")
            for each in node.args[1:]
            if isinstance(each, ast.Constant)
        }
        fixed = {word.partition("=")[0]: word for word in TRAIN}
        if not node.args:
            node.args.append(ast.Constant("quickstart"))
        node.args = [
            ast.Constant(fixed.pop(name)) if (name := str(getattr(each, "value", "")).partition("=")[0].removeprefix("--")) in fixed else each
            for each in node.args
        ]  # fmt: skip
        node.args += [ast.Constant(word) for name, word in fixed.items() if name not in given]

    @staticmethod
    def _first(value: ast.expr) -> ast.expr:
        if isinstance(value, ast.List):
            value.elts = value.elts[:1]
        elif isinstance(value, ast.Call) and getattr(value.func, "id", "") == "range":
            value.args = [ast.Constant(1)]
        return value


def small_python(text: str) -> ast.Module:
    """The tree of a block, with the lines that it has in the block."""
    return ast.fix_missing_locations(Small().visit(ast.parse(text)))


def launched(launcher: list[str], script: str, words: list[str], folder: Path) -> subprocess.CompletedProcess:
    """A launcher's command with two ranks, in processes of its own."""
    program = str(Path(sys.executable).parent / launcher[0])
    asked = [PROCESSES.sub(r"\1=2", word) for word in launcher[1:]]
    return run_script(program, *asked, f"scripts/{script}", *words, cwd=folder, timeout=300)


def shell(line: str, folder: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return run_script("bash", "-euc", line, cwd=folder, env={"PATH": path})


def composes(script: str, words: list[str]) -> None:
    """The words are keys and values that the script takes; nothing runs.

    Raises:
        UserError: they are not.
    """
    from ppt_kit.config import load_config
    from ppt_kit.schema import Config, EvaluateConfig

    name = next((word.partition("=")[2] for word in words if re.match(r"--config[-_]name=", word)), "quickstart")
    rest = [word for word in words if not re.match(r"--config[-_](name|path)=", word)]
    if script == "train.py":
        load_config(name, *rest, schema=Config)
    elif script == "eval_sim.py":
        load_config("", *rest, schema=EvaluateConfig)
