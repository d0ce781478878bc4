"""Mistakes of chapter 10: optimizers, schedules, states, the loop."""

from tests.mutations import Mutation

ADAM = "tests/parity/test_train_optim.py::test_adamw_is_torchs"
GOLDEN = "tests/parity/test_train_optim.py::test_adamw_golden"
MUON = "tests/parity/test_train_optim.py::test_muon_is_torchs"
CLIP = "tests/parity/test_train_optim.py::test_clipping_is_torchs"

MUTATIONS = [
    Mutation(
        id="10.adam-eps-inside-root",
        file="dsarch/train/optim.py",
        old="    root = v.sqrt() / math.sqrt(1 - beta2**step)\n",
        new="    root = (v + now.eps).sqrt() / math.sqrt(1 - beta2**step)\n",
        story="Training looks normal, but small gradients move weights "
        "far less than the same settings do elsewhere.",
        tests=(
            ADAM,
            GOLDEN,
        ),
    ),
    Mutation(
        id="10.adam-no-bias-correction",
        file="dsarch/train/optim.py",
        old="    rate = now.lr / (1 - beta1**step)\n",
        new="    rate = now.lr\n",
        story="The first updates are ten times too small and the warm-up "
        "seems to last longer than it should.",
        tests=(ADAM,),
    ),
    Mutation(
        id="10.adam-decay-unscheduled",
        file="dsarch/train/optim.py",
        old="    weight.mul_(1 - now.lr * now.weight_decay)\n",
        new="    weight.mul_(1 - 1e-3 * now.weight_decay)\n",
        story="Weights shrink by the same share in warm-up and at the "
        "end, whatever the learning rate is.",
        tests=(ADAM,),
    ),
    Mutation(
        id="10.adam-decay-last",
        file="dsarch/train/optim.py",
        old="    torch._foreach_addcdiv_(weights, ms, roots, rates)\n",
        new="    torch._foreach_addcdiv_(weights, ms, roots, rates)\n"
        "    torch._foreach_mul_(weights, 1 / (1 - now.lr * "
        "now.weight_decay))\n"
        "    torch._foreach_mul_(weights, 1 - now.lr * "
        "now.weight_decay)\n"
        "    torch._foreach_addcdiv_(weights, ms, roots, [r * now.lr "
        "* now.weight_decay for r in rates])\n",
        story="Runs drift apart from the reference by a few parts in a "
        "thousand per step.",
        tests=(ADAM,),
    ),
    Mutation(
        id="10.adam-l2",
        file="dsarch/train/optim.py",
        old="    m.lerp_(gradient, 1 - beta1)\n",
        new="    gradient = gradient + now.weight_decay * weight\n"
        "    m.lerp_(gradient, 1 - beta1)\n",
        story="Decay works only where gradients are small: large weights "
        "with large gradients are hardly decayed.",
        tests=(ADAM,),
    ),
    Mutation(
        id="10.moments-widened-on-load",
        file="dsarch/train/optim.py",
        old="                state[name] = "
        'state[name].to(group["state_dtype"])\n',
        new="                state[name] = state[name].to(torch.float32)\n",
        story="A run with bf16 moments needs twice the memory after it "
        "is resumed, and goes another way.",
        tests=(
            "tests/test_train_optim.py::test_bf16_moments_survive_a_reload",
        ),
    ),
    Mutation(
        id="10.muon-heavy-ball",
        file="dsarch/train/muon.py",
        old="    torch._foreach_lerp_(buffers, gradients, 1 - momentum)\n",
        new="    torch._foreach_mul_(buffers, momentum)\n"
        "    torch._foreach_add_(buffers, gradients)\n",
        story="With Nesterov the newest gradient counts too little, as "
        "the formula in the docstring of a library suggests.",
        tests=(MUON,),
    ),
    Mutation(
        id="10.muon-scale-by-columns",
        file="dsarch/train/muon.py",
        old="        return 0.2 * math.sqrt(max(rows, columns))\n",
        new="        return 0.2 * math.sqrt(columns)\n",
        story="Tall matrices learn at a fraction of the rate of wide ones.",
        tests=(
            MUON,
            "tests/test_train_optim.py::test_moonlight_scale_gives_adamws_rms",
        ),
    ),
    Mutation(
        id="10.muon-on-embeddings",
        file="dsarch/train/muon.py",
        old='        outer = "embed" in name or "head" in name\n',
        new='        outer = "embed" in name\n',
        story="The output head gets orthogonal updates, and rare tokens "
        "move as much as frequent ones.",
        tests=(
            "tests/test_train_optim.py::test_muon_gets_the_hidden_matrices",
        ),
    ),
    Mutation(
        id="10.norms-decay",
        file="dsarch/train/optim.py",
        old='        {"params": [w for w in weights if w.ndim < 2], '
        '"weight_decay": 0.0},\n',
        new='        {"params": [w for w in weights if w.ndim < 2], '
        '"weight_decay": weight_decay},\n',
        story="The gains of the norms are pulled towards zero and "
        "activations shrink layer by layer.",
        tests=("tests/test_train_optim.py::test_vectors_do_not_decay",),
    ),
    Mutation(
        id="10.clip-per-tensor",
        file="dsarch/train/optim.py",
        old="    norm = torch.linalg.vector_norm(norms, norm_type)\n",
        new="    norm = norms.max()\n",
        story="The reported norm is too small, and steps after a spike "
        "are still too large.",
        tests=(CLIP,),
    ),
    Mutation(
        id="10.clip-scales-up",
        file="dsarch/train/optim.py",
        old="    torch._foreach_mul_(grads, (max_norm / (norm + "
        "1e-6)).clamp(max=1.0))\n",
        new="    torch._foreach_mul_(grads, max_norm / (norm + 1e-6))\n",
        story="Late in training small gradients are blown up to the "
        "limit and the loss stops falling.",
        tests=(CLIP,),
    ),
    Mutation(
        id="10.clip-returns-clipped",
        file="dsarch/train/optim.py",
        old="    torch._foreach_mul_(grads, (max_norm / (norm + "
        "1e-6)).clamp(max=1.0))\n"
        "    return norm\n",
        new="    torch._foreach_mul_(grads, (max_norm / (norm + "
        "1e-6)).clamp(max=1.0))\n"
        "    return norm.clamp(max=max_norm)\n",
        story="The log shows a calm norm of one although every step is "
        "clipped.",
        tests=(CLIP,),
    ),
    Mutation(
        id="10.cosine-rises-again",
        file="dsarch/train/schedule.py",
        old="    p = min(1.0, max(0.0, progress))\n",
        new="    p = max(0.0, progress)\n",
        story="A run that is continued past its end has its learning "
        "rate grow again.",
        tests=(
            "tests/parity/test_train_schedule.py::test_cosine_is_transformers",
            "tests/test_train_schedule.py::test_every_decay_falls_from_one_to_the_floor",
        ),
    ),
    Mutation(
        id="10.wsd-decays-from-warmup",
        file="dsarch/train/schedule.py",
        old="    start = total - decay_steps\n",
        new="    start = warmup_steps\n",
        story="The stable phase is missing: the loss is better at first "
        "and worse at the end.",
        tests=(
            "tests/parity/test_train_schedule.py::test_wsd_is_transformers",
        ),
    ),
    Mutation(
        id="10.multi-step-compounds",
        file="dsarch/train/schedule.py",
        old="        share = factor if step >= milestone * total else share\n",
        new="        share = share * factor if step >= milestone * total "
        "else share\n",
        story="The last tenth of the run learns nothing: its rate is 3 % "
        "of the peak and not 10 %.",
        tests=(
            "tests/test_train_schedule.py::test_multi_step_uses_shares_of_the_peak",
        ),
    ),
    Mutation(
        id="10.v3-tokens-constant-batch",
        file="dsarch/train/schedule.py",
        old="    if step < ramp_steps:\n"
        "        return ramp * b0 / (b1 - b0) * math.expm1(rate * step)\n"
        "    return ramp + (step - ramp_steps) * length * b1\n",
        new="    return step * length * b1\n",
        story="The schedule of V3 runs ahead of its tokens, because the "
        "batch is still growing.",
        tests=(
            "tests/test_train_schedule.py::test_v3_tokens_are_the_sum_of_the_batches",
        ),
    ),
    Mutation(
        id="10.mean-of-means",
        file="dsarch/train/loop.py",
        old="    (total * (trainer.ranks.size / tokens)).backward()\n",
        new="    own = batch.counted[:, 1:].sum()\n"
        "    (total / own / plan.accumulation).backward()\n",
        story="Training works, but tokens in sparse micro-batches weigh "
        "several times as much as the others.",
        tests=(
            "tests/test_train_loop.py::test_accumulation_weighs_every_token_the_same",
        ),
    ),
    Mutation(
        id="10.bias-per-micro-batch",
        file="dsarch/train/loop.py",
        old="            counts[router] = counts.get(router, 0) + new\n",
        new="            counts[router] = new\n",
        story="With accumulation the biases follow the last micro-batch "
        "alone and the load never settles.",
        tests=(
            "tests/test_train_loop.py::test_biases_move_once_per_step_by_the_whole_load",
        ),
    ),
    Mutation(
        id="10.recompute-counts-twice",
        file="dsarch/train/loss.py",
        old="    finally:\n"
        "        for handle in handles:\n"
        "            handle.remove()\n",
        new="    finally:\n        pass\n",
        story="With activation checkpointing the loads double, and hooks "
        "pile up until the run is slow.",
        tests=(
            "tests/test_train_loop.py::test_every_router_is_seen_once",
            "tests/test_train_loop.py::test_recomputed_layers_give_the_same_bits",
        ),
    ),
    Mutation(
        id="10.resume-forgets-moments",
        file="dsarch/train/loop.py",
        old="        optimizer.load_state_dict(saved)\n",
        new="        pass\n",
        story="After every restart the loss jumps and takes dozens of "
        "steps to return.",
        tests=("tests/test_train_loop.py::test_a_resumed_run_is_the_same_run",),
    ),
    Mutation(
        id="10.resume-repeats-data",
        file="dsarch/train/loop.py",
        old='    trainer.step, trainer.position = found["step"], '
        'found["position"]\n',
        new='    trainer.step = found["step"]\n',
        story="A run that is restarted often sees the beginning of its "
        "data again and again.",
        tests=("tests/test_train_loop.py::test_a_resumed_run_is_the_same_run",),
    ),
    Mutation(
        id="10.resume-forgets-generators",
        file="dsarch/train/loop.py",
        old='    state.set_random_state(found["random"])\n',
        new="    pass\n",
        story="Runs with dropout are not repeatable once they have been "
        "interrupted.",
        tests=("tests/test_train_kill.py::test_thirty_kills_change_no_bit",),
    ),
    Mutation(
        id="10.save-onto-the-name",
        file="dsarch/train/state.py",
        old="        os.replace(partial, path)\n",
        new="        path.write_bytes(partial.read_bytes())\n"
        "        partial.unlink()\n",
        story="A run killed while saving leaves a half state that looks "
        "like the newest.",
        tests=("tests/test_train_state.py::test_order_of_a_save",),
    ),
    Mutation(
        id="10.rename-before-sync",
        file="dsarch/train/state.py",
        old="        file.flush()\n        os.fsync(file.fileno())\n",
        new="        file.flush()\n",
        story="After a power failure the newest state is a file of zeros.",
        tests=("tests/test_train_state.py::test_order_of_a_save",),
    ),
    Mutation(
        id="10.hash-unchecked",
        file="dsarch/train/state.py",
        old="    if found != expected:\n",
        new="    if not found:\n",
        story="One flipped bit on the disk makes a resumed run end with "
        "other weights, and nobody knows why.",
        tests=(
            "tests/test_train_state.py::test_every_changed_byte_is_noticed",
        ),
    ),
    Mutation(
        id="10.nan-goes-on",
        file="dsarch/train/monitor.py",
        old="    if not torch.isfinite(value):\n",
        new="    if torch.isinf(value):\n",
        story="The loss shows nan for hours, and the last good state has "
        "been rotated away.",
        tests=("tests/test_train_loop.py::test_a_bad_weight_is_named",),
    ),
]
