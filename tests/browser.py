"""A real JupyterLab in a real browser without a window: one server for the test run, a fresh browser a test."""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# drawn by the CPU, also WebGL, as where there is no graphics card (the page by SwiftShader would take 100 ms a frame);
# and a browser that asks nobody for anything
FLAGS = [
    "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-gpu-compositing",
]  # fmt: skip
STARTS_IN_S, RUNS_IN_S = 60, 120
OPENED = "window.jupyterapp?.shell?.currentWidget?.context?.sessionContext?.session?.kernel"
RUN_ALL = """async () => {
    await jupyterapp.shell.currentWidget.context.ready;
    await jupyterapp.commands.execute('notebook:run-all-cells');
}"""
ASK = """async code => {
    const kernel = jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
    const future = kernel.requestExecute({code, store_history: false});
    let said = '';
    future.onIOPub = message => {
        if (message.header.msg_type === 'stream') said += message.content.text;
        if (message.header.msg_type === 'error') said += message.content.evalue;
    };
    const reply = await future.done;
    return [reply.content.status, said];
}"""


class NoBrowser(RuntimeError):
    """What draws pages is not installed here."""


class Lab:
    """One browser with a JupyterLab, of one test.

    Attributes:
        page: Playwright's.
        folder: where notebooks are written; the kernel works there.
        elsewhere: addresses that the page asked for and that are not the server's.
        complaints: errors of the page's console.
    """

    def __init__(self, page: Any, url: str, folder: Path):
        self.page, self.url, self.folder = page, url, folder
        self.elsewhere: list[str] = []
        self.complaints: list[str] = []
        page.on("request", self._note_request)
        page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, cells: Sequence[str], *, run: bool = True, theme: str | None = None) -> Any:
        """A notebook of these cells, opened and run to its end; gives the page.

        Args:
            run: whether to run all cells by JupyterLab's own command, and wait until they are done.
            theme: "JupyterLab Dark", where it is not the light one.
        Raises:
            AssertionError: a cell raised.
        """
        name = f"book_{secrets.token_hex(4)}.ipynb"
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        # without it JupyterLab asks which kernel is meant
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, self.folder / name)
        inside = "" if self.folder.name == "books" else f"{self.folder.name}/"
        where = f"workspaces/{Path(name).stem}/tree/{inside}{name}"
        self.page.goto(f"{self.url}lab/{where}?reset", wait_until="domcontentloaded")
        self.page.wait_for_function(f"Boolean({OPENED})", timeout=STARTS_IN_S * 1000)
        self.page.evaluate("jupyterapp.shell.collapseLeft()")
        if theme:
            self.page.evaluate("name => jupyterapp.commands.execute('apputils:change-theme', {theme: name})", theme)
        if run:
            self.run()
        return self.page

    def run(self) -> None:
        """Runs all cells, and waits until they are done.

        Raises:
            AssertionError: a cell raised.
        """
        self.start()
        self.page.wait_for_function("window.ran !== undefined", timeout=RUNS_IN_S * 1000)
        assert self.page.evaluate("window.ran") == "done", self.page.evaluate("window.ran")
        wrong = [each for number in range(self.num_cells) for each in self.outputs(number) if "ename" in each]
        assert not wrong, "\n".join(wrong[0]["traceback"])

    def start(self) -> None:
        """Starts all cells, and does not wait: of a cell that takes long, what it shows meanwhile can be looked at."""
        self.page.evaluate(
            f"() => {{ window.ran = undefined; ({RUN_ALL})().then(() => window.ran = 'done', e => window.ran = String(e)); }}"
        )

    @property
    def num_cells(self) -> int:
        """Of the notebook that is open."""
        return self.page.evaluate("jupyterapp.shell.currentWidget.content.model.cells.length")

    def outputs(self, cell: int = -1) -> list[dict]:
        """What a cell gave, as a notebook file holds it."""
        return self.page.evaluate(
            "at => jupyterapp.shell.currentWidget.content.model.toJSON().cells.at(at).outputs", cell
        )

    def text(self, cell: int = -1) -> str:
        """What a cell printed."""
        return "".join(each["text"] for each in self.outputs(cell) if each["output_type"] == "stream")

    def ask(self, expression: str) -> Any:
        """The value of an expression in the notebook's kernel, of what JSON can hold.

        Raises:
            AssertionError: it raised.
        """
        status, said = self.page.evaluate(ASK, f"import json as _json; print(_json.dumps({expression}))")
        assert status == "ok", said
        return json.loads(said)

    def wait(self, holds: Callable[[], Any], *, timeout_s: float = 20) -> Any:
        """What `holds` gives as soon as it is true.

        Raises:
            AssertionError: it has not been in that time.
        """
        until = time.monotonic() + timeout_s
        while True:
            value = holds()
            if value:
                return value
            assert time.monotonic() < until, f"not within {timeout_s} s"
            self.page.wait_for_timeout(50)

    def pixels(self, selector: str) -> np.ndarray:
        """(H, W, 3) uint8 what is drawn of the first element that a CSS selector finds, WebGL included."""
        from PIL import Image

        picture = self.page.locator(selector).first.screenshot()
        return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))

    def screenshot(self, path: Path, selector: str | None = None) -> None:
        """A PNG of the page, or of the first element that a CSS selector finds."""
        (self.page.locator(selector).first if selector else self.page).screenshot(path=path)

    def close(self) -> None:
        """Ends the kernels that this browser started."""
        self.page.evaluate("window.jupyterapp?.serviceManager.sessions.shutdownAll()")

    def _note_request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:", self.url.replace("http", "ws", 1))):
            self.elsewhere.append(request.url)


def cannot(reason: str) -> None:
    """Skips a test that needs a browser; where everything has to be tested (CI is set) it fails."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory) -> Iterator[tuple[str, str, Path]]:
    """A JupyterLab of the test run's own."""
    folder = tmp_path_factory.mktemp("jupyter")
    (folder / "books").mkdir()
    with served(folder) as server:
        yield (*server, folder / "books")


@pytest.fixture
def lab(lab_server, tmp_path) -> Iterator[Lab]:
    """A JupyterLab in a fresh browser."""
    *server, books = lab_server
    folder = books / tmp_path.name
    folder.mkdir(exist_ok=True)
    try:
        with browsing(server, folder) as opened:
            yield opened
    except NoBrowser as error:
        cannot(str(error))


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, str]]:
    """(address, token) of a JupyterLab on this machine only, whose notebooks lie in `folder`/books."""
    token = secrets.token_hex(16)
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            _command(folder), cwd=folder / "books", env=_environment(folder, token), stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield _address(server, folder), token
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()


@contextmanager
def browsing(server: Sequence[str], folder: Path) -> Iterator[Lab]:
    """A fresh browser, whose notebooks go to a folder of the server's.

    Raises:
        NoBrowser: there is none.
    """
    sync_api, chromium = find_browser()
    url, token = server
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        # the cookie stands for the token, which then is in no address that a failure could print
        context.request.get(f"{url}login", params={"token": token})
        opened = Lab(context.new_page(), url, folder)
        try:
            yield opened
        finally:
            opened.close()
            browser.close()


def find_browser() -> tuple[Any, str]:
    """Playwright's module, and the program that it drives.

    Raises:
        NoBrowser: one of them is not here.
    """
    try:
        from playwright import sync_api
    except ImportError:
        raise NoBrowser("no browser: playwright is not installed. Type pip install 'ppt_kit[test]'.") from None
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        raise NoBrowser(f"no browser: none of {', '.join(CHROMIUM)} is installed. Type apt-get install chromium.")
    return sync_api, chromium


def _command(folder: Path) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
        f"--ServerApp.root_dir={folder / 'books'}", "--ServerApp.allow_root=True", "--ServerApp.open_browser=False",
        "--LabApp.expose_app_in_browser=True", f"--LabApp.user_settings_dir={folder / 'settings'}",
        f"--LabApp.workspaces_dir={folder / 'workspaces'}",
    ]  # fmt: skip


def _environment(folder: Path, token: str) -> dict[str, str]:
    """Nothing of the user's own settings; the kernel imports this checkout."""
    settings = folder / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    own = {
        name: str(folder / name.lower())
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    return {**os.environ, **own, "JUPYTER_TOKEN": token, "PYTHONPATH": str(ROOT)}


def _address(server: subprocess.Popen, folder: Path) -> str:
    """Of the server, once it listens."""
    until = time.monotonic() + STARTS_IN_S
    while time.monotonic() < until and server.poll() is None:
        for path in (folder / "jupyter_runtime_dir").glob("jpserver-*.json"):
            try:
                url = json.loads(path.read_text())["url"]
                with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1].strip("/"))), timeout=1):
                    return url.replace("localhost", "127.0.0.1")
            except (OSError, ValueError):
                continue
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{(folder / 'server.log').read_text()[-2000:]}")
