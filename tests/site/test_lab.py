"""A reader's first minute: JupyterLab, a chapter, "run all", no error."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from book.contents import CHAPTERS, ROOT
from dsarch.teaching.ranks import free_port

NUMBERS = (1, 2, 3, 4)
MINUTES = 6
RAW = (":::{", "```{", "{chapter}`", "{eq}`", "{cite}`")
READY = """() => {
  const session = window.jupyterapp?.shell.currentWidget?.sessionContext;
  return session?.session?.kernel?.status === "idle";
}"""
START = """() => {
  window.jupyterapp.commands.execute("notebook:run-all-cells");
}"""
CELLS = """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel
  .toJSON().cells.filter(c => c.cell_type === "code").map(c => ({
    ran: c.execution_count,
    errors: c.outputs.filter(o => o.output_type === "error")
      .map(o => `${o.ename}: ${o.evalue}`),
  }))"""


def finished(page: Page) -> list[dict]:
    """The code cells, once each has run or one has failed."""
    for _ in range(60 * MINUTES):
        cells = page.evaluate(CELLS)
        if all(c["ran"] for c in cells) or any(c["errors"] for c in cells):
            return cells
        page.wait_for_timeout(1000)
    waiting = [i for i, cell in enumerate(cells) if not cell["ran"]]
    raise TimeoutError(f"code cells {waiting} did not run")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab on a copy of the chapters, since it saves what it opens."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "chapters", folder / "chapters")
    port, home = free_port(), str(folder / "home")
    options = {
        "ServerApp.root_dir": folder,
        "ServerApp.port": port,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": "",
        "LabApp.expose_app_in_browser": True,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    homes = dict.fromkeys(("JUPYTER_CONFIG_DIR", "IPYTHONDIR"), home)
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *words],
        env=os.environ | homes,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    base = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{base}/api/status", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        yield base
    finally:
        server.terminate()
        server.wait(30)


def raw_directives(page: Page) -> list[str]:
    """What still stands there unrendered after a minute of patience."""
    shown: list[str] = []
    for _ in range(60):
        text = page.locator(".jp-Notebook").first.inner_text()
        shown = [raw for raw in RAW if raw in text]
        if not shown:
            break
        page.wait_for_timeout(1000)
    return shown


@pytest.mark.parametrize("number", NUMBERS)
def test_run_all(browser: Browser, lab: str, number: int) -> None:
    name = Path(CHAPTERS[number][0]).name
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(MINUTES * 60_000)
    try:
        page.goto(f"{lab}/lab/workspaces/w{number}/tree/chapters/{name}.ipynb")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        page.wait_for_function(READY)
        page.evaluate(
            "clear => window.jupyterapp.commands.execute(clear)",
            "notebook:clear-all-cell-outputs",
        )
        page.evaluate(START)
        cells = finished(page)
        shown = raw_directives(page)
        asked = page.locator(".Toastify__toast").all_inner_texts()
    finally:
        page.close()
    errors = [error for cell in cells for error in cell["errors"]]
    assert not errors, errors
    assert not shown, shown
    assert not asked, asked
