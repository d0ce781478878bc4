"""Launch buttons: one setting in `_config.yml`, and none without it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from book import launch
from book.contents import CHAPTERS
from tests.book.stored import ROOT

PAGE, _ = CHAPTERS[1]
REPOSITORY = "https://github.com/someone/a-book"
BUTTON = re.compile(r'<a href="(https://[^"]+)"[^>]*\bclass="[^"]*btn')


def setting() -> dict:
    text = (ROOT / "_config.yml").read_text(encoding="utf8")
    return yaml.safe_load(text)


def small_book(folder: Path, repository: str) -> str:
    """Build two pages with the book's own settings; return the chapter."""
    config = setting()
    sphinx = config["sphinx"]
    sphinx["local_extensions"] = {"book.site": str(ROOT)}
    sphinx["config"]["book_launch"]["repository"] = repository
    sphinx["config"]["html_static_path"] = [str(ROOT / "book" / "assets")]
    sphinx["config"]["bibtex_bibfiles"] = [str(ROOT / "references.bib")]
    config["html"]["favicon"] = str(ROOT / config["html"]["favicon"])
    chapter = json.loads((ROOT / f"{PAGE}.ipynb").read_text(encoding="utf8"))
    words = {"cell_type": "markdown", "metadata": {}, "source": "# One\n"}
    chapter["cells"] = [{**words, "id": "one"}]
    toc = {"format": "jb-book", "root": "intro", "chapters": [{"file": PAGE}]}
    files = {
        "_config.yml": yaml.safe_dump(config),
        "_toc.yml": yaml.safe_dump(toc),
        "intro.md": "# Front\n",
        f"{PAGE}.ipynb": json.dumps(chapter),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf8")
    tool = Path(sys.executable).parent / "jupyter-book"
    command = [str(tool), "build", str(folder), "--all", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    page = folder / "_build" / "html" / f"{PAGE}.html"
    return page.read_text(encoding="utf8")


def test_no_repository_no_buttons(tmp_path: Path) -> None:
    assert setting()["sphinx"]["config"]["book_launch"]["repository"] == ""
    text = small_book(tmp_path, "")
    assert not BUTTON.findall(text)
    assert "fa-rocket" not in text


def test_a_repository_brings_the_buttons(tmp_path: Path) -> None:
    text = small_book(tmp_path, REPOSITORY)
    assert BUTTON.findall(text) == [
        "https://mybinder.org/v2/gh/someone/a-book/main"
        f"?urlpath=lab/tree/{PAGE}.ipynb",
        "https://colab.research.google.com/github/someone/a-book/blob/main/"
        f"{PAGE}.ipynb",
    ]


def test_a_service_can_be_left_out() -> None:
    one = {"repository": REPOSITORY, "binder": "https://b.org", "colab": ""}
    found = launch.options(one)
    assert found["launch_buttons"] == {
        "binderhub_url": "https://b.org",
        "notebook_interface": "jupyterlab",
    }
    assert launch.options({"repository": REPOSITORY, "colab": ""}) == {}
    with pytest.raises(ValueError, match=r"no \['bindr'\]"):
        launch.options({"repository": REPOSITORY, "bindr": "https://b.org"})
