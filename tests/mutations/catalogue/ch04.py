"""Mistakes of chapter 4: layouts, YaRN, and who is turned when."""

from tests.mutations import Mutation

PARITY = "tests/parity/test_mla.py::test_mla_equals_transformers"
YARN = "tests/test_rope.py::test_yarn_frequencies_equal_transformers"

MUTATIONS = [
    Mutation(
        id="04.layout-half-split",
        file="dsarch/rope.py",
        old="interleaved: bool = True",
        new="interleaved: bool = False",
        story="A model trained with it is fine, released weights lose the "
        "order of words: their pairs are neighbours.",
        tests=(PARITY,),
    ),
    Mutation(
        id="04.turned-back-in-another-layout",
        file="dsarch/rope.py",
        old="torch.stack([z.real, z.imag], axis).flatten(-2)",
        new="torch.cat([z.real, z.imag], -1)",
        story="Scores are right, because query and key are shuffled alike, "
        "but a cached key differs from the official one.",
        tests=("tests/test_rope.py::test_pairs_turn_by_two_by_two_matrices",),
    ),
    Mutation(
        id="04.key-not-turned",
        file="dsarch/mla.py",
        old="return self.kv_a_layernorm(c), rotate(k_rope, phase)",
        new="return self.kv_a_layernorm(c), k_rope",
        story="Attention depends on where a query stands and not on the "
        "distance to the key.",
        tests=(PARITY,),
    ),
    Mutation(
        id="04.query-not-turned",
        file="dsarch/mla.py",
        old="return q, rotate(q_rope, phase), latent",
        new="return q, q_rope, latent",
        story="Attention depends on where a key stands and not on the "
        "distance to the query.",
        tests=(PARITY,),
    ),
    Mutation(
        id="04.turned-backwards",
        file="dsarch/rope.py",
        old="return torch.polar(torch.full_like(angle, size), angle)",
        new="return torch.polar(torch.full_like(angle, size), -angle)",
        story="The model is its own mirror image in time: trained from "
        "nothing it is fine, a checkpoint is not.",
        tests=(PARITY,),
    ),
    Mutation(
        id="04.ramp-upside-down",
        file="dsarch/rope.py",
        old="return plain / yarn.factor * gamma + plain * (1 - gamma)",
        new="return plain / yarn.factor * (1 - gamma) + plain * gamma",
        story="Long texts run, but neighbouring words are confused: the fast "
        "pairs were slowed.",
        tests=(YARN,),
    ),
    Mutation(
        id="04.ramp-not-rounded",
        file="dsarch/rope.py",
        old="low = max(float(math.floor(pair(yarn.beta_fast))), 0.0)",
        new="low = max(pair(yarn.beta_fast), 0.0)",
        story="Everything works and long contexts are slightly worse: the "
        "ramp begins between two pairs.",
        tests=(YARN,),
    ),
    Mutation(
        id="04.ramp-over-the-new-window",
        file="dsarch/rope.py",
        old="window = yarn.original_max_position_embeddings",
        new="window = yarn.original_max_position_embeddings * yarn.factor",
        story="Far positions blur, because the ramp was laid over the "
        "stretched window instead of the original one.",
        tests=(YARN,),
    ),
    Mutation(
        id="04.pairs-counted-twice",
        file="dsarch/rope.py",
        old="exponent = torch.arange(0, width, 2, dtype=torch.float32) / width",
        new="exponent = torch.arange(0, width // 2, dtype=torch.float32)"
        " / width",
        story="The slowest pairs turn far too fast, and distant tokens look "
        "near.",
        tests=(YARN,),
    ),
    Mutation(
        id="04.flat-logits",
        file="dsarch/mla.py",
        old=" * softmax_factor(cfg.rope_scaling)",
        new="",
        story="Nothing is visible at the first position; elsewhere attention "
        "is too flat by a factor of nearly two.",
        tests=(PARITY,),
    ),
    Mutation(
        id="04.factor-counted-once",
        file="dsarch/rope.py",
        old="return magnitude(yarn.factor, yarn.mscale_all_dim) ** 2",
        new="return magnitude(yarn.factor, yarn.mscale_all_dim)",
        story="Long contexts are a little worse: the factor belongs to the "
        "query and to the key.",
        tests=(PARITY,),
    ),
    Mutation(
        id="04.amplitude-not-divided",
        file="dsarch/rope.py",
        old="        size = size / magnitude(yarn.factor, "
        "yarn.mscale_all_dim)\n",
        new="",
        story="Positions count nearly twice as much as content: rotations "
        "stretch, although every released model divides that out.",
        tests=(PARITY,),
    ),
    Mutation(
        id="04.angles-in-bf16",
        file="dsarch/rope.py",
        old="angle = position[..., None] * theta.to(position.device)",
        new="angle = position[..., None].bfloat16() * theta.bfloat16()\n"
        "    angle = angle.float()",
        story="From a few hundred tokens on, neighbouring positions share "
        "one angle.",
        tests=(PARITY,),
    ),
    Mutation(
        id="04.permutation-inverted",
        file="dsarch/rope.py",
        old='return rearrange(x, "... (p two) -> ... (two p)", two=2)',
        new='return rearrange(x, "... (two p) -> ... (p two)", two=2)',
        story="Converted weights work for a width of four and for no other.",
        tests=("tests/test_rope.py::test_both_layouts_are_one_rotation",),
    ),
]
