"""Every equation has a witness, and every witness is still there."""

import ast
import importlib
import math
from pathlib import Path

import pytest

from dsarch.teaching import proofs
from dsarch.teaching.proofs import Proof

TESTS = proofs.HOUSE / "tests"


def witnessing_tests() -> dict[str, set[str]]:
    """Each test that takes the witness, with the labels it spells out."""
    found = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        name = path.relative_to(proofs.HOUSE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            if "witness" not in {arg.arg for arg in node.args.args}:
                continue
            found[f"{name}::{node.name}"] = {
                call.args[0].value
                for call in ast.walk(node)
                if isinstance(call, ast.Call)
                and getattr(call.func, "id", "") == "witness"
                and isinstance(call.args[0], ast.Constant)
            }
    return found


def test_every_numbered_equation_has_a_witness() -> None:
    known = {proof.equation for proof in proofs.load()}
    missing = {x: n for x, n in proofs.labels().items() if x not in known}
    assert not missing, f"equations without a witness: {missing}"


def test_every_witness_is_recorded_and_still_there() -> None:
    tests = witnessing_tests()
    recorded = proofs.load()
    for proof in recorded:
        assert proof.test in tests, f"{proof.test} is gone: record again"
    pairs = {(proof.test, proof.equation) for proof in recorded}
    for test, labels in tests.items():
        missing = {label for label in labels if (test, label) not in pairs}
        assert not missing, f"run DSARCH_WITNESS=write pytest {test}"


@pytest.mark.parametrize("code", sorted({p.code for p in proofs.load()}))
def test_the_code_of_a_proof_exists(code: str) -> None:
    parts = code.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for name in parts[cut:]:
            thing = getattr(thing, name)
        return
    raise AssertionError(f"{code} cannot be imported")


def test_differences_are_small_and_powers_of_ten() -> None:
    for proof in proofs.load():
        assert proof.difference == proofs.bound(proof.difference)
        assert proof.difference <= 0.1, proof


def test_the_page_shows_the_registry() -> None:
    page = (proofs.HOUSE / "proofs.md").read_text(encoding="utf8")
    assert page == proofs.page(), "run python -m dsarch.teaching.proofs"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty registry in a folder of its own."""
    monkeypatch.setattr(proofs, "path", lambda: tmp_path / "proofs.json")
    monkeypatch.setattr(proofs, "_largest", {})
    proofs.recorded.cache_clear()
    yield tmp_path / "proofs.json"
    proofs.recorded.cache_clear()


def see(difference: float) -> None:
    proofs.witness(
        "eq-example",
        difference,
        reference="torch softmax",
        code="dsarch.layers.masked_softmax",
        test="tests/test_example.py::test_example",
    )


def test_the_largest_difference_is_recorded_and_held(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSARCH_WITNESS", "write")
    for difference in (2e-9, 3.1e-7, 0.0):
        see(difference)
    (proof,) = proofs.load()
    assert proof.difference == 1e-6
    assert proof.version.startswith("2.")
    monkeypatch.delenv("DSARCH_WITNESS")
    see(9e-6)
    with pytest.raises(AssertionError, match="1.1e-05, recorded 1e-06"):
        see(1.1e-5)


@pytest.mark.parametrize("difference", [math.nan, math.inf, -1e-9])
def test_what_is_no_difference_is_refused(
    registry: Path, difference: float
) -> None:
    with pytest.raises(AssertionError, match="the difference is"):
        see(difference)


def test_bounds_are_the_next_power_of_ten() -> None:
    pairs = {3.1e-16: 1e-15, 1e-5: 1e-5, 1.0001e-5: 1e-4, 0.0: 0.0}
    assert {x: proofs.bound(x) for x in pairs} == pairs


def test_labels_are_found_in_both_notations() -> None:
    text = "$$ a = b $$ (eq-one)\n\n```{math}\n:label: eq-two\n\nc\n```\n"
    assert proofs.LABEL.findall(text) == ["eq-one", "eq-two"]


def test_a_row_links_its_equation() -> None:
    proof = Proof("eq-a-b", "dsarch.x", "torch y", "tests/a.py::b", "2.1", 1e-7)
    row = proofs._row(proof, linked=True)
    assert "{eq}`eq-a-b`" in row and "$10^{-7}$" in row
    assert "torch 2.1 y" in row
