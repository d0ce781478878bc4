"""Mistakes of chapter 2: which query head reads which key."""

from tests.mutations import Mutation

LLAMA = "tests/parity/test_attention.py::test_equals_llama"
SDPA = "tests/parity/test_attention.py::test_equals_torch_sdpa_with_gradients"
POOL = "tests/test_attention.py::test_pooling_averages_inside_each_group"

MUTATIONS = [
    Mutation(
        id="02.copies-dealt-out",
        file="dsarch/attention.py",
        old='k = repeat(k, "b s g n -> b s (g copies) n", copies=copies)\n'
        '    v = repeat(v, "b s g v -> b s (g copies) v", copies=copies)',
        new='k = repeat(k, "b s g n -> b s (copies g) n", copies=copies)\n'
        '    v = repeat(v, "b s g v -> b s (copies g) v", copies=copies)',
        story="A model trained with it is fine, but a released checkpoint "
        "speaks nonsense unless it has one key head or as many as queries.",
        tests=(SDPA,),
    ),
    Mutation(
        id="02.values-dealt-out",
        file="dsarch/attention.py",
        old='v = repeat(v, "b s g v -> b s (g copies) v", copies=copies)',
        new='v = repeat(v, "b s g v -> b s (copies g) v", copies=copies)',
        story="Attention maps look right, and yet the text is nonsense: keys "
        "and values of different heads are mixed.",
        tests=(SDPA,),
    ),
    Mutation(
        id="02.queries-dealt-out",
        file="dsarch/attention.py",
        old='q = rearrange(q, "b t (g q) n -> b t g q n", g=k.size(2))',
        new='q = rearrange(q, "b t (q g) n -> b t g q n", g=k.size(2))',
        story="Query heads meet the keys of another group.",
        tests=(LLAMA,),
    ),
    Mutation(
        id="02.merged-in-another-order",
        file="dsarch/attention.py",
        old='"b t g q v -> b t (g q) v"',
        new='"b t g q v -> b t (q g) v"',
        story="The output projection receives the heads in another order.",
        tests=(LLAMA,),
    ),
    Mutation(
        id="02.head-map-in-turn",
        file="dsarch/attention.py",
        old="return torch.arange(heads) * kv_heads // heads",
        new="return torch.arange(heads) % kv_heads",
        story="The printed map of heads contradicts what the layer does.",
        tests=(
            "tests/test_attention.py"
            "::test_head_map_names_the_key_that_a_query_reads",
        ),
    ),
    Mutation(
        id="02.pool-adds",
        file="dsarch/attention.py",
        old="groups.mean(1)",
        new="groups.sum(1)",
        story="A converted model starts with attention that is far too "
        "sharp, because pooled keys are too long.",
        tests=(POOL,),
    ),
    Mutation(
        id="02.pool-takes-the-first",
        file="dsarch/attention.py",
        old="groups.mean(1)",
        new="groups[:, 0]",
        story="A converted model needs much more training to recover: all "
        "heads but one of each group were thrown away.",
        tests=(POOL,),
    ),
    Mutation(
        id="02.pool-across-groups",
        file="dsarch/attention.py",
        old='weight, "(g q n) d -> g q n d", g=kv_heads',
        new='weight, "(q g n) d -> g q n d", g=kv_heads',
        story="A converted model starts as if untrained: heads that belong "
        "to different groups were averaged.",
        tests=(POOL,),
    ),
    Mutation(
        id="02.uneven-groups-pass",
        file="dsarch/attention.py",
        old="if kv_heads < 1 or heads % kv_heads:",
        new="if kv_heads < 1:",
        story="A wrong number of heads is reported only deep inside a "
        "reshape, without naming either number.",
        tests=(
            "tests/test_attention.py"
            "::test_uneven_groups_and_wrong_shapes_are_named",
        ),
    ),
    Mutation(
        id="02.head-dim-of-the-model",
        file="dsarch/attention.py",
        old="head_dim = dim // heads if head_dim is None else head_dim",
        new="head_dim = dim // heads",
        story="Checkpoints whose heads are wider than hidden size over heads "
        "do not load.",
        tests=(LLAMA,),
    ),
    Mutation(
        id="02.layout-of-the-keys",
        file="dsarch/attention.py",
        old="k = rotate(k, phase, interleaved=False)",
        new="k = rotate(k, phase)",
        story="Short texts look plausible, but position is lost: queries and "
        "keys are rotated in different pairs.",
        tests=(LLAMA,),
    ),
]
