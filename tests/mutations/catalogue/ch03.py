"""Mistakes of chapter 3: what the latent is, and how it is read."""

from tests.mutations import Mutation

PARITY = "tests/parity/test_mla.py::test_mla_equals_transformers"
FORMS = "tests/test_mla.py::test_absorbed_equals_expanded_with_gradients"

MUTATIONS = [
    Mutation(
        id="03.latent-not-normed",
        file="dsarch/mla.py",
        old="return self.kv_a_layernorm(c), rotate(k_rope, phase)",
        new="return c, rotate(k_rope, phase)",
        story="Written from the published equations, which leave the norm "
        "out: all identities hold, released weights give nonsense.",
        tests=(PARITY,),
    ),
    Mutation(
        id="03.query-latent-not-normed",
        file="dsarch/mla.py",
        old="latent = self.q_a_layernorm(self.q_a_proj(x))",
        new="latent = self.q_a_proj(x)",
        story="V2-Lite works and V3 does not: only the large models have a "
        "query latent with a norm.",
        tests=(PARITY,),
    ),
    Mutation(
        id="03.all-keys-first",
        file="dsarch/mla.py",
        old="w = self.kv_b_proj.matrix().unflatten(0, (-1, sum(self.kv_rows)))\n"
        "        return w.split(self.kv_rows, 1)",
        new="h = self.cfg.num_attention_heads\n"
        "        rows = [h * n for n in self.kv_rows]\n"
        "        w_uk, w_uv = self.kv_b_proj.weight.split(rows)\n"
        "        return w_uk.unflatten(0, (h, -1)), w_uv.unflatten(0, (h, -1))",
        story="A model trained with it is fine, a checkpoint is not: it "
        "stores key and value head by head.",
        tests=(PARITY,),
    ),
    Mutation(
        id="03.scale-of-the-latent",
        file="dsarch/mla.py",
        old="self.scale = cfg.qk_head_dim**-0.5",
        new="self.scale = sum(cfg.kv_widths) ** -0.5",
        story="Attention is too flat: the absorbed form was taken for plain "
        "attention with keys as wide as the latent.",
        tests=(PARITY,),
    ),
    Mutation(
        id="03.scale-of-the-content",
        file="dsarch/mla.py",
        old="self.scale = cfg.qk_head_dim**-0.5",
        new="self.scale = cfg.qk_nope_head_dim**-0.5",
        story="Attention is a little too sharp everywhere: the rotary part "
        "was forgotten in the root.",
        tests=(PARITY,),
    ),
    Mutation(
        id="03.absorbed-without-rotary",
        file="dsarch/mla.py",
        old='score = einsum("bthc,bsc->bhts", q, c)\n'
        '    score = score + einsum("bthr,bsr->bhts", q_rope, k_rope)',
        new='score = einsum("bthc,bsc->bhts", q, c)',
        story="The prompt is read well, but decoding forgets the order of "
        "words.",
        tests=(FORMS,),
    ),
    Mutation(
        id="03.step-scales-half-of-the-score",
        file="dsarch/fused.py",
        old="(scale * x.squeeze(1) for x in (q, q_rope))",
        new="(scale * q.squeeze(1), q_rope.squeeze(1))",
        story="Only where models are decoded fused, the rotary part weighs "
        "ten times too much.",
        tests=("tests/test_fused.py::test_a_decoded_token_takes_one_step",),
    ),
    Mutation(
        id="03.middle-key-counted-twice",
        file="dsarch/fused.py",
        old="right[:, 2 * half - s :]",
        new="right[:, : s - half]",
        story="Behind an odd number of tokens, half of the keys answer for "
        "their neighbours.",
        tests=("tests/test_fused.py::test_keys_are_read_in_two_pieces",),
    ),
    Mutation(
        id="03.expanded-without-rotary",
        file="dsarch/mla.py",
        old='score = einsum("bthn,bshn->bhts", q, k)\n'
        '    score = score + einsum("bthr,bsr->bhts", q_rope, k_rope)',
        new='score = einsum("bthn,bshn->bhts", q, k)',
        story="Training sees a bag of words while decoding sees positions.",
        tests=(FORMS,),
    ),
    Mutation(
        id="03.latent-and-key-swapped",
        file="dsarch/mla.py",
        old="c, k_rope = self.kv_a_proj_with_mqa(x).split("
        "self.cfg.kv_widths, -1)",
        new="k_rope, c = self.kv_a_proj_with_mqa(x).split("
        "self.cfg.kv_widths[::-1], -1)",
        story="Shapes, causality and caching are right, and a checkpoint is "
        "nonsense: the latent comes first.",
        tests=(PARITY,),
    ),
    Mutation(
        id="03.rotary-query-first",
        file="dsarch/mla.py",
        old="q, q_rope = q.split(cfg.qk_widths, -1)",
        new="q_rope, q = q.split(cfg.qk_widths[::-1], -1)",
        story="A checkpoint is nonsense: within a head the rotary part comes "
        "last.",
        tests=(PARITY,),
    ),
    Mutation(
        id="03.form-chosen-backwards",
        file="dsarch/mla.py",
        old="return absorb < expand",
        new="return absorb > expand",
        story="All outputs are right, but every decoded token rebuilds the "
        "keys of the whole text.",
        tests=(
            "tests/test_mla.py"
            "::test_a_long_prompt_expands_and_one_token_absorbs",
        ),
    ),
]
