"""Mistakes of chapter 1: masks, scale, and a cache that forgets."""

from tests.mutations import Mutation

LLAMA = "tests/parity/test_attention.py::test_equals_llama"
SDPA = "tests/parity/test_attention.py::test_equals_torch_sdpa_with_gradients"
MASK = "tests/parity/test_mask.py::test_the_mask_is_torchs_causal_mask"

MUTATIONS = [
    Mutation(
        id="01.mask-sees-one-ahead",
        file="dsarch/layers.py",
        old="return key <= position[..., None]",
        new="return key <= position[..., None] + 1",
        story="The loss falls far below what is possible and samples are "
        "useless: every token has seen its answer.",
        tests=(MASK,),
    ),
    Mutation(
        id="01.mask-after-softmax",
        file="dsarch/layers.py",
        old="wide = widen(score).where(mask, -math.inf)\n"
        "    return wide.softmax(-1).type_as(score)",
        new="wide = widen(score).softmax(-1)\n"
        "    return wide.where(mask, 0).type_as(score)",
        story="The first tokens of a text are attended to too weakly: their "
        "weights do not sum to one.",
        tests=(SDPA,),
    ),
    Mutation(
        id="01.mask-from-zero",
        file="dsarch/layers.py",
        old="return key <= position[..., None]",
        new="return key <= (position - position[:, :1])[..., None]",
        story="A prompt works, but a chunk after the first sees only the "
        "beginning of the text.",
        tests=(LLAMA,),
    ),
    Mutation(
        id="01.mask-hides-itself",
        file="dsarch/layers.py",
        old="return key <= position[..., None]",
        new="return (key < position[..., None]) | (key == 0)",
        story="The loss stays high because no token may look at itself.",
        tests=(MASK,),
    ),
    Mutation(
        id="01.no-scale",
        file="dsarch/attention.py",
        old='score = einsum("btgqn,bsgn->bgqts", q, k) * q.size(-1) ** -0.5',
        new='score = einsum("btgqn,bsgn->bgqts", q, k)',
        story="Attention falls on one token each, and training is unstable "
        "with wide heads.",
        tests=(SDPA,),
    ),
    Mutation(
        id="01.scale-of-all-heads",
        file="dsarch/attention.py",
        old='score = einsum("btgqn,bsgn->bgqts", q, k) * q.size(-1) ** -0.5',
        new='score = einsum("btgqn,bsgn->bgqts", q, k)\n'
        "    score = score * (q.size(2) * q.size(3) * q.size(4)) ** -0.5",
        story="Attention is nearly uniform: the root is over the model's "
        "width and not over that of a head.",
        tests=(SDPA,),
    ),
    Mutation(
        id="01.softmax-narrows",
        file="dsarch/layers.py",
        old="wide = widen(score).where",
        new="wide = score.float().where",
        story="A test in double precision agrees only to seven digits.",
        tests=(
            "tests/test_attention.py"
            "::test_masked_softmax_ignores_the_hidden_and_stays_wide",
        ),
    ),
    Mutation(
        id="01.growth-loses-the-past",
        file="dsarch/cache.py",
        old="    grown[:, :start] = past\n",
        new="    grown[:, 1:start] = past[:, 1:]\n",
        story="The first token vanishes from the cache whenever it grows, "
        "and a test of its length notices nothing.",
        tests=("tests/test_cache.py::test_streams_come_back_whole",),
    ),
    Mutation(
        id="01.crop-keeps-one",
        file="dsarch/cache.py",
        old="        self._length = length\n",
        new="        self._length = min(length + 1, self._length)\n",
        story="After a rejected draft one of its tokens stays in memory.",
        tests=(
            "tests/test_cache.py"
            "::test_crop_then_continue_equals_the_uninterrupted_run",
        ),
    ),
    Mutation(
        id="01.cache-cuts-gradients",
        file="dsarch/cache.py",
        old="        return torch.cat([past, x], 1)",
        new="        return torch.cat([past.detach(), x], 1)",
        story="Training in chunks runs, but the keys of earlier chunks "
        "never learn.",
        tests=("tests/test_cache.py::test_gradients_pass_through_every_piece",),
    ),
]
