"""States on disk: bit-exact, atomic, checked, and several of them."""

import json
import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors import safe_open

from dsarch.train import state


def tree():
    g = torch.Generator().manual_seed(0)
    return {
        "weights": {
            "a": torch.randn(3, 5, generator=g),
            "b": torch.randn(4, generator=g).bfloat16(),
            "c": torch.tensor(7.5, dtype=torch.float64),
            "empty": torch.empty(0, 3),
        },
        "groups": [{"betas": (0.9, 0.95), "dtype": torch.bfloat16}],
        0: {"step": 3, "rate": 0.1 + 0.2, "none": None, "yes": True},
        "bits": torch.tensor([True, False]),
    }


def same(a, b) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert a == b


def test_a_tree_comes_back_bit_for_bit(tmp_path):
    same(tree(), state.load(state.save(tmp_path, 12, tree())))


def test_others_can_read_the_file(tmp_path):
    """It is a plain safetensors file: the public reader opens it."""
    path = state.save(tmp_path, 1, tree())
    with safe_open(path, "pt") as file:
        stored = [file.get_tensor(name) for name in sorted(file.keys())]
        assert file.metadata()["format"] == state.FORMAT
    expected = [*tree()["weights"].values(), tree()["bits"]]
    for a, b in zip(stored, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_the_newest_few_are_kept(tmp_path):
    for step in (5, 10, 15, 100):
        state.save(tmp_path, step, {"step": step}, keep=2)
    steps = [int(path.name[:8]) for path in state.states(tmp_path)]
    assert steps == [15, 100]
    assert state.latest(tmp_path) == {"step": 100}


def test_a_step_saved_again_replaces_the_first(tmp_path):
    state.save(tmp_path, 1, {"step": 1})
    for text in ("first", "second"):
        state.save(tmp_path, 2, {"step": 2, "text": text})
    names = [path.name[:8] for path in state.states(tmp_path)]
    assert names == ["00000001", "00000002"]
    assert state.latest(tmp_path)["text"] == "second"


def test_equal_states_have_equal_bytes(tmp_path):
    """Saving again after a resume writes the same file."""
    first = state.save(tmp_path / "a", 3, tree())
    again = state.save(tmp_path / "b", 3, tree())
    assert first.name == again.name
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("place", (0, 9, 200, -1))
def test_every_changed_byte_is_noticed(tmp_path, place):
    state.save(tmp_path, 1, {"step": 1})
    path = state.save(tmp_path, 2, tree())
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        state.load(path)
    with pytest.warns(UserWarning, match="damaged"):
        assert state.latest(tmp_path) == {"step": 1}


def test_a_cut_file_is_noticed(tmp_path):
    path = state.save(tmp_path, 2, tree())
    path.write_bytes(path.read_bytes()[:-10])
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match="all 1 states"),
    ):
        state.latest(tmp_path)


def test_a_foreign_file_is_refused(tmp_path):
    """A sound safetensors file with a right name, but not ours."""
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    content = len(header).to_bytes(8, "little") + header
    import hashlib

    digest = hashlib.sha256(content).hexdigest()[: state.DIGITS]
    path = tmp_path / f"00000003-{digest}.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no 'dsarch training state"):
        state.load(path)
    with pytest.raises(ValueError, match="cannot read"):
        state.load(tmp_path / "00000004-x.safetensors")


def test_an_empty_folder_has_no_state(tmp_path):
    assert state.latest(tmp_path) is None
    assert state.latest(tmp_path / "absent") is None


def test_what_cannot_be_stored_is_named(tmp_path):
    with pytest.raises(ValueError, match="float64"):
        state.save(tmp_path, 1, {"x": np.float64(1.0)})
    with pytest.raises(ValueError, match="set"):
        state.save(tmp_path, 1, {"x": {1, 2}})
    assert list(tmp_path.iterdir()) == []


def test_generators_go_on_where_they_stood():
    def draw():
        return random.random(), np.random.rand(), torch.rand(3).tolist()

    draw()
    saved = state.random_state()
    first = draw()
    assert draw() != first
    state.set_random_state(saved)
    assert draw() == first


def test_generators_survive_the_disk(tmp_path):
    def draw():
        return random.gauss(0, 1), np.random.randn(), torch.randn(()).item()

    draw()
    saved = state.random_state()
    first = draw()
    state.set_random_state(state.load(state.save(tmp_path, 0, saved)))
    assert draw() == first


def test_a_full_disk_changes_nothing(tmp_path):
    """The system refuses to write beyond a limit, as a full disk would."""
    good = state.save(tmp_path, 1, {"step": 1})
    script = f"""
        import resource, signal, sys
        import torch
        from dsarch.train import state
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            state.save({str(tmp_path)!r}, 2, {{"x": torch.zeros(5000)}})
        except OSError as error:
            print(error)
            sys.exit(7)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 7, done.stderr
    assert "cannot save step 2" in done.stdout
    assert f"the last good state is {good.name}" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == [good.name]
    assert state.latest(tmp_path) == {"step": 1}


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match="cannot save step 4.*none"):
        state.save(blocked / "run", 4, {})


@pytest.mark.parametrize("call", ("fsync", "replace"))
def test_an_interrupted_save_leaves_the_old_states(tmp_path, monkeypatch, call):
    good = state.save(tmp_path, 1, {"step": 1})

    def fail(*args):
        raise OSError("interrupted")

    monkeypatch.setattr(state.os, call, fail)
    with pytest.raises(OSError, match="interrupted"):
        state.save(tmp_path, 2, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == [good.name]


def test_order_of_a_save(tmp_path, monkeypatch):
    """The bytes are on the disk before the name is, then the name."""
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def record(*args, name=name, real=real):
            calls.append(name)
            return real(*args)

        monkeypatch.setattr(state.os, name, record)
    state.save(tmp_path, 1, {"step": 1})
    assert calls == ["fsync", "replace", "fsync"]
