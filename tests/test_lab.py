"""`make lab`: what it prints lets nobody in, and its user gets in all the same."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from conftest import ROOT


@pytest.fixture
def server(tmp_path):
    """(its output so far, its environment) of a JupyterLab that was started as `make lab` starts one."""
    dirs = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    env = {**os.environ, **{name: str(tmp_path / name.lower()) for name in dirs}}
    # also where somebody has a screen
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "JUPYTER_TOKEN"):
        env.pop(name, None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "scripts/lab.py" in line)
    words = command.split("scripts/lab.py")[1].split()
    with (tmp_path / "printed").open("w") as printed:
        process = subprocess.Popen(
            [sys.executable, ROOT / "scripts/lab.py", *words, f"--port={port}"], cwd=ROOT / "notebooks", env=env,
            stdout=printed, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield lambda: (tmp_path / "printed").read_text(), env
    finally:
        process.terminate()
        process.wait(timeout=30)


def status(url):
    try:
        with urlopen(url, timeout=30) as answer:
            return answer.status
    except HTTPError as error:
        return error.code


def test_make_lab_prints_no_token_and_its_user_gets_in(server, tmp_path):
    printed, env = server
    end = time.monotonic() + 60
    while not (found := list((tmp_path / "jupyter_runtime_dir").glob("jpserver-*.json"))):
        assert time.monotonic() < end, printed()
        time.sleep(0.2)
    # written after the file: the address, and what else there is to say at the start
    while "is running at" not in printed():
        assert time.monotonic() < end, printed()
        time.sleep(0.2)
    info = json.loads(found[0].read_text())
    assert info["hostname"] == "127.0.0.1"
    assert len(info["token"]) == 48
    # what was said before: jupyter lab list
    said = re.search(r"(\S+/jupyter lab list) tells", printed())[1]
    listed = subprocess.run(said.split(), env=env, capture_output=True, text=True)
    url = re.search(r"http://\S+", listed.stdout + listed.stderr)[0]
    assert info["token"] in url
    contents = url.replace("/?", "/api/contents/01_quickstart.ipynb?")
    assert status(contents) == 200
    assert status(contents.partition("?")[0]) == 403
    assert info["token"] not in printed()
    assert "token=..." in printed()
