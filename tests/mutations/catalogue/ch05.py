"""Mistakes of chapter 5: classic routers, capacity and their losses."""

from tests.mutations import Mutation

GSHARD = "tests/test_router.py::test_gshard_is_its_algorithm"
NOISY = "tests/test_router.py::test_noisy_top_k_is_the_definition"
SAME_BITS = "tests/test_moe.py::test_grouped_equals_loop_to_the_bit"

MUTATIONS = [
    Mutation(
        id="05.weights-not-renormalised",
        file="dsarch/router.py",
        old="return Routing(weights / weights.sum(1, keepdim=True), "
        "experts, scores)",
        new="return Routing(weights, experts, scores)",
        story="Mixtral's answers shrink with the probability that went to "
        "experts that were not chosen.",
        tests=(
            "tests/parity/test_moe.py::"
            "test_mixtral_block_and_loss_equal_transformers",
        ),
    ),
    Mutation(
        id="05.switch-weight-is-one",
        file="dsarch/router.py",
        old="weights, experts = scores.topk(1)\n"
        "    return Routing(weights, experts, scores)",
        new="weights, experts = scores.topk(1)\n"
        "    return Routing(weights / weights, experts, scores)",
        story="Renormalising a single expert leaves the weight one: the "
        "router never gets a gradient and never learns.",
        tests=("tests/test_router.py::test_switch_weighs_by_the_probability",),
    ),
    Mutation(
        id="05.overflow-not-dropped",
        file="dsarch/router.py",
        old="(rank <= limit)",
        new="(rank <= limit + len(slots))",
        story="The capacity is computed and never applied, so the buffers "
        "of a busy expert overflow.",
        tests=(
            "tests/test_router.py::"
            "test_overflow_is_dropped_and_goes_nowhere_else",
        ),
    ),
    Mutation(
        id="05.token-order-before-choice-order",
        file="dsarch/router.py",
        old='slots = rearrange(routing.experts, "z k -> (k z)")\n'
        "    taken = F.one_hot(slots, routing.scores.size(1) + 1).cumsum(0)\n"
        "    rank = taken.gather(1, slots[:, None]).squeeze(1)\n"
        "    kept = (rank <= limit).unflatten(0, routing.experts.T.shape)\n"
        "    return drop(routing, kept.T)",
        new='slots = rearrange(routing.experts, "z k -> (z k)")\n'
        "    taken = F.one_hot(slots, routing.scores.size(1) + 1).cumsum(0)\n"
        "    rank = taken.gather(1, slots[:, None]).squeeze(1)\n"
        "    kept = (rank <= limit).unflatten(0, routing.experts.shape)\n"
        "    return drop(routing, kept)",
        story="A second choice of an early token takes the place of a first "
        "choice.",
        tests=(
            "tests/test_router.py::test_first_choices_come_before_any_second",
        ),
    ),
    Mutation(
        id="05.dropped-weight-kept",
        file="dsarch/router.py",
        old="weights = routing.weights.where(kept, 0.0)",
        new="weights = routing.weights",
        story="Nothing is computed for a dropped slot, yet its weight stays "
        "in every statistic of the gates.",
        tests=(
            "tests/test_router.py::"
            "test_overflow_is_dropped_and_goes_nowhere_else",
        ),
    ),
    Mutation(
        id="05.second-choice-too-shy",
        file="dsarch/router.py",
        old="second = 2 * routing.weights[:, 1] >",
        new="second = routing.weights[:, 1] >",
        story="Without the factor of two even an equal second choice is "
        "dropped half of the time.",
        tests=(GSHARD,),
    ),
    Mutation(
        id="05.threshold-includes-itself",
        file="dsarch/router.py",
        old="bar = torch.where(chosen, best[:, k:], best[:, k - 1 : k])",
        new="bar = best[:, k - 1 : k]",
        story="A chosen expert is compared with itself or a fellow winner; "
        "the load loss pushes at the wrong experts.",
        tests=(NOISY,),
    ),
    Mutation(
        id="05.noise-without-spread",
        file="dsarch/router.py",
        old="noisy = clean + drawn * scale",
        new="noisy = clean + drawn",
        story="The learned amount of noise is never used, its weights get "
        "no gradient from the choice.",
        tests=(NOISY,),
    ),
    Mutation(
        id="05.counts-not-scaled",
        file="dsarch/balance.py",
        old="f = loads(experts, e).type_as(scores) * e / slots",
        new="f = loads(experts, e).type_as(scores) / slots",
        story="The balance loss of an even load is one over the number of "
        "experts, so the usual coefficient is far too weak.",
        tests=(
            "tests/test_balance.py::test_every_loss_is_one_for_an_even_load",
        ),
    ),
    Mutation(
        id="05.gshard-counts-both-choices",
        file="dsarch/balance.py",
        old="return expert_loss(scores, experts[:, :1])",
        new="return expert_loss(scores, experts)",
        story="GShard's loss counts first choices; with both the second one "
        "hides a lopsided first.",
        tests=("tests/test_balance.py::test_gshard_loss_counts_first_choices",),
    ),
    Mutation(
        id="05.z-loss-without-square",
        file="dsarch/balance.py",
        old="return logits.logsumexp(1).square().mean()",
        new="return logits.logsumexp(1).mean()",
        story="Logits run away towards minus infinity instead of staying "
        "small.",
        tests=(
            "tests/parity/test_moe.py::test_switch_losses_equal_transformers",
        ),
    ),
    Mutation(
        id="05.importance-from-samples",
        file="dsarch/balance.py",
        old="return load.var(correction=0) /",
        new="return load.var() /",
        story="torch divides by one less than the number of experts unless "
        "told otherwise.",
        tests=(
            "tests/test_balance.py::"
            "test_importance_and_load_are_squared_variations",
        ),
    ),
    Mutation(
        id="05.slot-taken-for-token",
        file="dsarch/dispatch.py",
        old="token = slot // width",
        new="token = slot % width",
        story="Experts compute tokens that were never sent to them, with "
        "the right shapes everywhere.",
        tests=("tests/test_moe.py::test_sparse_moe_is_the_sum", SAME_BITS),
    ),
    Mutation(
        id="05.answers-replaced-not-added",
        file="dsarch/dispatch.py",
        old="y.index_add_(0, token, out * weight[:, None])\n"
        "    return y.type_as(x)",
        new="y = y.index_copy(0, token, out * weight[:, None])\n"
        "    return y.type_as(x)",
        story="Each expert overwrites the answer of the one before; with one "
        "expert per token nobody notices.",
        tests=(SAME_BITS,),
    ),
]
