"""Plant every catalogued mistake in a copy of the package and run its tests.

    python -m tests.mutations             all
    python -m tests.mutations 03 04.flat  a chapter, one mutation
    python -m tests.mutations --show 03.latent-not-normed
    python -m tests.mutations --golden    only golden vectors, see golden.py

The working tree is not touched. Heavy packages are imported once; a fork for
each mutant then starts in milliseconds. The named tests have to pass without
a mutation first, else a failure would prove nothing.
"""

import argparse
import gc
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests.mutations import HOUSE, Mutation, catalogue, problems, snippet
from tests.mutations.golden import aimed, faults, traces

COPIED = ("dsarch", "tests", "exercises", "book", "chapters", "weights")
FILES = ("pyproject.toml", "conftest.py", "proofs.json")
LIMIT = 300  # seconds
SHAPES = "jaxtyping._pytest_plugin"  # the one plugin that tests need
VERDICTS = {0: "survived", 1: "killed"}


@dataclass
class Job:
    """One running test process."""

    mutation: Mutation | None
    folder: Path
    pid: int
    start: float


def copy_house(target: Path) -> Path:
    """Copy what the tests need, without caches."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    for name in COPIED:
        if (HOUSE / name).is_dir():
            shutil.copytree(HOUSE / name, target / name, ignore=ignore)
    for name in FILES:
        if (HOUSE / name).is_file():
            shutil.copy(HOUSE / name, target / name)
    return target


def warm_up() -> None:
    """Import what all tests share, but nothing of the copied house."""
    import beartype  # noqa: F401
    import einops  # noqa: F401
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    for name in ("deepseek_v2", "deepseek_v3", "deepseek_v32", "llama"):
        __import__(f"transformers.models.{name}.modeling_{name}")


def arguments(tests: list[str]) -> list[str]:
    """How pytest is called for these tests."""
    plugins = ["no:cacheprovider", "no:unraisableexception", SHAPES]
    options = [word for name in plugins for word in ("-p", name)]
    return ["-x", "-q", *options, *tests]


def redirect(folder: Path) -> None:
    """Send everything this process prints to the log of its copy."""
    log = open(folder / "log.txt", "w", encoding="utf8", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = log  # the parent may be a test that captures
    os.chdir(folder)
    os.environ.pop("DSARCH_WITNESS", None)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"


def forked(folder: Path, tests: list[str]) -> int:
    """Run pytest here, with what the parent imported; its exit status."""
    import pytest

    for name in [*sys.modules]:
        if name.split(".")[0] in ("tests", "book", "conftest"):
            del sys.modules[name]
    ours = (str(HOUSE), "")
    sys.path[:] = [str(folder), *(x for x in sys.path if x not in ours)]
    sys.dont_write_bytecode = True
    gc.freeze()  # what the parent imported need not be searched again
    status = pytest.main(arguments(tests))
    import dsarch

    if not str(dsarch.__file__).startswith(str(folder)):
        return 3  # the wrong package was tested
    return int(status)


def afresh(folder: Path, tests: list[str]) -> NoReturn:
    """Become a new interpreter: slower, but nothing is inherited."""
    os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", *arguments(tests)]
    os.execv(sys.executable, command)


def spawn(folder: Path, tests: list[str]) -> int:
    """Start the tests in a copy; the id of the process.

    A fork shares what was imported, unless the package itself is among it,
    or the system is one where a fork after importing torch is not safe.
    """
    inherit = sys.platform == "linux" and "dsarch" not in sys.modules
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    status = 3
    try:
        redirect(folder)
        status = forked(folder, tests) if inherit else afresh(folder, tests)
    finally:
        os._exit(status)


def start(mutation: Mutation | None, folder: Path, tests: list[str]) -> Job:
    """Plant a mutation in a copy and start its tests."""
    if mutation is not None:
        path = folder / mutation.file
        original = (HOUSE / mutation.file).read_text(encoding="utf8")
        path.write_text(mutation.plant(original), encoding="utf8")
    return Job(mutation, folder, spawn(folder, tests), time.monotonic())


def finish(job: Job) -> int | None:
    """The exit status of a job, or None while it runs; restores the copy."""
    pid, status = os.waitpid(job.pid, os.WNOHANG)
    if pid == 0:
        limit = LIMIT if job.mutation else 10 * LIMIT
        if time.monotonic() - job.start < limit:
            return None
        os.kill(job.pid, signal.SIGKILL)
        _, status = os.waitpid(job.pid, 0)
    if job.mutation is not None:
        shutil.copy(HOUSE / job.mutation.file, job.folder / job.mutation.file)
    return os.waitstatus_to_exitcode(status)


def log_of(job: Job) -> list[str]:
    text = (job.folder / "log.txt").read_text(encoding="utf8")
    return text.splitlines()


def report(job: Job, status: int) -> str:
    """Print one line, more if the mutant lives; return the verdict."""
    mutation, seconds = job.mutation, time.monotonic() - job.start
    assert mutation is not None
    verdict = VERDICTS.get(status, "broken")
    lines = log_of(job)
    failed = [x.split(" - ")[0] for x in lines if x.startswith("FAILED")]
    by = failed[0].removeprefix("FAILED ") if failed else ""
    print(f"{verdict:9} {mutation.id:32} {seconds:5.1f} s  {by}", flush=True)
    if verdict != "killed":
        print(f"          {mutation.story}")
        print("          " + "\n          ".join(lines[-8:]), flush=True)
    return verdict


def sweep(mutations: list[Mutation], folders: list[Path]) -> dict[str, str]:
    """Run all mutants, one in each folder at a time."""
    waiting, verdicts = mutations[::-1], {}
    idle, running = [*folders], []
    while waiting or running:
        while waiting and idle:
            mutation = waiting.pop()
            tests = [*mutation.tests]
            running.append(start(mutation, idle.pop(), tests))
        time.sleep(0.02)
        for job in [*running]:
            if (status := finish(job)) is not None:
                assert job.mutation is not None
                verdicts[job.mutation.id] = report(job, status)
                running.remove(job)
                idle.append(job.folder)
    return verdicts


def baseline(mutations: list[Mutation], folder: Path) -> bool:
    """Whether every named test passes in an unchanged copy."""
    tests = sorted({test for m in mutations for test in m.tests})
    job = start(None, folder, tests)
    while (status := finish(job)) is None:
        time.sleep(0.05)
    if status != 0:
        print("the named tests fail without any mutation:")
        print("\n".join(log_of(job)[-12:]))
    return status == 0


def chosen(names: list[str]) -> list[Mutation]:
    """The mutations of the named chapters and ids; all without a name."""
    known = catalogue()
    picked = [
        m for m in known if not names or m.id in names or m.id[:2] in names
    ]
    ids = {m.id for m in known} | {m.id[:2] for m in known}
    if unknown := [name for name in names if name not in ids]:
        raise SystemExit(f"not in the catalogue: {', '.join(unknown)}")
    return picked


def run(mutations: list[Mutation], jobs: int) -> dict[str, str]:
    """Plant and judge; entries that do not apply count as broken."""
    verdicts = {m.id: "broken" for m in mutations if problems(m)}
    for mutation in mutations:
        for problem in problems(mutation):
            print(f"broken    {mutation.id}: {problem}")
    sound = [m for m in mutations if m.id not in verdicts]
    warm_up()
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        folders = [
            copy_house(Path(place).resolve() / str(i)) for i in range(jobs)
        ]
        if not baseline(sound, folders[0]):
            return {m.id: "broken" for m in mutations}
        return verdicts | sweep(sound, folders)


def golden(mutations: list[Mutation], jobs: int) -> int:
    """Let golden vectors judge alone; 0 if they show what they have to."""
    os.environ["PYTEST_ADDOPTS"] = "-o addopts="  # a port checks no shapes
    touching = aimed(mutations, traces())
    verdicts = run(touching, jobs)
    caught = sum(verdict == "killed" for verdict in verdicts.values())
    wrong = faults(mutations, verdicts)
    for fault in wrong:
        print(fault)
    print(
        f"{len(touching)} of {len(mutations)} touch a golden vector: "
        f"{caught} are caught, {len(touching) - caught} are not, "
        f"{len(wrong)} unexpectedly"
    )
    return int(bool(wrong))


def main(argv: list[str] | None = None) -> int:
    """Run the catalogue, or a part of it; 0 if every mutant was killed."""
    parser = argparse.ArgumentParser(description="plant known mistakes")
    parser.add_argument("names", nargs="*", help="chapters (03) or ids")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print the code")
    parser.add_argument("--golden", action="store_true", help="vectors only")
    args = parser.parse_args(argv)
    mutations = chosen(args.names)
    if args.show:
        for mutation in mutations:
            print(f"# {mutation.id}: {mutation.story}\n{snippet(mutation)}\n")
        return 0
    if args.golden:
        return golden(mutations, max(1, args.jobs))
    begin = time.monotonic()
    verdicts = run(mutations, max(1, args.jobs))
    killed = sum(verdict == "killed" for verdict in verdicts.values())
    seconds = time.monotonic() - begin
    print(f"{killed} of {len(verdicts)} killed in {seconds:.0f} s")
    return int(killed < len(verdicts) or not verdicts)
