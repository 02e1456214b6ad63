"""The documentation: the site builds, links lead somewhere, and every block of every page does what it says.

How a block is read:

- ```python blocks of a page run in order in one namespace, in a folder of the page's own; one whose first line is
  `# some/file.py` is that file. Those of docs/tutorials are the notebooks' cells, which test_notebooks.py runs.
- ```bash: each line is a command. Those of scripts/ run in this process, made small (docs_commands.SMALL); README.md's
  torchrun starts two ranks, and so do all launchers of all pages in the long test. What cannot run here is in docs_commands.NOT_RUN with the reason, and is looked up.
- ```yaml is a configuration, which is composed; `# some/file.yaml` in its first line says where it lies, and
  `# not a configuration` that it is plain YAML. ```json is plain JSON.
- ```text is what a program prints, or a tree. ```py is a signature, on the pages that are written from the code.

What a page names and has not made itself is there: demonstrations `data/NAME.zarr`, run folders `outputs/models/…`,
a folder of ppt_learning (run.py, configs/config.yaml),
a robomimic file (folder/lift.hdf5).
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from urllib.parse import unquote, urlparse

import docs_commands as commands
import pytest
import yaml
from conftest import ROOT, forget_my_lab, latest, run_script
from docs_blocks import LANGUAGES, Block, Command, anchors_of, blocks_of, commands_of, links_of, pages

README = ROOT / "README.md"
LINKED = [*pages(), *(ROOT / name for name in ("CONTRIBUTING.md", "RESULTS.md", "CHANGELOG.md"))]
TUTORIALS = ROOT / "docs/tutorials"
RECIPE = re.compile(r"```python\n# (my_lab/\w+\.py)\n(.*?)```", re.DOTALL)
OLD_CONFIG = """domains: a
dataset: {_target_: ppt_learning.dataset.multi_sim_traj_dataset.MultiTrajDataset, val_ratio: 0.1}
train: {total_epochs: 5}
"""
ENV_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ------------------------------------------------------------------ the site


def test_the_site_builds_without_a_warning(tmp_path):
    done = run_script(sys.executable, "-m", "sphinx", "-c", "docs", "-W", "--keep-going", "-q", "-d", str(tmp_path / "trees"), ".", str(tmp_path / "site"))  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    first = (tmp_path / "site/docs/index.html").read_text()
    for page in pages():
        there = tmp_path / "site" / page.relative_to(ROOT).with_suffix(".html")
        assert there.exists(), f"{named(page)} is no page of the site"
        assert page.stem == "index" or f"{page.stem}.html" in first, f"the sidebar does not lead to {named(page)}"


def test_pages_that_are_written_from_the_code_say_what_it_says(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import build_docs

    old = [
        named(path)
        for path, text in build_docs.written_pages().items()
        if not path.exists() or path.read_text() != text
    ]
    assert not old, "written from the code, and no longer what it says: type make docs"


def test_every_public_name_and_every_key_is_in_the_reference():
    import ppt_kit
    from ppt_kit.keys import leaves_of
    from ppt_kit.schema import Config, EvaluateConfig

    text = {path.stem: path.read_text() for path in (ROOT / "docs/reference").glob("*.md")}
    headings = set(re.findall(r"^## `(\w+)`$", "\n".join(text.values()), re.MULTILINE))
    assert set(ppt_kit.__all__) - headings == set()
    keys = set(re.findall(r"^\| `([\w.]+)` \|", text["configuration"], re.MULTILINE))
    assert keys >= set(leaves_of(Config))
    assert set(re.findall(r"^\| `([\w.]+)` \|", text["scripts"], re.MULTILINE)) >= set(leaves_of(EvaluateConfig))


def test_a_tutorial_is_its_notebook_cell_by_cell():
    for book in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = [
            "".join(cell["source"]).strip()
            for cell in json.loads(book.read_text())["cells"]
            if cell["cell_type"] == "code"
        ]
        page = [block.text.strip() for block in blocks_of(TUTORIALS / f"{book.stem}.md") if block.language == "python"]
        assert [re.sub(r"^%%writefile (\S+)", r"# \1", cell) for cell in cells] == page, book.name
    assert len(list(TUTORIALS.glob("*.md"))) == len(list((ROOT / "notebooks").glob("*.ipynb")))


# ------------------------------------------------------------------ links


@pytest.mark.parametrize("page", LINKED, ids=named)
def test_every_link_leads_somewhere(page):
    wrong = []
    for line, target in links_of(page):
        address = urlparse(target)
        if address.scheme == "mailto":
            continue
        if address.scheme or target.startswith("//"):
            good = address.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+(:\d+)?", address.netloc)
        else:
            there = (page.parent / unquote(address.path)).resolve() if address.path else page
            good = there.exists() and there.is_relative_to(ROOT)
            if good and address.fragment and there.suffix == ".md":
                good = address.fragment in anchors_of(there)
        if not good:
            wrong.append(f"{named(page)}:{line}: {target}")
    assert not wrong


# ------------------------------------------------------------------ blocks


def test_every_block_says_what_it_is():
    nameless = [
        f"{block.where(-1)}: ```{block.language}: takes {', '.join(sorted(LANGUAGES))}"
        for page in pages()
        for block in blocks_of(page)
        if block.language not in LANGUAGES or (block.language == "py" and "reference" not in page.parts)
    ]
    assert not nameless


class Page:
    """A page that is being run, in a folder of its own.

    Attributes:
        ranks: launchers that really start two ranks, deepspeed, torchrun or own; the words of others train in one
            process.
    """

    def __init__(self, path: Path, folder: Path, *, stand_in: Path, trained: Path, ranks: tuple[str, ...] = ()):
        self.path, self.folder, self.ranks = path, folder, ranks
        self.stand_in, self.trained, self.text = stand_in, trained, path.read_text()
        self.names: dict = {"__name__": "__page__"}
        self._at_hand()

    def _at_hand(self) -> None:
        """What the page names and does not make."""
        (self.folder / "data").mkdir()
        for name in ("scripts", "ds_configs", "notebooks"):
            (self.folder / name).symlink_to(ROOT / name)
        made = set(
            re.findall(
                r"(?:task=|domain=|collect\(\s*\"|target=data/|open_group\(\"data/)([\w.-]+?)(?:\.zarr)?[\"\s`,)]",
                self.text,
            )
        )
        named_here = {"button-press-topdown", *re.findall(r"data/([\w.-]+?)\.zarr", self.text)}
        for domains in re.findall(r"domains=\[?([\w.,-]+)", self.text):
            named_here |= {name for name in domains.split(",") if name}
        for name in named_here - made:
            shutil.copytree(self.stand_in, self.folder / f"data/{name}.zarr")
        if self.path == README:
            recipes = dict(RECIPE.findall((ROOT / "CONTRIBUTING.md").read_text()))
            (self.folder / "my_lab").mkdir()
            for name, code in recipes.items():
                (self.folder / name).write_text(code)
        if "migrate_train_scripts" in self.text:
            (self.folder / "run.py").write_text("import hydra  # of ppt_learning\n")
            (self.folder / "configs").mkdir(exist_ok=True)
            (self.folder / "configs/config.yaml").write_text(OLD_CONFIG)
        if "any/format/on/disk" in self.text:
            shutil.copytree(self.stand_in, self.folder / "any/format/on/disk")
        if "folder/lift.hdf5" in self.text:
            from test_formats import robomimic_episodes, write_robomimic

            (self.folder / "folder").mkdir()
            episodes = [{**each, "obs/object": each["states"]} for each in robomimic_episodes((9, 12, 10, 8))]
            masks = {"train": ["demo_0", "demo_1", "demo_2"]}
            write_robomimic(self.folder / "folder/lift.hdf5", episodes, masks=masks)
        if "dataset.format=my_lab.csv_episodes" in self.text:
            rows = [f"{episode},{step},{step},1,1" for episode in range(4) for step in range(20)]
            shutil.rmtree(self.folder / "data/lift.zarr", ignore_errors=True)
            (self.folder / "data/lift.csv").write_text("\n".join(["episode,x,y,dx,dy", *rows]))

    def run(self) -> None:
        """Every block, in order.

        Raises:
            AssertionError: one does not run, or is neither run nor listed: page, line and command.
        """
        for block in blocks_of(self.path):
            if block.language == "python":
                self._python(block)
            elif block.language == "bash":
                for command in commands_of(block):
                    self._command(command)
            elif block.language == "yaml":
                self._yaml(block)
            elif block.language == "json":
                json.loads(block.text)

    def _python(self, block: Block) -> None:
        file = re.match(r"# ([\w/]+\.py)\n", block.text)
        if file:
            (self.folder / file[1]).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / file[1]).write_text(block.text)
            return
        for name in re.findall(r"\"(outputs/models/[\w.+-]+/[\w.-]+)\"", block.text):
            self._run_folder(name)
        tree = ast.increment_lineno(commands.small_python(block.text), block.line - 1)
        with told_as_one(block.where()):
            exec(compile(tree, str(block.page), "exec"), self.names)

    def _yaml(self, block: Block) -> None:
        from ppt_kit.config import load_config

        assert isinstance(yaml.safe_load(block.text), dict | list), f"{block.where()}: no mapping"
        if block.text.startswith("# not a configuration"):
            return
        file = re.match(r"# ([\w/.-]+\.ya?ml)", block.text)
        path = self.folder / (file[1] if file else "of_a_block/block.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        with told_as_one(block.where()):
            load_config(path.stem, config_path=path.parent)

    def _run_folder(self, name: str) -> None:
        """A run that the page names and does not train is there."""
        place, (domain, suffix) = self.folder / name, Path(name).parts[-2:]
        lines = [line for line in self.text.splitlines() if re.search(rf"suffix={re.escape(suffix)}\b", line)]
        if not place.exists() and not any(
            re.search(rf"domains=\S*{domain}\b", line) or "domains=" not in line for line in lines
        ):
            shutil.copytree(self.trained, place)

    def _command(self, command: Command) -> None:
        if commands.why_not_run(command):
            commands.looked_up(command)
            return
        for name in re.findall(r"outputs/models/[\w.+-]+/[\w.-]+", command.line):
            self._run_folder(re.sub(r"/model\w*\.pth$", "", name))
        asked = commands.script_of(command.words)
        if asked is None:
            self._shell(command)
            return
        # a user's own process has its own modules
        forget_my_lab()
        launcher, script, words = asked
        if commands.HUB.search(command.line):
            commands.composes(script, words)
            return
        words = commands.small(script, words)
        own = any(word.endswith("train_mode=distributed") for word in words)
        by = launcher[0] if launcher[0] in commands.LAUNCHERS else "own" if own else ""
        if by and by in self.ranks:
            done = self._ranks(command, launcher, script, words)
        else:
            kept = commands.in_one_process(words) if by or not self.ranks else words
            # two ranks see other batches than one process: their run is another one than that beside it
            kept = [*kept, "seed=1"] if by and not any("seed=" in word for word in kept) else kept
            done = in_this_process(script, kept, env={} if by else command.env)
        said = f"\n{command.where}: {command.line}\nrun as: {' '.join(launcher)} {script} {shlex.join(words)}\n"
        assert done.returncode == 0, f"{said}exit code {done.returncode}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"

    def _ranks(
        self, command: Command, launcher: list[str], script: str, words: list[str]
    ) -> subprocess.CompletedProcess:
        if launcher[0] in commands.LAUNCHERS:
            return commands.launched(launcher, script, words, self.folder)
        two = [re.sub(r"^((?:--)?world_size)=\d+$", r"\1=2", word) for word in words]
        return run_script(sys.executable, f"scripts/{script}", *two, cwd=self.folder, env=command.env)

    def _shell(self, command: Command) -> None:
        words = command.words
        if not words:
            os.environ.update(command.env)
        elif words[0] == "cd":
            os.chdir(words[1])
        elif words[0] == "export":
            os.environ.update(word.split("=", 1) for word in words[1:])
        elif words[:2] == ("source", ".venv/bin/activate"):
            pass
        elif words[:3] == ("python", "-m", "ppt_kit"):
            done = run_script(sys.executable, *words[1:], cwd=Path.cwd(), env=command.env)
            assert done.returncode == 0, f"{command.where}: {command.line}\n{done.stderr[-2000:]}"
        else:
            assert words[0] in commands.PLAIN, (
                f"{command.where}: {command.line}\nis neither run nor listed in tests/docs_commands.py"
            )
            done = commands.shell(command.line, Path.cwd())
            assert done.returncode == 0, f"{command.where}: {command.line}\n{done.stderr}"

    def close(self) -> None:
        """Jobs and runs that it started end."""
        for each in list(self.names.values()):
            if type(each).__name__.endswith("Job"):
                with contextlib.suppress(Exception):
                    each.kill()
            if type(each).__name__ == "UnifiedTrainer" and hasattr(each, "wait"):
                with contextlib.suppress(Exception):
                    each.wait()


@contextlib.contextmanager
def told_as_one(where: str):
    """What goes wrong in a block is told with the page and the line in it."""
    try:
        yield
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".md")]
        at = f"{where.rpartition(':')[0]}:{lines[-1]}" if lines else where
        raise AssertionError(f"{at}: {type(error).__name__}: {error}") from error


def in_this_process(script: str, words: list[str], *, env: dict[str, str]) -> subprocess.CompletedProcess:
    """A script's command without a process of its own, which would import torch anew."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before, argv, paths = dict(os.environ), sys.argv, list(sys.path)
    os.environ.update(env)
    sys.argv, sys.path[:0] = [f"scripts/{script}", *words], [str(ROOT / "scripts")]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    finally:
        sys.argv, sys.path[:] = argv, paths
        os.environ.clear()
        os.environ.update(before)
    return subprocess.CompletedProcess([script, *words], code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """Four short demonstrations of Meta-World, as any dataset that a page names: state and clouds."""
    import numpy as np

    from ppt_kit.data.formats.replay_buffer.writer import ZarrWriter
    from ppt_kit.sim.env import close_env, copied, make_env

    path, seeds = tmp_path_factory.mktemp("stand_in") / "some.zarr", range(4)
    env = make_env({"simulator": "metaworld", "task": "button-press-topdown", "num_points": 32}, uses=["collecting"])
    try:
        with ZarrWriter(path, attrs={"env": env.spec(), "descriptions": [env.description] * len(seeds)}) as writer:
            for seed in seeds:
                readings, actions = [copied(env.reset(seed))], []
                for _ in range(12):
                    actions.append(env.expert_action())
                    readings.append(copied(env.step(actions[-1])[0]))
                rows = {name: np.stack([each[name] for each in readings[:-1]]) for name in readings[0]}
                writer.append({**rows, "actions": np.stack(actions)}, meta={"episode_seeds": seed})
    finally:
        close_env(env)
    return path


@pytest.fixture(scope="session")
def trained(stand_in, tmp_path_factory):
    """A run folder, as any that a page names: two steps on the demonstrations above."""
    folder = tmp_path_factory.mktemp("trained")
    words = (f"dataset_path={stand_in.parent}", "domains=some", f"output_dir={folder}", "suffix=run")
    done = in_this_process("train.py", latest(*commands.TRAIN, *words), env={})
    assert done.returncode == 0, done.stderr
    return folder / "some/run"


RUN = [
    page
    for page in pages()
    if page.parent != TUTORIALS and any(block.language not in ("text", "py") for block in blocks_of(page))
]


@pytest.mark.parametrize("path", RUN, ids=named)
def test_every_block_of_a_page_runs(path, tmp_path, monkeypatch, stand_in, trained):
    run_page(path, tmp_path, monkeypatch, stand_in=stand_in, trained=trained, ranks=("torchrun",) * (path == README))


@pytest.mark.long
@pytest.mark.parametrize("path", [page for page in RUN if "torchrun" in page.read_text()], ids=named)
def test_every_launcher_of_a_page_runs_two_ranks(path, tmp_path, monkeypatch, stand_in, trained):
    ranks = (*commands.LAUNCHERS, "own")
    run_page(path, tmp_path, monkeypatch, stand_in=stand_in, trained=trained, ranks=ranks)


def run_page(path, tmp_path, monkeypatch, **how):
    """In the folder, with the environment as a terminal has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    for name in ENV_OF_RANKS:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    page = Page(path, tmp_path, **how)
    try:
        page.run()
    finally:
        page.close()
        os.environ.clear()
        os.environ.update(before)
        forget_my_lab()


WRONG = [
    ("```bash\nmake nothing_of_it\n```\n", "wrong.md:4: make nothing_of_it: the Makefile has"),
    ("```bash\n\nfrobnicate the data\n```\n", "wrong.md:5: frobnicate the data\\s+is neither run nor listed"),
    ("```bash\npip install 'ppt_kit[everything]'\n```\n", "everything: pyproject.toml has"),
    ("```bash\npython scripts/train.py train.total_epoch=3\n```\n", "Did you mean train.total_epochs"),
    ("```python\none = 1\nassert one == 2\n```\n", "wrong.md:5: AssertionError"),
    ("```yaml\ntrain: {total_epoch: 3}\n```\n", "wrong.md:4: UserError: .*train.total_epochs"),
]


@pytest.mark.parametrize(("text", "says"), WRONG, ids=[text.split("\n")[1] or "blank line" for text, _ in WRONG])
def test_a_page_that_does_not_do_what_it_says_fails_with_its_line(text, says, tmp_path, monkeypatch, stand_in):
    path, folder = tmp_path / "wrong.md", tmp_path / "folder"
    path.write_text(f"# A page\n\n{text}")
    folder.mkdir()
    monkeypatch.chdir(folder)
    page = Page(path, folder, stand_in=stand_in, trained=tmp_path)
    with pytest.raises(AssertionError, match=says):
        page.run()
