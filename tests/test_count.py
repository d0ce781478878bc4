"""Counts against the published sizes, and against each other."""

import pytest
import torch

from dsarch.analysis import count, decode
from dsarch.analysis.presets import MACHINES, PRESETS, Preset, preset
from dsarch.config import Config
from dsarch.mla import absorbs
from dsarch.model import DeepSeek

H800 = MACHINES[0]

BYTES_PER_TOKEN = {
    "GPT-3 175B": 4_718_592,
    "Llama-2-7B": 524_288,
    "Llama-2-70B": 327_680,
    "Llama-3.1-8B": 131_072,
    "Llama-3.1-70B": 327_680,
    "Llama-3.1-405B": 516_096,
    "Qwen2.5-7B": 57_344,
    "Qwen2.5-72B": 327_680,
    "Qwen3-8B": 147_456,
    "Qwen3-32B": 262_144,
    "Qwen3-30B-A3B": 98_304,
    "Qwen3-235B-A22B": 192_512,
    "Mistral-7B v0.1": 131_072,
    "Mixtral-8x7B": 131_072,
    "PaLM-540B": 120_832,
    "Falcon-7B": 8_192,
    "Falcon-40B": 122_880,
    "Falcon-180B": 163_840,
    "DeepSeek-7B": 491_520,
    "DeepSeek-67B": 389_120,
    "DeepSeek-V2-Lite": 31_104,
    "DeepSeek-V2": 69_120,
    "DeepSeek-V3": 70_272,
}


@pytest.mark.parametrize("model", PRESETS, ids=lambda p: p.name)
def test_bytes_per_token_of_published_models(model):
    assert count.kv_bytes_per_token(model) == BYTES_PER_TOKEN[model.name]


@pytest.mark.parametrize(
    ("name", "gib"),
    [("GPT-3 175B", 576), ("Qwen3-235B-A22B", 23.5), ("PaLM-540B", 14.75)],
)
def test_cache_at_128k(name, gib):
    assert count.cache_bytes(preset(name), 131072) == gib * 2**30


@pytest.mark.parametrize(
    ("name", "cfg"),
    [
        ("DeepSeek-V2-Lite", Config.v2_lite()),
        ("DeepSeek-V2", Config.v2()),
        ("DeepSeek-V3", Config.v3()),
    ],
)
def test_preset_and_config_agree(name, cfg):
    found = preset(name)
    assert count.kv_bytes_per_token(cfg) == BYTES_PER_TOKEN[name]
    assert found.heads == cfg.num_attention_heads
    assert found.layers == cfg.num_hidden_layers
    assert [found.latent, found.rope] == cfg.kv_widths
    assert found.head_dim == cfg.qk_nope_head_dim == cfg.v_head_dim


def test_published_reductions():
    v2, dense = preset("DeepSeek-V2"), preset("DeepSeek-67B")
    six_bits = count.kv_bytes_per_token(v2, 6 / 8)
    assert round(1 - six_bits / count.kv_bytes_per_token(dense), 3) == 0.933
    plain = count.kv_bytes_per_token(v2) / count.kv_bytes_per_token(dense)
    assert round(1 - plain, 3) == 0.822
    v3 = Config.v3()
    ratio = count.expanded_elements_per_token(v3)
    assert round(ratio / count.kv_elements_per_token(v3), 1) == 71.1


def test_sparse_cache_layout():
    v3_2 = Config.v3_2()
    assert count.fp8_bytes_per_token(v3_2) == (40_016, 8_052)
    assert count.fp8_bytes_per_token(Config.v3())[1] == 0
    assert count.index_bytes_per_token(v3_2) == 61 * 128 * 2
    assert count.index_bytes_per_token(Config.v3()) == 0
    with pytest.raises(ValueError, match="32 is not whole blocks of 128"):
        count.fp8_bytes_per_token(Config())


def test_sequences_that_fit_is_whole_and_tight():
    v3 = Config.v3()
    fit = count.sequences_that_fit(v3, 32_768, 80e9)
    assert fit == 34
    assert count.cache_bytes(v3, 32_768, fit) <= 80e9
    assert count.cache_bytes(v3, 32_768, fit + 1) > 80e9


@pytest.mark.parametrize("bad", [0, -2, float("nan"), float("inf")])
def test_counts_refuse_what_is_no_size(bad):
    v3 = Config.v3()
    with pytest.raises(ValueError, match="bytes_per_element"):
        count.kv_bytes_per_token(v3, bad)
    with pytest.raises(ValueError, match="memory"):
        count.sequences_that_fit(v3, 1, bad)
    if isinstance(bad, int):
        with pytest.raises(ValueError, match="context"):
            count.cache_bytes(v3, bad)


def test_presets_refuse_contradictions():
    with pytest.raises(ValueError, match="3 kv heads do not divide 8"):
        Preset(name="x", kind="GQA", layers=1, heads=8, kv_heads=3, head_dim=4)
    with pytest.raises(ValueError, match="latent must be at least 1"):
        Preset(name="x", kind="MLA", layers=1, heads=8, kv_heads=8, head_dim=4)
    with pytest.raises(ValueError, match="no preset 'GPT-9'"):
        preset("GPT-9")


# total, activated without and with the embedding table
PARAMETERS = {
    "v2_lite": (15_706_484_224, 2_451_435_008, 2_661_150_208),
    "v2": (235_741_434_880, 20_851_512_320, 21_375_800_320),
    "v3": (671_026_419_200, 36_625_618_432, 37_552_297_472),
    "v3_2": (671_877_944_064, 37_477_143_296, 38_403_822_336),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_to_the_unit(name):
    cfg = getattr(Config, name)()
    total, active, with_table = PARAMETERS[name]
    assert count.parameters(cfg) == (total, active)
    assert count.parameters(cfg, embedding=True) == (total, with_table)


def test_groups_of_v3():
    groups = count.parameter_groups(Config.v3())
    assert groups == {
        "embedding": 926_679_040,
        "attention": 11_413_547_008,
        "indexer": 0,
        "norms": 881_664,
        "dense MLP": 1_189_085_184,
        "routed experts": 653_908_770_816,
        "shared experts": 2_554_331_136,
        "router": 106_445_312,
        "output head": 926_679_040,
    }
    assert count.attention_tensors(Config.v3()) == {
        "q_a_proj": 11_010_048,
        "q_a_layernorm": 1_536,
        "q_b_proj": 37_748_736,
        "kv_a_proj_with_mqa": 4_128_768,
        "kv_a_layernorm": 512,
        "kv_b_proj": 16_777_216,
        "o_proj": 117_440_512,
    }


def test_attention_and_indexer_per_layer():
    def per_layer(cfg):
        return sum(count.attention_tensors(cfg).values())

    assert per_layer(Config.v2_lite()) == 13_763_072
    assert per_layer(Config.v2()) == 149_227_520
    assert per_layer(Config.v3()) == 187_107_328
    indexer = count.indexer_tensors(Config.v3_2())
    assert sum(indexer.values()) == 13_959_424


def test_mtp_and_stored():
    v3, v3_2 = Config.v3(), Config.v3_2()
    assert count.mtp_parameters(v3) == 11_610_068_224
    assert count.mtp_parameters(v3_2) == 11_624_027_648
    assert count.stored_parameters(v3) == 684_489_845_504
    assert count.stored_parameters(v3_2) == 685_355_329_792
    assert count.mtp_parameters(Config.v2()) == 0


@pytest.mark.parametrize("name", [*PARAMETERS, "tiny", "tiny tied", "tiny dsa"])
def test_counts_are_those_of_the_model(name):
    made = {
        "tiny": Config(),
        "tiny tied": Config(tie_word_embeddings=True, q_lora_rank=None),
        "tiny dsa": Config(model_type="deepseek_v32", index_topk=3),
    }
    if name in made:
        cfg = made[name]
    else:
        # every width of the released model, one expert layer: seconds
        full = getattr(Config, name)()
        cfg = full.replace(num_hidden_layers=full.first_k_dense_replace + 1)
    with torch.device("meta"):
        model = DeepSeek(cfg)
    found = sum(p.numel() for p in model.parameters())
    # the bias that balances the experts is a buffer
    found += sum(
        b.numel() for n, b in model.named_buffers() if n.endswith("bias")
    )
    assert found == count.parameters(cfg)[0] + count.mtp_parameters(cfg)


@pytest.mark.parametrize("topk", [None, 3])
def test_cache_of_a_run_has_the_counted_bytes(topk):
    kind = "deepseek_v3" if topk is None else "deepseek_v32"
    cfg = Config(model_type=kind, index_topk=topk)
    model, batch, length = DeepSeek(cfg), 2, 7
    caches = model.caches()
    with torch.no_grad():
        model(torch.zeros(batch, length, dtype=torch.long), caches)
    counted = count.cache_bytes(cfg, length, batch, 4)
    counted += count.index_bytes_per_token(cfg, 4) * batch * length
    assert sum(cache.nbytes for cache in caches) == counted


def test_tied_tables_are_counted_once():
    free = Config()
    tied = free.replace(tie_word_embeddings=True)
    table = free.vocab_size * free.hidden_size
    assert count.parameters(free)[0] - count.parameters(tied)[0] == table
    assert count.parameters(free)[1] == count.parameters(tied)[1]
    same = count.parameters(tied, embedding=True)
    assert same == count.parameters(tied)


def test_grouped_attention_parameters():
    found = count.grouped_attention_parameters(4096, 32, 8, 128)
    assert found == 4096 * 128 * (32 + 8 + 8 + 32)


# Decoding with V3's sizes: context, expanded FLOP = bytes, extra FLOP of
# re-expanding, absorbed FLOP and bytes
DECODE = [
    (1_024, 83_886_080, 34_359_738_368, 318_767_104, 1_179_648),
    (4_096, 335_544_320, 137_438_953_472, 1_174_405_120, 4_718_592),
    (32_768, 2_684_354_560, 1_099_511_627_776, 9_160_359_936, 37_748_736),
    (131_072, 10_737_418_240, 4_398_046_511_104, 36_540_776_448, 150_994_944),
]


@pytest.mark.parametrize(("context", "naive", "extra", "flops", "size"), DECODE)
def test_decode_costs_of_v3(context, naive, extra, flops, size):
    v3 = Config.v3()
    assert decode.expanded(v3, context) == (naive, naive)
    assert decode.reexpanding(v3, context).flops == naive + extra
    assert decode.absorbed(v3, context) == (flops, size)


def test_intensities():
    assert decode.grouped(32, 32, 128, 4096).intensity == 1
    assert decode.grouped(32, 8, 128, 4096).intensity == 4
    assert round(decode.absorbed(Config.v3(), 2**20).intensity) == 242
    mha = decode.grouped(128, 128, 160, 4096)
    assert decode.expanded(Config.v3(), 4096) == mha


def test_roofline_switches_at_the_balance_point():
    v3 = Config.v3()
    one, two = (decode.absorbed(v3, 32_768, q) for q in (1, 2))
    assert (one.bound(H800), two.bound(H800)) == ("memory", "compute")
    assert one.seconds(H800) == one.bytes / H800.bandwidth
    assert two.seconds(H800) == two.flops / H800.flops


@pytest.mark.parametrize("context", [1, 100, 4_096, 131_072])
def test_crossover_separates_the_orders(context):
    v3 = Config.v3()
    edge = decode.crossover_queries(v3, context)
    below, above = max(1, int(edge)), int(edge) + 1

    def gap(queries):
        absorbed = decode.absorbed(v3, context, queries).flops
        return absorbed - decode.reexpanding(v3, context, queries).flops

    assert gap(above) > 0
    if edge >= 1:
        assert gap(below) <= 0


@pytest.mark.parametrize("cfg", [Config.v3(), Config.v2_lite(), Config()])
@pytest.mark.parametrize("queries", [1, 100, 170, 171, 3000])
@pytest.mark.parametrize("context", [3000, 40_000, 10**6])
def test_crossover_is_where_the_model_changes_its_order(cfg, queries, context):
    cheaper = queries < decode.crossover_queries(cfg, context)
    assert absorbs(cfg, queries, context) == cheaper


def test_crossover_limit_does_not_depend_on_heads():
    v3 = Config.v3()
    few = v3.replace(num_attention_heads=16)
    far = 10**9
    edge = decode.crossover_queries(v3, far)
    assert edge == decode.crossover_queries(few, far)
    assert round(edge, 3) == round(512 * 256 / (1024 - 256), 3) == 170.667


def test_decode_refuses_what_is_no_size():
    with pytest.raises(ValueError, match="context must be at least 1, found 0"):
        decode.absorbed(Config.v3(), 0)
    with pytest.raises(ValueError, match="queries must be at least 1"):
        decode.expanded(Config.v3(), 8, -1)
    with pytest.raises(ValueError, match="kv_heads must be at least 1"):
        decode.grouped(8, 0, 64, 8)
