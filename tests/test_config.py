"""The configuration: released sizes, files in, contradictions out."""

import json

import pytest
import torch
from transformers import AutoConfig

from dsarch.config import Config, Yarn
from dsarch.mla import MLA

RELEASED = {
    "v2_lite": (13_763_072, 27),
    "v2": (149_227_520, 60),
    "v3": (187_107_328, 61),
}


@pytest.mark.parametrize("name", RELEASED)
def test_attention_of_the_released_models_has_their_parameters(name):
    cfg = getattr(Config, name)()
    with torch.device("meta"):
        count = sum(p.numel() for p in MLA(cfg).parameters())
    assert (count, cfg.num_hidden_layers) == RELEASED[name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_group": 3}, "n_group 3 does not divide n_routed_experts 16"),
        ({"topk_group": 5}, "topk_group 5 exceeds n_group 4"),
        ({"num_experts_per_tok": 9}, "per_tok 9 exceeds the 8 experts"),
        ({"n_group": 16, "topk_group": 8}, "16 in n_group 16 leaves 1"),
        ({"qk_rope_head_dim": 7}, "must be even, found 7"),
        ({"hidden_size": 0}, "hidden_size must be positive, found 0"),
        ({"kv_lora_rank": -4}, "kv_lora_rank must be positive, found -4"),
        ({"model_type": "llama"}, "'llama' is none of"),
        ({"index_topk": 4, "q_lora_rank": None}, "index_topk 4 needs"),
        ({"index_topk": 4, "index_head_dim": 6}, "6 cannot hold .* 8"),
    ],
)
def test_contradictions_name_both_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)


@pytest.mark.parametrize("kind", ["deepseek_v3", "deepseek_v32"])
def test_reads_what_transformers_writes(kind, tmp_path):
    rope = {"rope_type": "yarn", "rope_theta": 9000.0, "factor": 4}
    config = AutoConfig.for_model(kind, rope_parameters=rope | {"mscale": 1})
    config.save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "config.json", config.to_dict()):
        cfg = Config.from_hf(source)
        assert cfg.kv_lora_rank == 512 and cfg.scoring_func == "sigmoid"
        assert (cfg.index_topk == 2048) == (kind == "deepseek_v32")
        assert cfg.rope_theta == 9000.0
        assert cfg.rope_scaling.factor == 4.0
        assert cfg.rope_scaling.mscale_all_dim == 0.0


def test_v2_lite_has_no_query_latent():
    cfg = Config.v2_lite()
    assert cfg.q_lora_rank is None and cfg.topk_method == "greedy"
    assert cfg.rope_scaling == Yarn(mscale=0.707, mscale_all_dim=0.707)
    hub = {"model_type": "deepseek_v2", "q_lora_rank": 0, "hidden_size": 64}
    assert Config.from_hf(hub | {"num_hidden_layers": 1}).q_lora_rank is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "qwen3"}, "'qwen3' is none of"),
        (
            {"model_type": "deepseek_v3", "rope_interleave": False},
            "another model",
        ),
        (
            {"model_type": "deepseek_v3", "rope_scaling": {"type": "linear"}},
            "'linear' is neither",
        ),
    ],
)
def test_foreign_configs_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Config.from_hf(values)


@pytest.mark.parametrize("text", ["{", "[1]", None])
def test_unreadable_files_are_refused(text, tmp_path):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=str(path)):
        Config.from_hf(path)


def test_configs_are_frozen_and_hashable():
    cfg = Config()
    assert hash(cfg) == hash(Config()) and cfg == Config()
    with pytest.raises(AttributeError):
        cfg.hidden_size = 3
    assert json.dumps(cfg.kv_widths) == "[32, 8]"
