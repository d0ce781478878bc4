"""Execute notebooks in place so that a second run changes no byte."""

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from book.environment import KERNEL_ENV
from book.nbtext import NOTEBOOK_METADATA

MEASURED = "nbval-ignore-output"


def clean(notebook: nbformat.NotebookNode) -> None:
    """Drop everything that an earlier run or an editor left behind."""
    notebook.metadata = nbformat.from_dict(NOTEBOOK_METADATA)
    for cell in notebook.cells:
        for key in ("execution", "jupyter", "collapsed", "trusted"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def measured(notebook: nbformat.NotebookNode) -> dict[int, list]:
    """The outputs of cells that hold times: they never repeat exactly."""
    return {
        index: cell.outputs
        for index, cell in enumerate(notebook.cells)
        if MEASURED in cell.metadata.get("tags", []) and cell.get("outputs")
    }


def execute(
    notebook: nbformat.NotebookNode, folder: Path, timeout: int
) -> float:
    """Run the cells as they would run in `folder`; return the seconds."""
    start = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--IPKernelApp.log_level=40"],
    )
    client.execute(env={**os.environ, **KERNEL_ENV})
    return time.perf_counter() - start


def run(path: Path, timeout: int, measure: bool = False) -> float:
    """Execute one notebook and write it back only if every cell ran.

    Measured outputs stay as they are unless ``measure`` asks for new ones.
    """
    notebook = nbformat.read(path, as_version=4)
    kept = {} if measure else measured(notebook)
    clean(notebook)
    seconds = execute(notebook, path.parent, timeout)
    for index, outputs in kept.items():
        notebook.cells[index].outputs = outputs
    # the kernel's own answer names the Python version; widget ids are random
    notebook.metadata = nbformat.from_dict(NOTEBOOK_METADATA)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    return seconds


def main() -> int:
    """Run all notebooks that were named and report the ones that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--timeout", type=int, default=180, help="s per cell")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--measure", action="store_true", help=f"renew {MEASURED} cells too"
    )
    args = parser.parse_args()
    failed = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [
            (path, pool.submit(partial(run, path, args.timeout, args.measure)))
            for path in args.paths
        ]
        for path, future in runs:
            try:
                print(f"{future.result():6.1f} s  {path}", flush=True)
            except CellExecutionError as error:
                failed += 1
                print(f"failed    {path}\n{error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
