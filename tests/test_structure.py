"""The shape of the code: who may import whom, and how long a thing may be."""

import ast
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dsarch"
FILES = sorted(PACKAGE.rglob("*.py"))
TOOLS = sorted((ROOT / "book").glob("*.py"))

# A module imports from its own level or from one before it.
LEVELS = [
    {"released"},
    {"config"},
    {"layers", "rope", "cache"},
    {"fp8"},
    {"attention", "mla", "fused", "dsa", "indexing"},
    {"router", "balance", "experts", "dispatch", "moe"},
    {"block", "mtp"},
    {"model"},
    {"generate", "sampling", "checkpoint", "shards"},
    {"train"},
    {"post"},
    {"analysis"},
    {"teaching"},
]
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}

# What a reader needs for everything but the book's figures and explorers.
NEEDED = {"torch", "numpy", "einops", "jaxtyping"}
# Heavy or optional packages, each with the one place that imports it.
ONLY_IN = {
    "matplotlib": "analysis/plots.py",
    "matplotlib_inline": "analysis/plots.py",
    "cycler": "analysis/plots.py",
    "ipywidgets": "teaching/explorers/live*.py",
    "anywidget": "teaching/explorers/live*.py",
    "triton": "fp8/triton.py",
    "safetensors": "checkpoint.py",
    "IPython": "teaching/*.py",
}
MAX_CLASS, MAX_FUNCTION, MAX_FILE, MAX_PACKAGE = 60, 30, 300, 7000
BLANK = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def top(module: str) -> str:
    """Map `dsarch.fp8.linear` to `fp8`, and the package itself to ``."""
    return module.split(".")[1] if "." in module else ""


def imports(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Yield each imported module with the names taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or "", [alias.name for alias in node.names]


def modules(path: Path) -> Iterator[str]:
    """Yield imported modules; `from dsarch import x` counts as `dsarch.x`."""
    tree = ast.parse(path.read_text(encoding="utf8"))
    for module, names in imports(tree):
        if module == "dsarch":
            yield from (
                f"dsarch.{name}"
                for name in names
                if (PACKAGE / f"{name}.py").exists()
                or (PACKAGE / name).is_dir()
            )
        else:
            yield module


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        own = "generate"  # the package's public names reach this far
    assert own in LEVEL, f"give {own} a level in this test"
    for module in modules(path):
        if module.split(".")[0] != "dsarch" or not top(module):
            continue
        target = top(module)
        assert LEVEL[target] <= LEVEL[own], f"{own} imports {target}"
        if own == "fp8":
            assert target in ("fp8", "layers"), f"fp8 imports {target}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_packages_are_imported_in_one_place(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    for module in modules(path):
        package = module.split(".")[0]
        known = package in NEEDED or package == "dsarch"
        if known or package in sys.stdlib_module_names:
            continue
        assert package in ONLY_IN, f"{package} is not a dependency"
        place = ONLY_IN[package]
        nested = place.replace("/*", "/**/*")
        assert relative.match(place) or relative.match(nested), (
            f"{package} is imported outside {place}"
        )


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return one cycle of the graph, or an empty list."""
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        for after in sorted(graph.get(node, ())):
            if found := visit(after, [*trail, node]):
                return found
        done.add(node)
        return []

    return next(filter(None, (visit(node, []) for node in sorted(graph))), [])


def test_no_module_imports_itself_through_others() -> None:
    graph = {}
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__init__":
            continue
        targets = {m for m in modules(path) if m.startswith("dsarch.")}
        graph[".".join(parts)] = targets
    assert not cycle(graph)


def length(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count lines; the fields of a class are a table and do not count."""
    fields = (
        (field.end_lineno or 0) - field.lineno + 1
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(node, ast.ClassDef)
    )
    return (node.end_lineno or 0) - node.lineno + 1 - sum(fields)


def lengths(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, length and limit of everything that has a limit."""
    text = path.read_text(encoding="utf8")
    yield path.name, len(text.splitlines()), MAX_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            limit = MAX_CLASS
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = MAX_FUNCTION
        else:
            continue
        yield node.name, length(node), limit


@pytest.mark.parametrize(
    "path", FILES + TOOLS, ids=lambda path: str(path.relative_to(ROOT))
)
def test_nothing_is_longer_than_a_reader_can_hold(path: Path) -> None:
    long = [
        f"{name}: {lines} lines, at most {limit}"
        for name, lines, limit in lengths(path)
        if lines > limit
    ]
    assert not long
    assert "from __future__ import annotations" not in path.read_text()


def code_lines(path: Path) -> int:
    """Count the lines that hold code: no docstring, comment or blank."""
    source = path.read_text(encoding="utf8")
    told: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(
            first.value, ast.Constant
        ):
            told |= set(range(first.lineno, first.end_lineno + 1))
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    kept = (t for t in tokens if t.type not in BLANK)
    lines = {n for t in kept for n in range(t.start[0], t.end[0] + 1)}
    return len(lines - told)


def test_the_reference_stays_small() -> None:
    """The models and their training; the book's own tools are not in it."""
    tools = ("analysis", "teaching")
    parts = [p for p in FILES if p.relative_to(PACKAGE).parts[0] not in tools]
    total = sum(map(code_lines, parts))
    assert total <= MAX_PACKAGE, f"{total} lines of code, at most {MAX_PACKAGE}"


# Split, so that this file does not find itself.
BANNED = re.compile(
    "|".join(
        (
            r"\bTO" r"DO\b",
            r"\bFIX" r"ME\b",
            r"\bX" r"XX\b",
            r"\bplace" r"holder\b",
            r"not\ imple" r"mented",
            r"raise\ NotImple" r"mented",
            r"/wo" r"rk/",
            r"/ro" r"ot/",
        )
    ),
    re.IGNORECASE | re.VERBOSE,
)
KINDS = {".py", ".md", ".ipynb", ".rs", ".js", ".css", ".toml", ".cfg", ".yml"}
SKIPPED = {"_build", ".venv", ".git", "node_modules", "target", "katex"}


def texts(path: Path) -> str:
    """Return what was written by hand: of a notebook, the cells' sources."""
    text = path.read_text(encoding="utf8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    return text


def written() -> Iterator[Path]:
    """Yield every text file of the project."""
    for path in sorted(ROOT.rglob("*")):
        inside = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") for part in inside[:-1])
        if hidden or SKIPPED & set(inside) or not path.is_file():
            continue
        if path.suffix in KINDS or path.name == "Makefile":
            yield path


def test_no_notes_to_self_and_no_paths_of_a_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in written()
        for match in BANNED.finditer(texts(path))
    ]
    assert not found


def test_shape_annotations_are_checked_in_this_run() -> None:
    """Without the import hook the wrong shape would pass silently."""
    import torch

    from dsarch.layers import SwiGLU

    mlp = SwiGLU(4, 8)
    assert mlp(torch.ones(2, 4)).shape == (2, 4)
    with pytest.raises(TypeError, match="(?i)type-check"):
        mlp(torch.ones(2, 4, dtype=torch.int64))
