"""The whole model against transformers' deepseek_v2, v3 and v32."""

from functools import cache as once

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import MtpModel

from dsarch import Config, DeepSeek, load_checkpoint, save_checkpoint
from dsarch.dsa import SparseMLA
from dsarch.mtp import advance
from tests.conftest import TOL, close
from tests.parity.deepseek import hf_config

# The original window is 16 positions, the sparse models read 7 keys.
LENGTH = 40
SPARSE = {"index_topk": 7, "index_n_heads": 9, "index_head_dim": 14}
MODELS = {
    "v2-lite": (
        "deepseek_v2",
        {"q_lora_rank": None, "n_group": 1, "topk_group": 1},
    ),
    "v2": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy", "routed_scaling_factor": 1.7},
    ),
    "v3": ("deepseek_v3", {}),
    "v3-without-q-latent": ("deepseek_v3", {"q_lora_rank": None}),
    "v32": ("deepseek_v32", SPARSE),
    "v32-dense": ("deepseek_v32", SPARSE | {"index_topk": LENGTH}),
}
CHUNKS = [[LENGTH], [11, 1, 1, 19, 1, 7], [1] * LENGTH]


@once
def official(name: str):
    """A model of transformers with weights that leave no error invisible."""
    kind, changes = MODELS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(hf_config(kind, **changes))
    with torch.no_grad():
        for key, x in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in key or "correction_bias" in key:
                torch.nn.init.normal_(x, float("norm.weight" in key), 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Folders written by transformers, each made once."""

    @once
    def write(name: str, dtype: torch.dtype):
        folder = tmp_path_factory.mktemp(name)
        official(name).to(dtype).save_pretrained(folder)
        return folder

    return write


@pytest.fixture(params=MODELS)
def pair(request, folder_of):
    """A model of transformers and ours, loaded from what it has written."""
    folder = folder_of(request.param, torch.float64)
    theirs = official(request.param).double()
    return request.param, theirs, load_checkpoint(folder)


def eager(folder):
    """Load a folder into transformers, eager so that fp64 works."""
    return AutoModelForCausalLM.from_pretrained(
        folder,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )


def chunked(model, tokens, sizes):
    caches = model.caches()
    logits = [model(chunk, caches) for chunk in tokens.split(sizes, 1)]
    assert {len(cache) for cache in caches} == {tokens.size(1)}
    return torch.cat(logits, 1)


def relative(actual, expected):
    """Both in units of the largest expected value."""
    size = expected.abs().max()
    return actual / size, expected / size


@pytest.mark.parametrize("sizes", CHUNKS, ids=len)
@torch.no_grad()
def test_logits_equal_transformers(pair, sizes, witness):
    name, theirs, ours = pair
    tokens = torch.randint(97, (2, LENGTH))
    expected = theirs(tokens).logits
    actual = ours(tokens) if len(sizes) == 1 else chunked(ours, tokens, sizes)
    actual, expected = relative(actual, expected)
    close(actual, expected, TOL[torch.float32])
    witness(
        "eq-model",
        (actual - expected).abs().max(),
        reference=f"transformers {theirs.config.model_type}",
        code="dsarch.model.DeepSeek",
    )


@pytest.mark.parametrize("name", ["v2", "v3", "v32"])
@torch.no_grad()
def test_logits_equal_transformers_in_fp32(name, folder_of):
    ours = load_checkpoint(folder_of(name, torch.float32))
    theirs = official(name).float()
    tokens = torch.randint(97, (2, LENGTH))
    expected = theirs(tokens).logits
    assert expected.dtype == ours(tokens).dtype == torch.float32
    close(*relative(ours(tokens), expected))
    close(*relative(chunked(ours, tokens, [13, 1, 26]), expected))


def test_the_selection_is_active_in_v32(pair):
    name, _, ours = pair
    layers = [x for x in ours.modules() if isinstance(x, SparseMLA)]
    assert len(layers) == (3 if name.startswith("v32") else 0)
    if name == "v32":
        tokens = torch.randint(97, (1, LENGTH))
        sparse = ours(tokens)
        for layer in layers:
            layer.topk = LENGTH
        dense = ours(tokens)
        close(dense[:, :7], sparse[:, :7])
        assert (dense - sparse)[:, 20:].abs().amin(1).max() > 0.01


def test_gradients_equal_transformers(pair, witness):
    name, theirs, ours = pair
    tokens = torch.randint(97, (2, LENGTH))
    found, wanted = dict(ours.named_parameters()), {}
    for model in (theirs, ours):
        model.zero_grad()
        logits = model(tokens)
        logits = getattr(logits, "logits", logits)
        targets = tokens[:, 1:].flatten()
        F.cross_entropy(logits[:, :-1].flatten(0, 1), targets).backward()
    for key, weight in theirs.named_parameters():
        if ".experts." not in key and ".indexer." not in key:
            wanted[key] = weight.grad
    experts = theirs.model.layers[2].mlp.experts.down_proj.grad
    used = experts.abs().amax((1, 2)).nonzero().flatten().tolist()
    for expert in used:
        key = f"model.layers.2.mlp.experts.{expert}.down_proj.weight"
        wanted[key] = experts[expert]
    assert len(used) > 5 and len(wanted) > 25
    for key, expected in wanted.items():
        actual, expected = relative(found[key].grad, expected)
        close(actual, expected, TOL[torch.float32])
        witness(
            "eq-model-gradient",
            (actual - expected).abs().max(),
            reference=f"transformers {theirs.config.model_type}",
            code="dsarch.model.DeepSeek",
        )


@torch.no_grad()
def test_transformers_reads_what_we_write(pair, tmp_path):
    name, theirs, ours = pair
    folder, again = tmp_path / "ours", tmp_path / "theirs"
    save_checkpoint(ours, folder, shard_bytes=100_000)
    assert len(list(folder.glob("*.safetensors"))) > 5
    model, info = eager(folder)
    assert not any(info.values()), info
    tokens = torch.randint(97, (2, LENGTH))
    assert torch.equal(model(tokens).logits, theirs(tokens).logits)
    model.save_pretrained(again)
    back = load_checkpoint(again)
    assert back.cfg == ours.cfg
    assert back.state_dict().keys() == ours.state_dict().keys()
    for key, x in ours.state_dict().items():
        assert torch.equal(back.state_dict()[key], x), key


def with_mtp(**changes):
    """A V3 model with one MTP layer and weights worth testing."""
    config = hf_config("deepseek_v3", num_nextn_predict_layers=1, **changes)
    model = DeepSeek(Config.from_hf(config.to_dict())).double()
    with torch.no_grad():
        for key, x in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in key or "correction_bias" in key:
                torch.nn.init.normal_(x, float("norm" in key), 0.3)
    return model


def official_mtp(main, ours):
    """transformers' drafting module with the weights of our MTP layer."""
    module = MtpModel(main, 1).to(torch.float64).eval()
    experts = ours.mlp.experts
    state = {}
    for key, x in ours.state_dict().items():
        if key.startswith(("enorm", "hnorm", "eh_proj")):
            state[f"layers.0.{key}"] = x
        elif key == "shared_head.norm.weight":
            state["layers.0.post_norm.weight"] = x
        elif not key.startswith(("embed_tokens", "shared_head", "mlp.experts")):
            state[f"layers.0.mtp_block.{key}"] = x
    fused = "layers.0.mtp_block.mlp.experts."
    gate_up = [[x.gate_proj.weight, x.up_proj.weight] for x in experts]
    state[fused + "gate_up_proj"] = torch.stack([*map(torch.cat, gate_up)])
    down = [x.down_proj.weight for x in experts]
    state[fused + "down_proj"] = torch.stack(down)
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(x.startswith(("embed_tokens", "shared_head")) for x in missing)
    return module


@torch.no_grad()
def test_mtp_layer_equals_transformers(tmp_path, witness):
    ours = with_mtp()
    save_checkpoint(ours, tmp_path / "model")
    main, info = eager(tmp_path / "model")
    assert not info["missing_keys"]
    theirs = official_mtp(main, ours.mtp[0])
    tokens = torch.randint(97, (2, LENGTH + 1))
    states = main(tokens[:, :-1], output_hidden_states=True).hidden_states[-1]
    hidden = ours.hidden(tokens[:, :-1])
    close(*relative(hidden, states), TOL[torch.float32])
    # transformers counts positions from the token, we from the state.
    position = torch.arange(1, LENGTH + 1)[None]
    expected = theirs.forward_layer(
        0, states, position, None, input_ids=tokens[:, 1:]
    )
    expected = theirs._project_to_logits(expected)
    state = advance(ours.mtp[0], hidden, tokens[:, 1:])
    actual = ours.mtp[0].shared_head.head(state)
    actual, expected = relative(actual, expected)
    close(actual, expected, TOL[torch.float32])
    witness(
        "eq-mtp",
        (actual - expected).abs().max(),
        reference="transformers deepseek_v3",
        code="dsarch.mtp.MTP",
    )
