"""Mistakes of chapter 6: DeepSeek's router, shared experts and balancing."""

from tests.mutations import Mutation

DEFINITION = "tests/test_router.py::test_route_is_the_definition"
BLOCK = "tests/parity/test_moe.py::test_deepseek_block_equals_transformers"
SUM = "tests/test_moe.py::test_deepseek_moe_is_the_sum"
SAME_BITS = "tests/test_moe.py::test_grouped_equals_loop_to_the_bit"
BALANCE = "tests/test_balance.py::"

MUTATIONS = [
    Mutation(
        id="06.bias-leaks-into-weights",
        file="dsarch/router.py",
        old="    weights = scores.gather(1, experts)\n    if cfg",
        new="    weights = choice.gather(1, experts)\n    if cfg",
        story="The balancing bias changes the answers and not only the "
        "choice: the most frequent mistake of all.",
        tests=("tests/test_router.py::test_bias_chooses_and_never_weighs",),
    ),
    Mutation(
        id="06.gradient-through-the-bias",
        file="dsarch/router.py",
        old="    weights = scores.gather(1, experts)\n    if cfg",
        new="    moved = scores if bias is None else scores + bias\n"
        "    moved = moved - (moved - scores).detach()\n"
        "    weights = moved.gather(1, experts)\n    if cfg",
        story="Weights are right to the last digit, but an optimiser moves "
        "the bias against the balancing rule.",
        tests=("tests/test_router.py::test_no_gradient_passes_the_choice",),
    ),
    Mutation(
        id="06.bias-inside-the-sigmoid",
        file="dsarch/router.py",
        old="(scores + bias).detach()",
        new="(scores.logit() + bias).sigmoid().detach()",
        story="Small biases no longer reach saturated experts, and group "
        "scores add up differently.",
        tests=(DEFINITION, BLOCK),
    ),
    Mutation(
        id="06.group-score-is-the-maximum",
        file="dsarch/router.py",
        old='best = 2 if cfg.topk_method == "noaux_tc" else 1',
        new="best = 1",
        story="V2's rule in V3: the official demo does so by accident when "
        "a shrunken model has no bias.",
        tests=(DEFINITION, BLOCK),
    ),
    Mutation(
        id="06.closed-groups-at-zero",
        file="dsarch/router.py",
        old="return choice.masked_fill(closed, -math.inf)",
        new="return choice.masked_fill(closed, 0.0)",
        story="Fine with the released weights, whose biases are all above "
        "two; your own training picks experts of closed groups.",
        tests=(
            "tests/test_router.py::"
            "test_closed_groups_lose_against_scores_below_zero",
        ),
    ),
    Mutation(
        id="06.softmax-for-sigmoid",
        file="dsarch/router.py",
        old='return u.sigmoid() if scoring == "sigmoid" else u.softmax(-1)',
        new="return u.softmax(-1)",
        story="V2's affinities in V3: chosen experts are nearly the same, "
        "their weights are not.",
        tests=("tests/test_router.py::test_scores_are_computed_in_fp32", BLOCK),
    ),
    Mutation(
        id="06.scaling-factor-missing",
        file="dsarch/router.py",
        old="Routing(weights * cfg.routed_scaling_factor, experts, scores)",
        new="Routing(weights, experts, scores)",
        story="The factor stands in no equation of the report; without it "
        "routed experts speak too softly.",
        tests=(DEFINITION, BLOCK),
    ),
    Mutation(
        id="06.normalised-over-all-experts",
        file="dsarch/router.py",
        old="weights = weights / (weights.sum(1, keepdim=True) + 1e-20)",
        new="weights = weights / (scores.sum(1, keepdim=True) + 1e-20)",
        story="The balance loss normalises over all experts, the gate over "
        "the chosen ones.",
        tests=(DEFINITION, BLOCK),
    ),
    Mutation(
        id="06.v2-normalised",
        file="dsarch/router.py",
        old="if cfg.norm_topk_prob:",
        new="if cfg.norm_topk_prob or cfg.scoring_func == 'softmax':",
        story="V2 does not renormalise; its factor of sixteen then scales "
        "weights that are too large already.",
        tests=(DEFINITION, BLOCK),
    ),
    Mutation(
        id="06.gate-in-low-precision",
        file="dsarch/router.py",
        old="return F.linear(widen(x), widen(weight))",
        new="return widen(F.linear(x, weight))",
        story="In bf16 near ties fall the other way, and two programs with "
        "the same weights choose different experts.",
        tests=("tests/test_router.py::test_scores_are_computed_in_fp32",),
    ),
    Mutation(
        id="06.bias-cast-with-the-model",
        file="dsarch/router.py",
        old="fn(bias.view(torch.int32)).view(\n"
        "                torch.float32\n"
        "            )",
        new="fn(bias)",
        story="Beyond two, bf16 has steps of a sixty-fourth: updates of a "
        "thousandth vanish.",
        tests=(
            "tests/test_router.py::test_router_bias_stays_fp32_in_every_model",
        ),
    ),
    Mutation(
        id="06.underflow-divides-by-zero",
        file="dsarch/router.py",
        old="weights.sum(1, keepdim=True) + 1e-20)",
        new="weights.sum(1, keepdim=True))",
        story="One token whose chosen scores all underflow turns the loss "
        "into NaN.",
        tests=(
            "tests/test_router.py::"
            "test_underflowed_scores_give_zero_weights_not_nan",
        ),
    ),
    Mutation(
        id="06.shared-expert-scaled",
        file="dsarch/moe.py",
        old="y + self.shared_experts(x)",
        new="(\n            y + self.cfg.routed_scaling_factor"
        " * self.shared_experts(x)\n        )",
        story="The factor belongs to routed experts; the shared one speaks "
        "at its own volume.",
        tests=(SUM, BLOCK),
    ),
    Mutation(
        id="06.shared-experts-too-narrow",
        file="dsarch/moe.py",
        old="shared = cfg.n_shared_experts * hidden",
        new="shared = hidden * bool(cfg.n_shared_experts)",
        story="V3 has one shared expert and cannot tell; V2's two do not fit.",
        tests=(
            "tests/parity/test_moe.py::"
            "test_parameters_are_those_of_the_released_models",
        ),
    ),
    Mutation(
        id="06.bias-moves-the-wrong-way",
        file="dsarch/balance.py",
        old="error = load.mean() - load\n",
        new="error = load - load.mean()\n",
        story="Busy experts become busier: collapse within a few hundred "
        "steps.",
        tests=(BALANCE + "test_every_rule_evens_out_a_skewed_router",),
    ),
    Mutation(
        id="06.bias-step-proportional",
        file="dsarch/balance.py",
        old="step = speed * error.sign()",
        new="step = speed * error",
        story="Steps of hundreds of tokens times the speed throw the choice "
        "from one extreme to the other.",
        tests=(BALANCE + "test_bias_moves_by_the_sign_alone",),
    ),
    Mutation(
        id="06.device-load-summed",
        file="dsarch/balance.py",
        old="return (f.mean(1) * p.sum(1)).sum()",
        new="return (f.sum(1) * p.sum(1)).sum()",
        story="The paper takes a mean of the loads and a sum of the scores; "
        "with two sums the loss grows with the experts on a device.",
        tests=(BALANCE + "test_device_loss_is_a_mean_times_a_sum",),
    ),
    Mutation(
        id="06.device-counted-twice",
        file="dsarch/balance.py",
        old="return sent.amax(1)[:, :devices]",
        new="return sent.sum(1)[:, :devices]",
        story="A token travels once to a device that holds two of its "
        "experts; counting it twice overstates the traffic.",
        tests=(
            BALANCE + "test_communication_loss_counts_a_device_once_per_token",
        ),
    ),
    Mutation(
        id="06.sequence-loss-over-the-batch",
        file="dsarch/balance.py",
        old="    b, t, e = scores.shape\n    if experts",
        new="    scores = scores.flatten(0, 1)[None]\n"
        "    b, t, e = scores.shape\n    if experts",
        story="Sequences that are lopsided in opposite ways look balanced "
        "together.",
        tests=(BALANCE + "test_sequence_loss_is_the_mean_over_sequences",),
    ),
    Mutation(
        id="06.sequence-scores-not-normalised",
        file="dsarch/balance.py",
        old="p = (scores / scores.sum(-1, keepdim=True)).sum(1)",
        new="p = scores.sum(1)",
        story="Sigmoids do not sum to one: the loss rewards low scores "
        "everywhere instead of even ones.",
        tests=(BALANCE + "test_sequence_loss_is_the_mean_over_sequences",),
    ),
    Mutation(
        id="06.sums-in-bf16",
        file="dsarch/dispatch.py",
        old="y = torch.zeros_like(widen(x))\n    flat,",
        new="y = torch.zeros_like(x)\n    flat,",
        story="Eight answers added in bf16 lose the small ones.",
        tests=("tests/test_moe.py::test_bf16_sums_in_fp32",),
    ),
    Mutation(
        id="06.gradients-added-in-another-order",
        file="dsarch/dispatch.py",
        old="dx.index_add_(0, token.flip(0), drows.flip(0))",
        new="dx.index_add_(0, token, drows)",
        story="Values are equal and gradients nearly: after a thousand steps "
        "loop and grouped training have parted.",
        tests=(SAME_BITS,),
    ),
    Mutation(
        id="06.block-of-any-matrices",
        file="dsarch/experts.py",
        old="    if places != list(range(start, last + 1, step)):\n"
        "        return None\n",
        new="",
        story="After one expert was exchanged, its neighbours' weights are "
        "read in its place.",
        tests=("tests/test_moe.py::test_only_neighbours_are_a_block",),
    ),
    Mutation(
        id="06.idle-experts-get-gradients",
        file="dsarch/experts.py",
        old="return [grad if count else None for grad, count in pairs]",
        new="return [grad for grad, count in pairs]",
        story="An expert that saw no token is moved by what lay in memory.",
        tests=(SAME_BITS,),
    ),
    Mutation(
        id="06.vectors-cut-in-half",
        file="dsarch/experts.py",
        old="return x.size(1) % (32 * pieces) == 0",
        new="return x.size(1) % 32 == 0",
        story="With one thread loop and groups agree to the bit, with two "
        "they do not.",
        tests=(
            "tests/test_moe.py::test_bits_do_not_depend_on_how_threads_cut",
        ),
    ),
]
