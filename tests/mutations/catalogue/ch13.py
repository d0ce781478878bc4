"""Mistakes of chapter 13: directions, temperatures, masks, layers."""

from tests.mutations import Mutation

DISTILL = "dsarch/post/distill.py"
UNIT = "tests/test_post_distill.py"
TORCH = "tests/parity/test_post_torch.py"
JSD = "tests/parity/test_post_trl.py::test_jsd_equals_trl_with_gradients"
KD = f"{TORCH}::test_kd_loss_is_torchs_kl_div_times_t_squared"
REVERSE = f"{TORCH}::test_reverse_divergence_swaps_torchs_arguments"

MUTATIONS = [
    Mutation(
        id="13.no-t-squared",
        file=DISTILL,
        old="temperature**2 * _mean",
        new="_mean",
        story="The softer the targets the less they weigh, until only the "
        "hard labels teach.",
        tests=(
            KD,
            f"{UNIT}::test_gradients_keep_their_size_at_any_temperature",
        ),
    ),
    Mutation(
        id="13.t-once",
        file=DISTILL,
        old="temperature**2 * _mean",
        new="temperature * _mean",
        story="The gradient still shrinks with the temperature: it falls with "
        "its square.",
        tests=(KD,),
    ),
    Mutation(
        id="13.teacher-not-softened",
        file=DISTILL,
        old="(widen(teacher.detach()) / temperature).log_softmax(-1)",
        new="widen(teacher.detach()).log_softmax(-1)",
        story="The student becomes too sure of itself: it must match sharp "
        "targets through a soft pair of glasses.",
        tests=(KD, JSD),
    ),
    Mutation(
        id="13.arguments-swapped",
        file=DISTILL,
        old="_mean(divergence(log_p, log_q), mask)\n\n\ndef reverse",
        new="_mean(divergence(log_q, log_p), mask)\n\n\ndef reverse",
        story="The student copies one habit of the teacher and drops the "
        "others: the divergence runs the other way.",
        tests=(KD, f"{UNIT}::test_forward_covers_and_reverse_commits"),
    ),
    Mutation(
        id="13.reverse-is-forward",
        file=DISTILL,
        old="    return _mean(divergence(log_q, log_p), mask)\n\n\ndef jsd",
        new="    return _mean(divergence(log_p, log_q), mask)\n\n\ndef jsd",
        story="On its own samples the student spreads over all that the "
        "teacher could say.",
        tests=(REVERSE, f"{UNIT}::test_forward_covers_and_reverse_commits"),
    ),
    Mutation(
        id="13.mixture-weights-swapped",
        file=DISTILL,
        old="p + math.log(beta), q + math.log1p(-beta)",
        new="p + math.log1p(-beta), q + math.log(beta)",
        story="Right at one half and wrong everywhere else, as in an old "
        "version of a well-known library.",
        tests=(JSD,),
    ),
    Mutation(
        id="13.ends-of-beta-swapped",
        file=DISTILL,
        old="    if beta == 0:\n"
        "        return _mean(divergence(log_p, log_q), mask)\n"
        "    if beta == 1:\n"
        "        return _mean(divergence(log_q, log_p), mask)\n",
        new="    if beta == 1:\n"
        "        return _mean(divergence(log_p, log_q), mask)\n"
        "    if beta == 0:\n"
        "        return _mean(divergence(log_q, log_p), mask)\n",
        story="Whoever asks for the forward divergence gets the reverse one.",
        tests=(JSD,),
    ),
    Mutation(
        id="13.no-special-ends",
        file=DISTILL,
        old="    if beta == 0:\n"
        "        return _mean(divergence(log_p, log_q), mask)\n",
        new="    beta = max(beta, 1e-9)\n",
        story="At beta zero nothing is learned: the formula itself tends to "
        "zero at both ends.",
        tests=(JSD,),
    ),
    Mutation(
        id="13.mean-over-the-vocabulary",
        file=DISTILL,
        old=".masked_fill(p == 0, 0.0)).sum(-1)",
        new=".masked_fill(p == 0, 0.0)).mean(-1)",
        story="The loss is thousands of times too small for a real vocabulary.",
        tests=(KD, JSD),
    ),
    Mutation(
        id="13.zero-times-infinity",
        file=DISTILL,
        old="(log_p - log_q).masked_fill(p == 0, 0.0)",
        new="(log_p - log_q)",
        story="NaN as soon as teacher and student forbid the same token.",
        tests=(f"{UNIT}::test_impossible_entries",),
    ),
    Mutation(
        id="13.mixture-of-nothing",
        file=DISTILL,
        old="(x.clamp(min=torch.finfo(x.dtype).min) for x in (log_p, log_q))",
        new="log_p, log_q",
        story="The loss is fine and its gradient NaN: one token that neither "
        "teacher nor student may say has no slope in their mixture.",
        tests=(f"{UNIT}::test_impossible_entries",),
    ),
    Mutation(
        id="13.padding-distilled",
        file=DISTILL,
        old="return x.mean() if mask is None else masked_mean(x, mask)",
        new="return x.mean()",
        story="The student learns what the teacher thinks of padding and of "
        "the prompt.",
        tests=(JSD, f"{UNIT}::test_masked_places_do_not_count"),
    ),
    Mutation(
        id="13.teacher-trained",
        file=DISTILL,
        old="widen(teacher.detach())",
        new="widen(teacher)",
        story="Memory doubles, and with a shared trunk the teacher comes to "
        "meet its student.",
        tests=(f"{UNIT}::test_the_teacher_gets_no_gradient",),
    ),
    Mutation(
        id="13.soft-loss-one-place-off",
        file=DISTILL,
        old="        mask=shift(mask),\n",
        new="        mask=mask[:, :-1],\n",
        story="The soft term reads the logits of the prompt's last token but "
        "one: its mask was not shifted.",
        tests=(
            f"{UNIT}::test_the_mixed_loss_is_two_means_over_the_same_targets",
        ),
    ),
    Mutation(
        id="13.layers-from-the-front",
        file=DISTILL,
        old="(j + 1) * teacher_layers // student_layers - 1",
        new="j * teacher_layers // student_layers",
        story="The student starts without the teacher's last layer, the one "
        "that its head expects.",
        tests=(f"{UNIT}::test_layer_map",),
    ),
    Mutation(
        id="13.layers-keep-their-number",
        file=DISTILL,
        old='kept[f"{prefix}{number[int(index)]}.{rest}"] = value',
        new='kept[f"{prefix}{int(index)}.{rest}"] = value',
        story="The checkpoint of the small student has holes in it.",
        tests=(f"{UNIT}::test_a_student_from_its_teachers_layers",),
    ),
]
