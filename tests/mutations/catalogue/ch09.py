"""Mistakes of chapter 9: advantages, ratios, clips, divergences, masks."""

from tests.mutations import Mutation

GRPO, LOSS = "dsarch/post/grpo.py", "dsarch/post/objective.py"
ROLLOUT, ROUTING = "dsarch/post/rollout.py", "dsarch/post/routing.py"
TRL = "tests/parity/test_post_trl.py"
ADVANTAGES = f"{TRL}::test_advantages_equal_trl"
POLICY = f"{TRL}::test_policy_losses_equal_trl_with_gradients"
UNIT, CLIP = "tests/test_post_grpo.py", "tests/test_post_objective.py"
SAMPLE = "tests/test_post_rollout.py"

MUTATIONS = [
    Mutation(
        id="09.population-deviation",
        file=GRPO,
        old="x.std(1, keepdim=True)",
        new="x.std(1, keepdim=True, correction=0)",
        story="Everything trains, with steps 15 percent larger at four samples "
        "than every published implementation would make.",
        tests=(ADVANTAGES,),
    ),
    Mutation(
        id="09.epsilon-of-another-library",
        file=GRPO,
        old="STD_EPS = 1e-4",
        new="STD_EPS = 1e-6",
        story="Groups whose rewards hardly differ get advantages a hundred "
        "times as large as in the run one compares with.",
        tests=(ADVANTAGES,),
    ),
    Mutation(
        id="09.epsilon-inside-the-root",
        file=GRPO,
        old="centred / (_std(rewards) + STD_EPS)",
        new="centred / (_std(rewards) ** 2 + STD_EPS).sqrt()",
        story="Nearly equal groups are damped far too much: the constant went "
        "into the variance.",
        tests=(ADVANTAGES,),
    ),
    Mutation(
        id="09.mean-of-the-batch",
        file=GRPO,
        old="centred = rewards - rewards.mean(1, keepdim=True)",
        new="centred = rewards - rewards.mean()",
        story="Every answer to an easy question is praised and every answer "
        "to a hard one blamed: the baseline is no longer the question's.",
        tests=(ADVANTAGES,),
    ),
    Mutation(
        id="09.equal-groups-almost-zero",
        file=GRPO,
        old="torch.where(equal_groups(rewards)[:, None], 0.0, centred)",
        new="centred",
        story="A group of equal rewards still pushes a little: the mean of "
        "equal numbers is off by one bit and the division blows it up.",
        tests=(f"{UNIT}::test_equal_rewards_give_exact_zeros",),
    ),
    Mutation(
        id="09.process-credits-the-past",
        file=GRPO,
        old="step_ends[..., None] >= token",
        new="step_ends[..., None] <= token",
        story="Tokens are credited with the steps before them, which they "
        "could not influence any more.",
        tests=(
            f"{UNIT}::test_outcome_supervision_is_one_step_at_the_end",
            f"{UNIT}::test_process_supervision_by_hand",
        ),
    ),
    Mutation(
        id="09.process-one-token-short",
        file=GRPO,
        old="step_ends[..., None] >= token",
        new="step_ends[..., None] > token",
        story="The token that ends a step never learns from it, so the end "
        "token of every answer is left to chance.",
        tests=(f"{UNIT}::test_process_supervision_by_hand",),
    ),
    Mutation(
        id="09.ratio-upside-down",
        file=GRPO,
        old="difference = (logp - old_logp)",
        new="difference = (old_logp - logp)",
        story="The success rate falls from the first update on: the gradient "
        "points the wrong way.",
        tests=(POLICY,),
    ),
    Mutation(
        id="09.sequence-ratio-summed",
        file=GRPO,
        old="mean = masked_mean(difference, mask, 1)[:, None]",
        new="mean = difference.sum(1)[:, None]",
        story="Long answers are always clipped: the sequence ratio of GSPO is "
        "a mean of logs, not a sum.",
        tests=(POLICY,),
    ),
    Mutation(
        id="09.k3-turned",
        file=GRPO,
        old="k3 = log_rho.exp() - log_rho - 1",
        new="k3 = (-log_rho).exp() + log_rho - 1",
        story="The divergence is still never negative and still zero at the "
        "start, but its mean is another quantity.",
        tests=(f"{UNIT}::test_expected_values_of_the_kl_estimators", POLICY),
    ),
    Mutation(
        id="09.k1-for-k3",
        file=GRPO,
        old="k3 = log_rho.exp() - log_rho - 1",
        new="k3 = -log_rho",
        story="The logged divergence looks right on average, and the policy "
        "drifts away all the same: the expected gradient is zero.",
        tests=(f"{UNIT}::test_expected_gradients_of_the_kl_estimators",),
    ),
    Mutation(
        id="09.unbiased-ratio-detached",
        file=GRPO,
        old="k3 * (on_policy if ratio is None else ratio)",
        new="k3 * (on_policy if ratio is None else ratio).detach()",
        story="Values agree to the last digit and the correction of V3.2 is "
        "gone: the ratio matters through its derivative.",
        tests=(f"{UNIT}::test_expected_gradients_of_the_kl_estimators",),
    ),
    Mutation(
        id="09.off-policy-drops-the-good",
        file=GRPO,
        old="(advantage >= 0) | (drift <= delta)",
        new="(advantage <= 0) | (drift <= delta)",
        story="Stale successes are thrown away and stale failures are "
        "learned from.",
        tests=(f"{UNIT}::test_only_stale_negatives_are_dropped",),
    ),
    Mutation(
        id="09.off-policy-by-sum",
        file=GRPO,
        old="drift = masked_mean(sampler_logp - logp.detach(), mask, 1)",
        new="drift = ((sampler_logp - logp.detach()) * mask).sum(1)",
        story="Long failures are always dropped: the limit is meant per "
        "token, not for the whole answer.",
        tests=(f"{UNIT}::test_only_stale_negatives_are_dropped",),
    ),
    Mutation(
        id="09.off-policy-turned",
        file=GRPO,
        old="masked_mean(sampler_logp - logp.detach(), mask, 1)",
        new="masked_mean(logp.detach() - sampler_logp, mask, 1)",
        story="Failures that became likelier are forgiven and those already "
        "abandoned keep being pushed down.",
        tests=(f"{UNIT}::test_only_stale_negatives_are_dropped", POLICY),
    ),
    Mutation(
        id="09.ratio-detached",
        file=LOSS,
        old="ratio = log_ratio(logp, old, mask, choice.level).exp()",
        new="ratio = log_ratio(logp, old, mask, choice.level).exp().detach()",
        story="The logged loss is right and the policy stands still: no "
        "gradient is left in the ratio.",
        tests=(POLICY,),
    ),
    Mutation(
        id="09.old-is-not-frozen",
        file=LOSS,
        old="old = logp.detach() if",
        new="old = logp if",
        story="On fresh samples nothing is learned: the ratio was simplified "
        "to a constant 1, with its gradient.",
        tests=(
            f"{CLIP}::test_just_sampled_the_value_is_a_mean"
            "_but_the_gradient_is_not_zero",
        ),
    ),
    Mutation(
        id="09.maximum-for-minimum",
        file=LOSS,
        old="gain = torch.minimum(",
        new="gain = torch.maximum(",
        story="The optimistic of two objectives: what has moved too far is "
        "pushed on and what has not is held.",
        tests=(f"{CLIP}::test_the_clip_holds_only_what_runs_away", POLICY),
    ),
    Mutation(
        id="09.clip-everything",
        file=LOSS,
        old="bounded * advantage, ratio.clamp(low, high) * advantage",
        new="*[ratio.clamp(low, high) * advantage] * 2",
        story="A failure that became likelier is never corrected: the clip "
        "must not bind on the side that hurts.",
        tests=(f"{CLIP}::test_the_clip_holds_only_what_runs_away", POLICY),
    ),
    Mutation(
        id="09.clip-higher-below",
        file=LOSS,
        old="low, high = 1 - choice.eps_low, 1 + choice.eps_high",
        new="low, high = 1 - choice.eps_high, 1 + choice.eps_low",
        story="DAPO's room for rare good tokens was given to the bad ones.",
        tests=(POLICY,),
    ),
    Mutation(
        id="09.cispo-cap-in-the-graph",
        file=LOSS,
        old="cap = ratio.detach().clamp(max=high)",
        new="cap = ratio.clamp(max=high)",
        story="Gradients are about twice too large below the cap: the weight "
        "of CISPO is a constant.",
        tests=(POLICY,),
    ),
    Mutation(
        id="09.mask-on-the-divergence",
        file=LOSS,
        old="    per_token = per_token + choice.beta * kl\n",
        new="    per_token = per_token + choice.beta * kl\n"
        "    if samples.keep is not None:\n"
        "        per_token = per_token * samples.keep[:, None]\n",
        story="Dropped answers also lose their tie to the reference: the "
        "off-policy mask belongs to the surrogate alone.",
        tests=(POLICY,),
    ),
    Mutation(
        id="09.mean-over-padding",
        file=LOSS,
        old="return masked_mean(per_token, mask, 1).mean()",
        new="return per_token.masked_fill(~mask, 0.0).mean()",
        story="Short answers count less the longer the longest is: padding is "
        "part of the mean.",
        tests=(POLICY,),
    ),
    Mutation(
        id="09.tokens-for-sequences",
        file=LOSS,
        old="return masked_mean(per_token, mask, 1).mean()",
        new="return masked_mean(per_token, mask)",
        story="Another member of the family: every token weighs the same, so "
        "long answers dominate.",
        tests=(POLICY,),
    ),
    Mutation(
        id="09.constant-forgets-the-rows",
        file=LOSS,
        old="total / (len(mask) * _longest(choice))",
        new="total / _longest(choice)",
        story="The step grows with the batch: one library divides by the "
        "length alone, the other by rows as well.",
        tests=(POLICY,),
    ),
    Mutation(
        id="09.masked-infinity-multiplied",
        file=LOSS,
        old="ref = samples.ref_logp.masked_fill(~samples.mask, 0.0)",
        new="ref = samples.ref_logp * samples.mask",
        story="NaN from the first batch with padding: zero times infinity is "
        "not zero.",
        tests=(f"{CLIP}::test_what_is_masked_cannot_matter",),
    ),
    Mutation(
        id="09.masked-infinity-kept",
        file=LOSS,
        old="logp = samples.logp.masked_fill(~mask, 0.0)",
        new="logp = samples.logp",
        story="The loss is finite and its gradient NaN: masking the result "
        "comes too late for the backward pass.",
        tests=(f"{CLIP}::test_what_is_masked_cannot_matter",),
    ),
    Mutation(
        id="09.prompt-in-the-loss",
        file=ROLLOUT,
        old="self.mask = [torch.zeros_like(prompts, dtype=torch.bool)]",
        new="self.mask = [torch.ones_like(prompts, dtype=torch.bool)]",
        story="The policy is rewarded for questions it never asked.",
        tests=(
            f"{SAMPLE}::test_a_completion_ends_with_its_end_token"
            "_and_padding_is_not_chosen",
        ),
    ),
    Mutation(
        id="09.end-token-not-trained",
        file=ROLLOUT,
        old="            record.add(token, alive, drawn)\n"
        "            alive, fed = alive & (token != eos), token[:, None]\n",
        new="            alive, fed = alive & (token != eos), token[:, None]\n"
        "            record.add(token, alive, drawn)\n",
        story="Answers grow without end: stopping is the one choice that is "
        "never reinforced.",
        tests=(
            f"{SAMPLE}::test_a_completion_ends_with_its_end_token"
            "_and_padding_is_not_chosen",
        ),
    ),
    Mutation(
        id="09.temperature-forgotten",
        file="dsarch/post/logprobs.py",
        old="scores = widen(logits[:, :-1]) / temperature",
        new="scores = widen(logits[:, :-1])",
        story="Ratios differ from 1 before the first update: sampled at one "
        "temperature, scored at another.",
        tests=(
            f"{SAMPLE}::test_the_samplers_log_probabilities"
            "_are_those_of_training",
        ),
    ),
    Mutation(
        id="09.sampling-set-forgotten",
        file="dsarch/post/logprobs.py",
        old="scores = scores.masked_fill(~allowed, -math.inf)",
        new="scores = scores.masked_fill(~allowed, -1.0)",
        story="With top-p every ratio starts below 1: the policy is not "
        "renormalised over the set that was sampled from.",
        tests=(
            f"{SAMPLE}::test_keep_sampling_mask_restores_the_samplers_policy",
        ),
    ),
    Mutation(
        id="09.routes-not-kept",
        file=ROUTING,
        old="return reweigh(routing, chosen, module.cfg)",
        new="return reweigh(routing, routing.experts, module.cfg)",
        story="Numerator and denominator of the ratio come from different "
        "experts, and training a mixture becomes unstable.",
        tests=(
            f"{SAMPLE}::test_keep_routing_sends_tokens_to_the_recorded_experts",
        ),
    ),
    Mutation(
        id="09.routes-without-scaling",
        file=ROUTING,
        old="weights = weights * cfg.routed_scaling_factor\n",
        new="weights = weights * 1.0\n",
        story="Replayed passes are weaker than sampled ones: the factor on "
        "the routed experts was forgotten.",
        tests=(
            f"{SAMPLE}::test_kept_experts_are_weighed_by_the_current_scores",
        ),
    ),
    Mutation(
        id="09.samples-interleaved",
        file="dsarch/post/loop.py",
        old="prompts = task.prompts(questions, generator)"
        ".repeat_interleave(group, 0)",
        new="prompts = task.prompts(questions, generator).repeat(group, 1)",
        story="Answers are compared with answers to other questions: the "
        "samples of one question do not stand side by side.",
        tests=(
            "tests/test_post_loop.py::test_samples_of_a_question"
            "_stand_side_by_side",
        ),
    ),
]
