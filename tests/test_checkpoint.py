"""Folders in and out: what is kept, what is refused, what is left behind."""

import json
import os
import pickle
import resource
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsarch import load_checkpoint, save_checkpoint, shards
from dsarch.fp8.reference import weight_dequant, weight_quant
from dsarch.model import DeepSeek
from tests.conftest import close
from tests.small import CFG, SPARSE, model

INDEX = "model.safetensors.index.json"
NAME = "model.layers.1.self_attn.o_proj.weight"


@pytest.fixture
def folder(tmp_path):
    """A folder of several files with a V3 model and its MTP layer."""
    save_checkpoint(model(dtype=torch.float32), tmp_path / "m", 60_000)
    return tmp_path / "m"


@pytest.fixture
def single(tmp_path):
    """The same in one file."""
    save_checkpoint(model(dtype=torch.float32), tmp_path / "s")
    return tmp_path / "s"


def edit(folder, change):
    """Rewrite the single file after `change` has been at its tensors."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def same(a, b):
    assert a.cfg == b.cfg
    assert a.state_dict().keys() == b.state_dict().keys()
    for key, x in a.state_dict().items():
        assert x.dtype == b.state_dict()[key].dtype, key
        assert torch.equal(x, b.state_dict()[key]), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cfg", [CFG, SPARSE], ids=["v3", "v32"])
@pytest.mark.parametrize("shard_bytes", [10**9, 60_000])
def test_what_is_saved_comes_back(cfg, dtype, shard_bytes, tmp_path):
    net = model(cfg, dtype)
    save_checkpoint(net, tmp_path / "m", shard_bytes)
    files = sorted(x.name for x in (tmp_path / "m").iterdir())
    assert (INDEX in files) == (shard_bytes == 60_000)
    back = load_checkpoint(tmp_path / "m")
    same(back, net)
    assert back.mtp[0].embed_tokens is back.model.embed_tokens
    assert back.mtp[0].shared_head.head is back.lm_head
    assert all(x.requires_grad for x in back.parameters())
    text = torch.randint(53, (2, 9))
    assert torch.equal(back(text), net(text))


def test_the_index_names_every_tensor_and_the_size(folder):
    index = json.loads((folder / INDEX).read_text())
    tensors = {}
    for file in folder.glob("*.safetensors"):
        for name, x in load_file(file).items():
            assert index["weight_map"][name] == file.name
            tensors[name] = x
    assert tensors.keys() == model().state_dict().keys()
    assert index["metadata"]["total_size"] == sum(
        x.nbytes for x in tensors.values()
    )
    assert len(set(index["weight_map"].values())) > 5


def test_dtype_and_device_are_chosen_and_biases_stay_wide(single):
    assert load_checkpoint(single).lm_head.weight.dtype == torch.float32
    net = load_checkpoint(single, dtype=torch.bfloat16, device="cpu")
    assert {x.dtype for x in net.parameters()} == {torch.bfloat16}
    biases = [x for _, x in net.named_buffers()]
    assert len(biases) == 3
    expected = [x for _, x in model(dtype=torch.float32).named_buffers()]
    for bias, x in zip(biases, expected, strict=True):
        assert bias.dtype == torch.float32 and torch.equal(bias, x)


def test_the_loaded_model_does_not_hang_on_the_files(folder):
    net = load_checkpoint(folder)
    before = {key: x.clone() for key, x in net.state_dict().items()}
    for file in folder.glob("*.safetensors"):
        file.write_bytes(bytes(file.stat().st_size))
    for key, x in net.state_dict().items():
        assert torch.equal(x, before[key])


def test_a_tied_head_is_stored_once(tmp_path):
    net = model(CFG.replace(tie_word_embeddings=True), torch.float32)
    save_checkpoint(net, tmp_path / "m")
    names = load_file(tmp_path / "m" / "model.safetensors").keys()
    assert "lm_head.weight" not in names
    back = load_checkpoint(tmp_path / "m")
    same(back, net)
    assert back.lm_head.weight is back.model.embed_tokens.weight


def test_a_folder_without_its_mtp_layer_gives_a_model_without(single):
    edit(
        single,
        lambda x: [x.pop(k) for k in [*x] if k.startswith("model.layers.3.")],
    )
    net, whole = load_checkpoint(single), model(dtype=torch.float32)
    assert net.mtp == [] and net.cfg.num_nextn_predict_layers == 0
    text = torch.randint(53, (2, 9))
    assert torch.equal(net(text), whole(text))


def test_half_an_mtp_layer_is_refused(single):
    edit(single, lambda x: x.pop("model.layers.3.eh_proj.weight"))
    with pytest.raises(ValueError, match=r"missing .*3\.eh_proj\.weight"):
        load_checkpoint(single)


def test_copies_of_shared_tensors_may_be_absent_but_not_different(single):
    copies = ["model.layers.3.embed_tokens.weight", "lm_head.weight"]
    edit(single, lambda x: [x.pop(name) for name in copies])
    same(load_checkpoint(single), model(dtype=torch.float32))
    edit(single, lambda x: x.update({copies[0]: torch.zeros(53, 40)}))
    with pytest.raises(ValueError, match="embed_tokens.*one tensor, but dif"):
        load_checkpoint(single)


def quantised(folder, tmp_path):
    """The folder with every matrix of the layers in block FP8, in two files.

    The scales lie in the other file, as they may.
    """
    tensors, scales = {}, {}
    for name, x in load_file(folder / "model.safetensors").items():
        inside = ".layers." in name and "shared_head.head" not in name
        plain = ("gate.weight", "eh_proj", "embed_tokens")
        if inside and x.ndim == 2 and not any(p in name for p in plain):
            values, scale = weight_quant(x)
            tensors[name] = values.to(torch.float8_e4m3fn).contiguous()
            scales[name + "_scale_inv"] = scale.contiguous()
        else:
            tensors[name] = x.bfloat16() if x.ndim > 1 else x
    target = tmp_path / "fp8"
    target.mkdir()
    files = {"a.safetensors": tensors, "b.safetensors": scales}
    places = {name: file for file, held in files.items() for name in held}
    for file, held in files.items():
        save_file(held, target / file, {"format": "pt"})
    index = json.dumps({"metadata": {}, "weight_map": places})
    (target / INDEX).write_text(index)
    (target / "config.json").write_text((folder / "config.json").read_text())
    return target, tensors, scales


def wide():
    """A model whose matrices have several blocks, the last ones ragged."""
    cfg = CFG.replace(hidden_size=136, intermediate_size=260, q_lora_rank=150)
    return model(cfg, torch.float32)


def test_block_fp8_is_multiplied_out(tmp_path, witness):
    save_checkpoint(wide(), tmp_path / "m")
    folder, tensors, scales = quantised(tmp_path / "m", tmp_path)
    assert scales["model.layers.0.mlp.gate_proj.weight_scale_inv"].shape == (
        3,
        2,
    )
    net = load_checkpoint(folder, dtype=torch.float32)
    assert len(scales) > 100
    gaps = []
    for name, x in net.state_dict().items():
        if name + "_scale_inv" in scales:
            scale = scales[name + "_scale_inv"]
            rows, columns = (torch.arange(n) // 128 for n in x.shape)
            blocks = scale[rows][:, columns]
            expected = tensors[name].float() * blocks
            close(x, expected)
            close(x, weight_dequant(tensors[name], scale))
            gaps.append((x - expected).abs().max())
        else:
            close(x, tensors[name].float())
    exact, rounded = wide()(text := torch.randint(53, (1, 9))), net(text)
    assert 1e-4 < (exact - rounded).abs().max() / exact.abs().max() < 1
    witness(
        "eq-fp8-checkpoint",
        max(gaps),
        reference="identity: scales spread over their blocks",
        code="dsarch.checkpoint.load_checkpoint",
    )


def test_block_fp8_becomes_bf16_unless_told_otherwise(tmp_path):
    save_checkpoint(wide(), tmp_path / "m")
    folder, _, _ = quantised(tmp_path / "m", tmp_path)
    net = load_checkpoint(folder)
    assert {x.dtype for x in net.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t, s: s.pop(NAME + "_scale_inv"),
            "or two axes and .*o_proj.weight_scale_inv",
        ),
        (
            lambda t, s: s.update({NAME + "_scale_inv": torch.ones(1, 2)}),
            r"o_proj.weight_scale_inv has shape \[1, 2\].* expected \[2, 1\]",
        ),
        (
            lambda t, s: s.update({NAME + "_scale_inv": -torch.ones(2, 1)}),
            "scale_inv holds a scale that is not positive",
        ),
        (
            lambda t, s: t.update({NAME: t[NAME].float()}),
            "unexpected .*o_proj.weight_scale_inv",
        ),
        (
            lambda t, s: t[NAME].view(torch.uint8).fill_(127),
            "o_proj.weight holds values that are not finite",
        ),
    ],
)
def test_bad_fp8_is_refused(change, message, tmp_path):
    save_checkpoint(wide(), tmp_path / "m")
    folder, tensors, scales = quantised(tmp_path / "m", tmp_path)
    change(tensors, scales)
    save_file(tensors | scales, folder / "model.safetensors")
    (folder / INDEX).unlink()
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop(NAME), rf"missing {NAME}$"),
        (lambda x: [x.pop(k) for k in [*x][:9]], r"missing .*\(and \d more\)"),
        (
            lambda x: x.update(extra=torch.zeros(1)),
            r"unexpected extra$",
        ),
        (
            lambda x: x.update({NAME: torch.zeros(40, 51)}),
            rf"{NAME} has shape \[40, 51\], expected \[40, 50\]",
        ),
        (
            lambda x: x.update({NAME: x[NAME].T.contiguous()}),
            r"has shape \[50, 40\], expected \[40, 50\]",
        ),
        (
            lambda x: x.update({NAME: x[NAME].long()}),
            rf"{NAME} has type I64, expected \['F64'",
        ),
        (
            lambda x: x[NAME].view(-1)[7].fill_(float("nan")),
            rf"{NAME} holds values that are not finite",
        ),
        (
            lambda x: x[NAME].view(-1)[7].fill_(float("inf")),
            rf"{NAME} holds values that are not finite",
        ),
    ],
)
def test_a_wrong_tensor_is_named(change, message, single):
    edit(single, change)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(single)


def test_nothing_is_allocated_before_everything_is_checked(single, monkeypatch):
    edit(single, lambda x: x.update(zzz=torch.zeros(1)))
    read = []
    monkeypatch.setattr(
        "dsarch.checkpoint._tensors", lambda *x: read.append(x) or iter(())
    )
    with pytest.raises(ValueError, match="unexpected zzz"):
        load_checkpoint(single)
    assert read == []


def test_too_large_for_the_dtype_is_not_finite(single):
    edit(single, lambda x: x[NAME].view(-1)[0].fill_(1e6))
    load_checkpoint(single)
    with pytest.raises(ValueError, match="not finite"):
        load_checkpoint(single, dtype=torch.float16)


@pytest.mark.parametrize("size", [0, 5, 8, 200, -1, -1000])
def test_a_cut_off_file_is_refused(size, folder):
    file = sorted(folder.glob("*.safetensors"))[2]
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)
    with pytest.raises(ValueError, match=rf"{file.name} is damaged"):
        load_checkpoint(folder)


def test_bytes_behind_the_end_are_refused(single):
    with (single / "model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="damaged: .* bytes of data"):
        load_checkpoint(single)


def raw(header, data=b""):
    """A file of safetensors by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(**changes):
    fields = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return fields | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (raw(b"no json"), "damaged"),
        (raw(b"[1, 2]"), "holds a list"),
        (raw(b"\xff\xfe{}"), "damaged"),
        (raw(b"[" * 9000), "damaged"),
        ((10**18).to_bytes(8, "little") + b"{}", "header of 1000000000000000"),
        (raw({"a": entry()}), "0 bytes of data, the header names 8"),
        (raw({"a": entry(shape=[3])}, bytes(8)), "8 bytes, its shape"),
        (raw({"a": entry(shape=[-2])}, bytes(8)), r"shape \(-2,\)"),
        (raw({"a": entry(shape=[2.0])}, bytes(8)), "a has shape"),
        (raw({"a": entry(dtype="I32")}, bytes(8)), "type I32"),
        (raw({"a": {"dtype": "F32"}}), "damaged"),
        (raw({"a": 7}), "damaged"),
        (raw({"a": entry(), "b": entry()}, bytes(16)), "data at 0, expected"),
        (
            raw({"a": entry(data_offsets=[4, 12])}, bytes(12)),
            "data at 4, expected",
        ),
        (
            raw(
                b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
                bytes(8),
            ),
            "a appears twice",
        ),
    ],
)
def test_a_hostile_header_is_refused(content, message, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        shards.header(path)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("gone.safetensors", "names gone.safetensors, which .* lacks"),
        ("../m/other.safetensors", "leaves"),
        ("/etc/passwd.safetensors", "leaves"),
        ("..\\x.safetensors", "leaves"),
        ("..", "leaves|no safetensors"),
        ("", "leaves|no safetensors"),
        ("weights.bin", "no safetensors"),
        (7, "names 7 as a shard"),
        (None, "names None as a shard"),
    ],
)
def test_an_index_stays_inside_its_folder(shard, message, folder):
    edit_json(folder / INDEX, lambda x: x["weight_map"].update({NAME: shard}))
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


def test_an_index_and_its_files_must_agree(folder):
    files = sorted(x.name for x in folder.glob("*.safetensors"))
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    other = next(x for x in files if x != places[NAME])
    edit_json(folder / INDEX, lambda x: x["weight_map"].update({NAME: other}))
    with pytest.raises(ValueError, match=rf"{NAME} is in {places[NAME]}, but"):
        load_checkpoint(folder)


def test_an_index_may_not_promise_more_than_the_files_hold(folder):
    files = sorted(x.name for x in folder.glob("*.safetensors"))
    edit_json(folder / INDEX, lambda x: x["weight_map"].update(ghost=files[0]))
    with pytest.raises(ValueError, match="places ghost in .* where it is not"):
        load_checkpoint(folder)


def test_a_tensor_in_two_files_is_refused(folder):
    files = sorted(folder.glob("*.safetensors"))
    first, second = load_file(files[0]), load_file(files[1])
    name = next(iter(first))
    save_file(second | {name: first[name]}, files[1])
    with pytest.raises(ValueError, match=rf"{name} is in .*, but .* places"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": 3}', '{"a": 1, "a": 2}', "\xff"]
)
def test_a_damaged_index_is_refused(text, folder):
    (folder / INDEX).write_text(text, encoding="latin1")
    with pytest.raises(ValueError, match=f"{INDEX} is damaged"):
        load_checkpoint(folder)


def test_pickled_weights_are_never_opened(tmp_path, single):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    (single / "model.safetensors").unlink()
    (single / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"pickled weights \(pytorch_model"):
        load_checkpoint(single)
    assert not (tmp_path / "sprung").exists()


def test_a_folder_without_weights_or_config_is_refused(tmp_path, single):
    with pytest.raises(ValueError, match="there is no folder .*nowhere"):
        load_checkpoint(tmp_path / "nowhere")
    (single / "config.json").unlink()
    with pytest.raises(ValueError, match="cannot read a config"):
        load_checkpoint(single)
    (single / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds neither model.safetensors"):
        load_checkpoint(single)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is none of"),
        ({"num_hidden_layers": 4}, r"unexpected model\.layers\.3\.eh_proj"),
        ({"num_hidden_layers": 2}, r"unexpected model\.layers\.3\."),
        ({"q_lora_rank": None}, r"unexpected .*\.q_a_layernorm"),
        ({"vocab_size": 54}, r"has shape \[53, 40\], expected \[54, 40\]"),
        ({"n_group": 5}, "n_group 5 does not divide n_routed_experts 12"),
        ({"rope_interleave": False}, "rope_interleave=False"),
    ],
)
def test_a_config_of_another_model_is_refused(change, message, single):
    edit_json(single / "config.json", lambda x: x.update(change))
    with pytest.raises(ValueError, match=message):
        load_checkpoint(single)


def test_an_unreadable_file_is_refused(folder):
    file = sorted(folder.glob("*.safetensors"))[1]
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match="lacks"):
        load_checkpoint(folder)


def test_saving_never_overwrites(single):
    before = (single / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="there already and not empty"):
        save_checkpoint(DeepSeek(CFG), single)
    assert (single / "model.safetensors").read_bytes() == before
    with pytest.raises(ValueError, match="there already"):
        save_checkpoint(DeepSeek(CFG), single / "config.json")


def test_an_empty_folder_is_filled_and_parents_are_made(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "a/b/c"):
        save_checkpoint(model(dtype=torch.float32), tmp_path / name)
        load_checkpoint(tmp_path / name)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    net = DeepSeek(CFG)
    with torch.no_grad():
        net.model.norm.weight[3] = float("inf")
    with pytest.raises(ValueError, match="model.norm.weight holds values"):
        save_checkpoint(net, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from dsarch import save_checkpoint
from tests.small import model
net = model()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    save_checkpoint(net, Path(sys.argv[1]), 60_000)
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 3_000, 50_000])
def test_a_full_disk_leaves_nothing_behind(limit, tmp_path):
    assert signal.SIGXFSZ and resource.RLIMIT_FSIZE
    target = tmp_path / "m"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(target), str(limit)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"cannot save to {target}" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_failure_late_in_saving_leaves_nothing_behind(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dsarch.checkpoint._write_json", fails)
    with pytest.raises(OSError, match="cannot save to .*No space left"):
        save_checkpoint(DeepSeek(CFG), tmp_path / "m", 60_000)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_shown_when_asked_for(folder, capsys):
    load_checkpoint(folder)
    assert capsys.readouterr().err == ""
    load_checkpoint(folder, progress=True)
    shown = capsys.readouterr().err
    count = len(model().state_dict())
    assert shown.endswith(f"{count}/{count} tensors\n")
    assert 30 <= shown.count("\r") <= 41


MEMORY = """
import re, sys
from pathlib import Path
from dsarch import load_checkpoint

def kib(field):
    status = Path("/proc/self/status").read_text()
    return int(re.search(field + r":\\s+(\\d+)", status)[1])

load_checkpoint(sys.argv[2])
start = kib("VmRSS")
net = load_checkpoint(sys.argv[1])
size = sum(x.nbytes for x in net.parameters())
print((kib("VmHWM") - start) * 1024 / size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_stays_near_the_size_of_the_model(tmp_path):
    cfg = CFG.replace(hidden_size=512, n_routed_experts=48)
    cfg = cfg.replace(moe_intermediate_size=256)
    torch.manual_seed(0)
    save_checkpoint(DeepSeek(cfg), tmp_path / "large", 20_000_000)
    save_checkpoint(DeepSeek(CFG), tmp_path / "small")
    assert len(list((tmp_path / "large").glob("*.safetensors"))) > 9
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            MEMORY,
            str(tmp_path / "large"),
            str(tmp_path / "small"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0.9 < float(done.stdout) < 1.4
