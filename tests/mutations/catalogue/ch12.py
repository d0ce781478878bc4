"""Mistakes of chapter 12: templates, masks, rewards, preferences, PPO."""

from tests.mutations import Mutation

SFT, DPO = "dsarch/post/sft.py", "dsarch/post/dpo.py"
REWARD, PPO = "dsarch/post/reward.py", "dsarch/post/ppo.py"
CHAT, RULES = "tests/test_post_sft.py", "tests/test_post_reward.py"
PAIRS = "tests/test_post_dpo.py"
TORCH = "tests/parity/test_post_torch.py"
TRL = "tests/parity/test_post_trl.py"
PREFERENCE = f"{TRL}::test_preference_losses_equal_trl_with_gradients"
WORKED = f"{PAIRS}::test_worked_values"

MUTATIONS = [
    Mutation(
        id="12.no-shift",
        file="dsarch/post/logprobs.py",
        old="scores = widen(logits[:, :-1]) / temperature",
        new="scores = widen(logits[:, 1:]) / temperature",
        story="The loss falls fast and the model only repeats its input: each "
        "token is scored by the logit that has already seen it.",
        tests=(
            "tests/test_post_logprobs.py::test_a_log_probability"
            "_belongs_to_the_token_it_predicts",
            f"{TORCH}::test_sft_loss_equals_transformers_with_gradient",
        ),
    ),
    Mutation(
        id="12.mask-not-shifted",
        file="dsarch/post/logprobs.py",
        old="return mask[:, 1:]",
        new="return mask[:, :-1]",
        story="The first token of every answer is never trained and the first "
        "of every next question is.",
        tests=(f"{TORCH}::test_sft_loss_equals_transformers_with_gradient",),
    ),
    Mutation(
        id="12.sum-for-mean",
        file="dsarch/post/logprobs.py",
        old="        return kept.sum() / mask.sum().clamp(min=1)",
        new="        return kept.sum() / len(mask)",
        story="Long answers take larger steps: the loss is divided by "
        "sequences instead of tokens.",
        tests=(f"{TORCH}::test_sft_loss_equals_transformers_with_gradient",),
    ),
    Mutation(
        id="12.all-masked-is-nan",
        file="dsarch/post/logprobs.py",
        old="        return kept.sum() / mask.sum().clamp(min=1)",
        new="        return kept.sum() / mask.sum()",
        story="One batch without a trained token and every weight is NaN.",
        tests=(f"{CHAT}::test_labels_all_masked_give_a_loss_of_zero",),
    ),
    Mutation(
        id="12.infinity-under-the-mask",
        file="dsarch/post/logprobs.py",
        old="kept = x.masked_fill(~mask, 0.0)\n    if dim",
        new="kept = x * mask\n    if dim",
        story="Padding with an impossible token gives NaN: zero times "
        "infinity.",
        tests=(
            "tests/test_post_logprobs.py::test_a_masked_infinity"
            "_leaves_no_trace",
        ),
    ),
    Mutation(
        id="12.end-of-turn-not-trained",
        file=SFT,
        old="mask += [False] + [trained] * (len(words) - 1) if words else []",
        new="mask += [False] + [trained] * (len(words) - 2) + [False]"
        " if words else []",
        story="The model answers well and never stops.",
        tests=(f"{CHAT}::test_which_turns_are_trained",),
    ),
    Mutation(
        id="12.marker-trained",
        file=SFT,
        old="mask += [False] + [trained] * (len(words) - 1) if words else []",
        new="mask += [trained] * len(words)",
        story="The model opens turns of its own after a tool result: the "
        "role marker was part of the loss.",
        tests=(f"{CHAT}::test_which_turns_are_trained",),
    ),
    Mutation(
        id="12.prompts-trained",
        file=SFT,
        old='trained = message.role == "assistant" and learns[train]',
        new="trained = learns[train]",
        story="The model learns to write tool results and user messages.",
        tests=(f"{CHAT}::test_a_dialogue_token_by_token",),
    ),
    Mutation(
        id="12.thoughts-gone-at-each-tool",
        file=SFT,
        old='"user": place > last, "any"',
        new='"user": place == end, "any"',
        story="After every tool result the agent starts to think from the "
        "beginning: only a user message should drop the reasoning.",
        tests=(f"{CHAT}::test_who_makes_reasoning_disappear",),
    ),
    Mutation(
        id="12.thoughts-never-gone",
        file=SFT,
        old="if message.reasoning and keeps:",
        new="if message.reasoning:",
        story="Training shows old thoughts that no prompt will ever contain "
        "again, and the window fills up.",
        tests=(f"{CHAT}::test_a_dialogue_token_by_token",),
    ),
    Mutation(
        id="12.packed-documents-see-each-other",
        file=SFT,
        old="return causal & same",
        new="return causal & (same | True)",
        story="Answers quote the conversation packed before theirs.",
        tests=(f"{CHAT}::test_packed_documents_do_not_see_each_other",),
    ),
    Mutation(
        id="12.positions-run-on",
        file=SFT,
        old="position[b, span] = torch.arange(len(example.tokens))",
        new="position[b, span] = torch.arange(start, span.stop)",
        story="Absolute positions depend on what was packed in front.",
        tests=(f"{CHAT}::test_packing_is_longest_first_and_first_fit",),
    ),
    Mutation(
        id="12.first-token-of-a-document",
        file=SFT,
        old="            mask[b, start : start + 1] = False\n",
        new="",
        story="The beginning of a text is predicted from the end of another.",
        tests=(f"{CHAT}::test_packing_is_longest_first_and_first_fit",),
    ),
    Mutation(
        id="12.score-at-the-padding",
        file=REWARD,
        old="last = (place * mask).argmax(1)",
        new="last = torch.full_like(mask[:, 0], mask.shape[1] - 1,"
        " dtype=torch.long)",
        story="All short answers get the same reward: the model reads the "
        "padding.",
        tests=(f"{RULES}::test_the_score_is_read_at_the_last_real_token",),
    ),
    Mutation(
        id="12.margin-added",
        file=REWARD,
        old="gap = gap - margin",
        new="gap = gap + margin",
        story="Clear preferences are learned less than doubtful ones.",
        tests=(f"{TRL}::test_reward_loss_equals_trl_with_gradients",),
    ),
    Mutation(
        id="12.centering-of-the-difference",
        file=REWARD,
        old="centre = (widen(chosen) + widen(rejected)).square().mean()",
        new="centre = (widen(chosen) - widen(rejected)).square().mean()",
        story="The reward's level drifts and its differences shrink: the "
        "penalty fell on what should be learned.",
        tests=(f"{TRL}::test_reward_loss_equals_trl_with_gradients",),
    ),
    Mutation(
        id="12.first-box-counts",
        file=REWARD,
        old=r'start = text.rfind(r"\boxed{")',
        new=r'start = text.find(r"\boxed{")',
        story="An answer that was corrected in the end is marked wrong, and "
        "boxing every guess pays.",
        tests=(f"{RULES}::test_boxed",),
    ),
    Mutation(
        id="12.answers-as-strings",
        file=REWARD,
        old="    if left is not None and right is not None:\n"
        "        return left == right\n",
        new="",
        story="A half is right, 0.5 is wrong: the reward teaches notation.",
        tests=(f"{RULES}::test_same_answer",),
    ),
    Mutation(
        id="12.reference-forgotten",
        file=DPO,
        old="    chosen = policy_chosen - ref_chosen\n"
        "    rejected = policy_rejected - ref_rejected\n",
        new="    chosen, rejected = policy_chosen, policy_rejected\n",
        story="The loss does not start at log 2, and long answers lose from "
        "the beginning.",
        tests=(
            f"{PAIRS}::test_a_policy_equal_to_its_reference_starts_at_log_two",
        ),
    ),
    Mutation(
        id="12.beta-outside",
        file=DPO,
        old="return -logsigmoid(p.margin)",
        new="return -p.beta * logsigmoid(p.margin / p.beta)",
        story="Pairs stop teaching almost at once: the temperature stands "
        "outside of the sigmoid.",
        tests=(PREFERENCE,),
    ),
    Mutation(
        id="12.ipo-with-the-logistic-scale",
        file=DPO,
        old="return (p.chosen - p.rejected - 1 / (2 * p.beta)).square()",
        new="return (p.margin - 1 / (2 * p.beta)).square()",
        story="The margin is driven to ten times its optimum: beta counts "
        "twice.",
        tests=(PREFERENCE,),
    ),
    Mutation(
        id="12.robust-not-unbiased",
        file=DPO,
        old="return (kept - flipped) / (1 - 2 * p.smoothing)",
        new="return kept + flipped",
        story="Label smoothing, not the estimate that is right under flipped "
        "labels.",
        tests=(PREFERENCE,),
    ),
    Mutation(
        id="12.bco-pushes-both-up",
        file=DPO,
        old="logsigmoid(p.beta * p.chosen) - logsigmoid(-p.beta * p.rejected)",
        new="logsigmoid(p.beta * p.chosen) - logsigmoid(p.beta * p.rejected)",
        story="Rejected answers become likelier, too.",
        tests=(PREFERENCE, WORKED),
    ),
    Mutation(
        id="12.ties-are-right",
        file=DPO,
        old="accuracy = (chosen > rejected)",
        new="accuracy = (chosen >= rejected)",
        story="The accuracy is perfect before the first update.",
        tests=(
            f"{PAIRS}::test_a_policy_equal_to_its_reference_starts_at_log_two",
        ),
    ),
    Mutation(
        id="12.value-beyond-the-end",
        file=PPO,
        old="after = torch.zeros_like(values[:, 0])",
        new="after = values[:, -1]",
        story="The last token hopes for a future that does not exist.",
        tests=(f"{RULES}::test_worked_advantage_estimates",),
    ),
    Mutation(
        id="12.lambda-on-the-error",
        file=PPO,
        old="step = delta + gamma * lam * carried",
        new="step = delta + gamma * carried",
        story="Lambda has no effect: every estimate has the variance of the "
        "whole return.",
        tests=(f"{RULES}::test_worked_advantage_estimates",),
    ),
    Mutation(
        id="12.score-everywhere",
        file=PPO,
        old="score[:, None] * (mask & (after == 1))",
        new="score[:, None] * mask",
        story="Long answers collect the reward once per token.",
        tests=(
            f"{RULES}::test_the_divergence_is_part_of_the_reward"
            "_and_the_score_comes_last",
        ),
    ),
    Mutation(
        id="12.divergence-rewarded",
        file=PPO,
        old="penalty = -beta * (logp - ref_logp)",
        new="penalty = -beta * (ref_logp - logp)",
        story="The policy is paid to leave its reference.",
        tests=(
            f"{RULES}::test_the_divergence_is_part_of_the_reward"
            "_and_the_score_comes_last",
        ),
    ),
    Mutation(
        id="12.value-clip-forgives",
        file=PPO,
        old="torch.maximum(error, clipped)",
        new="torch.minimum(error, clipped)",
        story="The critic stops learning where it is most wrong.",
        tests=(f"{RULES}::test_policy_and_value_losses_by_hand",),
    ),
    Mutation(
        id="12.whitening-without-bessel",
        file=PPO,
        old="(count - 1).clamp(min=1)",
        new="count.clamp(min=1)",
        story="Small batches get advantages that are a little too large.",
        tests=(f"{RULES}::test_whitening_counts_what_is_not_masked",),
    ),
]
