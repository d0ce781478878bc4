"""Identities of the whole model, its names and its sizes."""

import pytest
import torch

from dsarch.cache import Cache
from dsarch.config import Config
from dsarch.model import DeepSeek
from tests.conftest import close
from tests.small import CFG, SPARSE, model

TOKENS = 12
KINDS = pytest.mark.parametrize("cfg", [CFG, SPARSE], ids=["v3", "v32"])


def tokens(batch=2, count=TOKENS, vocabulary=53):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(vocabulary, (batch, count), generator=generator)


@KINDS
@pytest.mark.parametrize("first", range(1, TOKENS))
@torch.no_grad()
def test_cached_equals_full_at_every_split(cfg, first, witness):
    net, caches = model(cfg), None
    full = net(tokens())
    caches = net.caches()
    parts = tokens().split([first, TOKENS - first], 1)
    split = torch.cat([net(part, caches) for part in parts], 1)
    close(split, full)
    witness(
        "eq-model-cache",
        (split - full).abs().max(),
        reference="identity: full pass",
        code="dsarch.model.DeepSeek",
    )


@KINDS
@torch.no_grad()
def test_a_rejected_draft_leaves_no_trace(cfg):
    net, caches = model(cfg), None
    caches = net.caches()
    net(tokens()[:, :5], caches)
    net(tokens()[:, 3:7], caches)
    for cache in caches:
        cache.crop(5)
    close(net(tokens()[:, 5:], caches), net(tokens())[:, 5:])


@KINDS
@torch.no_grad()
def test_the_future_leaves_no_trace(cfg):
    net, x = model(cfg), tokens()
    before = net(x)
    x[:, 7] = (x[:, 7] + 1) % 53
    after = net(x)
    close(after[:, :7], before[:, :7])
    assert (after - before)[:, 7:].abs().amax(-1).gt(1e-4).all()


@torch.no_grad()
def test_a_batch_is_its_sequences():
    net, x = model(), tokens(3)
    close(net(x), torch.cat([net(row[None]) for row in x]))


@torch.no_grad()
def test_without_its_mtp_layer_the_model_is_the_same(witness):
    net = model()
    plain = DeepSeek(CFG.replace(num_nextn_predict_layers=0)).double()
    state = net.state_dict()
    kept = {key: state[key] for key in plain.state_dict()}
    plain.load_state_dict(kept, strict=True)
    assert len(kept) < len(state) and plain.mtp == []
    assert torch.equal(plain(tokens()), net(tokens()))
    witness(
        "eq-mtp-removed",
        (plain(tokens()) - net(tokens())).abs().max(),
        reference="identity: no MTP layer",
        code="dsarch.model.DeepSeek",
    )


@torch.no_grad()
def test_logits_are_the_head_of_the_hidden_states():
    net = model()
    close(net.lm_head(net.hidden(tokens())), net(tokens()))


def test_a_generator_decides_all_weights():
    torch.manual_seed(1)
    first = DeepSeek(CFG, torch.Generator().manual_seed(3)).state_dict()
    torch.manual_seed(2)
    again = DeepSeek(CFG, torch.Generator().manual_seed(3)).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    spread = first["lm_head.weight"].std()
    assert abs(spread - CFG.initializer_range) < 0.01


def test_a_tied_head_is_the_embedding():
    net = DeepSeek(CFG.replace(tie_word_embeddings=True))
    assert net.lm_head.weight is net.model.embed_tokens.weight
    net(tokens()).sum().backward()
    assert net.lm_head.weight.grad is net.model.embed_tokens.weight.grad


@KINDS
@torch.no_grad()
def test_bf16_is_close_to_fp32(cfg):
    # Near ties another expert or key would be chosen.
    keys = cfg.index_topk and TOKENS
    cfg = cfg.replace(first_k_dense_replace=4, index_topk=keys)
    cfg = cfg.replace(initializer_range=0.05)
    net = DeepSeek(cfg, torch.Generator().manual_seed(0))
    wide = net(tokens())
    narrow = net.bfloat16()(tokens())
    assert narrow.dtype == torch.bfloat16
    close(narrow, wide)


def test_caches_that_do_not_fit_are_refused():
    net = model()
    with pytest.raises(ValueError, match="3 layers need .* found 2 of"):
        net(tokens(), net.caches()[1:])
    caches = net.caches()
    caches[1].extend(latent=torch.zeros(2, 4, 20), k_rope=torch.zeros(2, 4, 6))
    with pytest.raises(ValueError, match=r"lengths \[0, 4\]"):
        net(tokens(), caches)
    with pytest.raises(ValueError, match="found 0 of lengths"):
        net(tokens(), [])


def test_caches_have_room_for_what_was_reserved():
    net = model()
    caches = net.caches(64)
    assert len(caches) == 3 and all(isinstance(x, Cache) for x in caches)
    with torch.no_grad():
        net(tokens(), caches)
    assert caches[0].reserved_nbytes == 2 * 64 * (20 + 6) * 8


# Parameters of a folder as the fact sheet counts them, biases and the
# copies of embedding and head included.
STORED = {
    "v2_lite": 15_706_484_224,
    "v2": 235_741_434_880,
    "v3": 684_489_845_504,
    "v3_2": 685_355_329_792,
}


@pytest.mark.parametrize("name", STORED)
def test_names_and_shapes_of_the_released_folders(name, monkeypatch):
    # Drawing weights that have no memory would take most of the time.
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda _: None)
    cfg = getattr(Config, name)()
    with torch.device("meta"):
        state = DeepSeek(cfg).state_dict()
    found = {key: tuple(x.shape) for key, x in state.items()}
    assert found == dict(released(cfg))
    assert sum(x.numel() for x in state.values()) == STORED[name]


def released(cfg):
    """Every tensor of a released folder, from the tables of the reports."""
    d, w = cfg.hidden_size, cfg.vocab_size
    yield from {
        "model.embed_tokens.weight": (w, d),
        "model.norm.weight": (d,),
        "lm_head.weight": (w, d),
    }.items()
    layers = cfg.num_hidden_layers
    for layer in range(layers + cfg.num_nextn_predict_layers):
        for key, shape in released_layer(cfg, layer).items():
            yield f"model.layers.{layer}.{key}", shape
    for layer in range(layers, layers + cfg.num_nextn_predict_layers):
        for key, shape in {
            "embed_tokens": (w, d),
            "enorm": (d,),
            "hnorm": (d,),
            "eh_proj": (d, 2 * d),
            "shared_head.norm": (d,),
            "shared_head.head": (w, d),
        }.items():
            yield f"model.layers.{layer}.{key}.weight", shape


def released_layer(cfg, layer):
    d, heads = cfg.hidden_size, cfg.num_attention_heads
    shapes = {
        "input_layernorm": (d,),
        "post_attention_layernorm": (d,),
        "self_attn.kv_a_proj_with_mqa": (576, d),
        "self_attn.kv_a_layernorm": (512,),
        "self_attn.kv_b_proj": (heads * 256, 512),
        "self_attn.o_proj": (d, heads * 128),
    }
    if cfg.q_lora_rank is None:
        shapes["self_attn.q_proj"] = (heads * 192, d)
    else:
        shapes["self_attn.q_a_proj"] = (1536, d)
        shapes["self_attn.q_a_layernorm"] = (1536,)
        shapes["self_attn.q_b_proj"] = (heads * 192, 1536)
    if cfg.model_type == "deepseek_v32":
        shapes["self_attn.indexer.wq_b"] = (8192, 1536)
        shapes["self_attn.indexer.wk"] = (128, d)
        shapes["self_attn.indexer.k_norm"] = (128,)
        shapes["self_attn.indexer.weights_proj"] = (64, d)
    if layer < cfg.first_k_dense_replace:
        shapes |= mlp("mlp", d, cfg.intermediate_size)
    else:
        f = cfg.moe_intermediate_size
        shapes["mlp.gate"] = (cfg.n_routed_experts, d)
        shapes |= mlp("mlp.shared_experts", d, f * cfg.n_shared_experts)
        for expert in range(cfg.n_routed_experts):
            shapes |= mlp(f"mlp.experts.{expert}", d, f)
    named = {f"{key}.weight": shape for key, shape in shapes.items()}
    if "self_attn.indexer.wk" in shapes:
        named["self_attn.indexer.k_norm.bias"] = (128,)
    if "mlp.gate" in shapes and cfg.model_type != "deepseek_v2":
        named["mlp.gate.e_score_correction_bias"] = (cfg.n_routed_experts,)
    return named


def mlp(name, d, f):
    return {
        f"{name}.gate_proj": (f, d),
        f"{name}.up_proj": (f, d),
        f"{name}.down_proj": (d, f),
    }
