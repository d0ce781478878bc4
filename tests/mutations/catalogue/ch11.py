"""Mistakes of chapter 11: data, scaling laws, parallel training."""

from tests.mutations import Mutation

DIST = (
    "tests/distributed/test_distributed.py::test_ranks_agree_with_one_process"
)

MUTATIONS = [
    Mutation(
        id="11.seeds-side-by-side",
        file="dsarch/train/data.py",
        old='    mixed = zlib.crc32(f"{seed} {index}".encode())\n',
        new="    mixed = (seed << 32) + index\n",
        story="Two runs with different seeds see exactly the same data: "
        "torch keeps only the low 32 bits.",
        tests=(
            "tests/test_train_data.py::test_a_batch_depends_on_its_number_alone",
        ),
    ),
    Mutation(
        id="11.temperature-upside-down",
        file="dsarch/train/data.py",
        old="n ** (1 / temperature)",
        new="n**temperature",
        story="A high temperature starves the small domains which it "
        "should have helped.",
        tests=("tests/test_train_data.py::test_mixture",),
    ),
    Mutation(
        id="11.fim-suffix-first",
        file="dsarch/train/data.py",
        old="    tokens = [bos, FIM_BEGIN, *text[:begin], FIM_HOLE, "
        "*text[end:], FIM_END]\n",
        new="    tokens = [bos, FIM_BEGIN, *text[end:], FIM_HOLE, "
        "*text[:begin], FIM_END]\n",
        story="Infilling puts the text after the cursor before it.",
        tests=(
            "tests/test_train_data.py::test_fim_keeps_the_text_and_counts_its_information",
        ),
    ),
    Mutation(
        id="11.bos-is-a-target",
        file="dsarch/train/data.py",
        old="    counted = (tokens != PAD) & (tokens != BOS)\n",
        new="    counted = tokens != PAD\n",
        story="The loss looks better than it is, because a certain token "
        "is counted with every document.",
        tests=(
            "tests/test_train_data.py::test_rows_are_whole_documents_from_the_start",
        ),
    ),
    Mutation(
        id="11.padding-is-a-target",
        file="dsarch/train/data.py",
        old="    counted = (tokens != PAD) & (tokens != BOS)\n",
        new="    counted = tokens != BOS\n",
        story="Short documents make the loss fall: the model learns to "
        "predict padding.",
        tests=("tests/test_train_data.py::test_padding_is_no_target",),
    ),
    Mutation(
        id="11.mask-across-documents",
        file="dsarch/train/data.py",
        old="    return causal & (document[:, :, None] == document[:, "
        "None, :])\n",
        new="    return causal.expand(len(document), size, size)\n",
        story="Packed fine-tuning examples answer questions with the "
        "text of their neighbours.",
        tests=(
            "tests/test_train_data.py::test_document_positions_and_mask",
            "tests/test_train_loop.py::test_isolated_documents_do_not_see_each_other",
        ),
    ),
    Mutation(
        id="11.positions-run-on",
        file="dsarch/train/data.py",
        old="    return place - torch.where(starts, place, "
        "0).cummax(1).values\n",
        new="    return place + 0 * starts\n",
        story="A document is understood differently depending on where "
        "in a row it was packed.",
        tests=("tests/test_train_data.py::test_document_positions_and_mask",),
    ),
    Mutation(
        id="11.surprise-of-the-option",
        file="dsarch/train/corpora.py",
        old="        surprise = [math.log(step) for step in steps]\n",
        new="        surprise = [0.0] * len(steps)\n"
        "        surprise[0] = -math.log(mass[text])\n",
        story="A well trained model beats the floor on some bytes and "
        "misses it on others.",
        tests=(
            "tests/test_train_data.py::test_surprise_is_the_information_of_every_byte",
        ),
    ),
    Mutation(
        id="11.carry-forgotten",
        file="dsarch/train/corpora.py",
        old="        carry = (x + y + carry) // 10\n",
        new="        carry = (x + y) // 10\n",
        story="Reasoning steps are wrong wherever a carry meets a nine, "
        "and models learn that.",
        tests=("tests/test_train_data.py::test_arithmetic_is_true",),
    ),
    Mutation(
        id="11.domain-not-told",
        file="dsarch/train/data.py",
        old="    doc.surprise[1] -= math.log(shares[pick])\n",
        new="    doc.surprise[1] += 0.0\n",
        story="The floor is too low: no model can know which domain "
        "comes next.",
        tests=(
            "tests/test_train_data.py::test_the_first_byte_also_tells_the_domain",
        ),
    ),
    Mutation(
        id="11.chinchilla-swapped",
        file="dsarch/train/scaling.py",
        old="        return self.beta / (self.alpha + self.beta)\n",
        new="        return self.alpha / (self.alpha + self.beta)\n",
        story="The plan gives parameters the exponent of the data.",
        tests=("tests/test_train_scaling.py::test_the_optimum_is_one",),
    ),
    Mutation(
        id="11.compute-without-six",
        file="dsarch/train/scaling.py",
        old="        return parameters, flops / 6 / parameters\n",
        new="        return parameters, flops / parameters\n",
        story="The plan asks for six times the tokens that the budget "
        "pays for.",
        tests=(
            "tests/test_train_scaling.py::test_chinchilla_at_gophers_compute",
        ),
    ),
    Mutation(
        id="11.squared-misses",
        file="dsarch/train/scaling.py",
        old='reduction="sum", delta=delta)',
        new='reduction="sum", delta=1.0)',
        story="One run that diverged bends the whole scaling law towards "
        "itself.",
        tests=(
            "tests/test_train_scaling.py::test_one_bad_run_does_not_bend_the_fit",
        ),
    ),
    Mutation(
        id="11.kaplan-flops-for-days",
        file="dsarch/train/scaling.py",
        old="    return (3.1e8 * PF_DAY / flops) ** 0.050\n",
        new="    return (3.1e8 / flops) ** 0.050\n",
        story="Losses come out near zero: the constant is in PF-days and "
        "the budget in FLOPs.",
        tests=("tests/test_train_scaling.py::test_kaplan",),
    ),
    Mutation(
        id="11.zero-shards-gradients-first",
        file="dsarch/train/memory.py",
        old="for first in (3, 2, 1)]",
        new="for first in (3, 1, 2)]",
        story="A plan says that ZeRO-1 fits, and the first step runs out "
        "of memory.",
        tests=("tests/test_train_memory.py::test_zero_paper_example",),
    ),
    Mutation(
        id="11.experts-multiply-devices",
        file="dsarch/train/memory.py",
        old="        return self.data * self.pipeline * self.tensor\n",
        new="        return self.data * self.pipeline * self.tensor * "
        "self.expert\n",
        story="The layout of V3 seems to need a hundred thousand GPUs.",
        tests=("tests/test_train_memory.py::test_v3_layout",),
    ),
    Mutation(
        id="11.all-reduce-once",
        file="dsarch/train/memory.py",
        old='    return 2 * once if kind == "all_reduce" else once\n',
        new="    return once\n",
        story="Communication is planned at half its time.",
        tests=("tests/test_train_memory.py::test_collectives",),
    ),
    Mutation(
        id="11.backward-before-forward",
        file="dsarch/train/timeline.py",
        old='    return [own] if stage == depth - 1 else [own, Op("B", '
        "stage + 1, micro)]\n",
        new="    return [own]\n",
        story="The drawn schedule has almost no bubble: stages run "
        "backwards before the gradient has arrived.",
        tests=(
            "tests/test_train_pipeline.py::test_everything_runs_once_and_in_order",
            "tests/test_train_pipeline.py::test_bubbles_equal_the_formula",
        ),
    ),
    Mutation(
        id="11.zero-bubble-without-delay",
        file="dsarch/train/pipeline.py",
        old='            if kind == "B" and m >= stage:\n'
        '                row.append((Op("W", stage, m - stage),))\n'
        "        late = range(max(0, micros - stage), micros)\n",
        new='            if kind == "B":\n'
        '                row.append((Op("W", stage, m),))\n'
        "        late = range(0)\n",
        story="Weight gradients run at once, so the next stage waits as "
        "in 1F1B although B is split.",
        tests=("tests/test_train_pipeline.py::test_bubbles_equal_the_formula",),
    ),
    Mutation(
        id="11.dualpipe-no-early-forwards",
        file="dsarch/train/pipeline.py",
        old='    steps = 2 * inner * ["F0"] + (near + 1) * ["F0", "F1"]\n',
        new='    steps = inner * ["F0"] + (near + 1) * ["F0", "F1"]\n',
        story="The schedule stops with every device waiting for another one.",
        tests=(
            "tests/test_train_pipeline.py::test_dualpipe_equals_its_formula",
        ),
    ),
    Mutation(
        id="11.interleaved-one-chunk-order",
        file="dsarch/train/pipeline.py",
        old='        chunk = chunk if kind == "F" else chunks - 1 - chunk\n',
        new="        chunk = chunk + 0\n",
        story="The backward pass starts with the first chunk and the "
        "pipeline stops.",
        tests=(
            "tests/test_train_pipeline.py::test_interleaving_divides_the_bubble",
        ),
    ),
    Mutation(
        id="11.ranks-average-too-much",
        file="dsarch/train/loop.py",
        old="(trainer.ranks.size / tokens)",
        new="(1 / tokens)",
        story="The same settings learn more slowly the more processes "
        "share the work.",
        tests=(DIST,),
    ),
    Mutation(
        id="11.row-parallel-forgets-sum",
        file="dsarch/train/parallel.py",
        old="        x = x.clone()\n"
        "        dist.all_reduce(x, group=group)\n"
        "        return x\n",
        new="        return x.clone()\n",
        story="Each rank goes on with its own heads alone, and the "
        "logits differ from rank to rank.",
        tests=(DIST,),
    ),
    Mutation(
        id="11.repeated-weights-not-summed",
        file="dsarch/train/parallel.py",
        old="                weight.register_hook(lambda g: "
        "_Leave.apply(g, group))\n",
        new="                pass\n",
        story="Latent projections see the gradient of a part of the "
        "heads and drift apart between ranks.",
        tests=(DIST,),
    ),
    Mutation(
        id="11.ring-sums-softmaxes",
        file="dsarch/train/parallel.py",
        old="        shrink, p = (before - most).exp(), (score - "
        "most[..., None]).exp()\n"
        "        total = total * shrink + p.sum(-1)\n",
        new="        shrink, p = torch.ones_like(most), "
        "score.softmax(-1).nan_to_num()\n"
        "        total = total * shrink + p.sum(-1)\n",
        story="Attention over a split sequence averages the blocks "
        "instead of weighing them.",
        tests=(DIST,),
    ),
    Mutation(
        id="11.experts-idle-without-gradient",
        file="dsarch/train/distributed.py",
        old="        return y + torch.stack(unused).sum()\n",
        new="        return y\n",
        story="Training in parallel hangs or fails as soon as one rank "
        "has no token for an expert.",
        tests=(DIST,),
    ),
    Mutation(
        id="11.answers-to-the-wrong-tokens",
        file="dsarch/train/parallel.py",
        old="    answers = _Exchange.apply(answers, received, sent, group)\n"
        "    weight = routing.weights.flatten().index_select(0, order)\n",
        new="    answers = _Exchange.apply(answers, received, sent, group)\n"
        "    weight = routing.weights.flatten()\n",
        story="Each token gets its experts' answers with the weights of "
        "another one.",
        tests=(DIST,),
    ),
    Mutation(
        id="11.replicas-do-not-share",
        file="dsarch/analysis/eplb.py",
        old="key=lambda i: loads[i] / counts[i])",
        new="key=lambda i: loads[i])",
        story="All spare slots go to the one busiest expert.",
        tests=("tests/test_eplb.py::test_a_replica_goes_where_it_helps_most",),
    ),
    Mutation(
        id="11.packs-without-limit",
        file="dsarch/analysis/eplb.py",
        old="open_ = [p for p in range(packs) if len(packed[p]) * packs < "
        "len(loads)]",
        new="open_ = list(range(packs))",
        story="A device gets more experts than it has slots for.",
        tests=("tests/test_eplb.py::test_packs_are_equally_full",),
    ),
    Mutation(
        id="11.experts-leave-their-node",
        file="dsarch/analysis/eplb.py",
        old="    if groups % nodes:\n        groups = nodes = 1\n",
        new="    groups = nodes = 1\n",
        story="Loads look even, and tokens cross the network that groups "
        "were meant to keep inside a node.",
        tests=("tests/test_eplb.py::test_the_published_placement",),
    ),
    Mutation(
        id="11.dualpipe-formula-of-all-stages",
        file="dsarch/train/pipeline.py",
        old="        return (stages / 2 - 1) * (pair + b - 3 * w)\n",
        new="        return (stages - 1) * (pair + b - 3 * w)\n",
        story="DualPipe looks worse than the schedule that it replaced.",
        tests=("tests/test_train_pipeline.py::test_v3_table_2",),
    ),
    Mutation(
        id="11.gather-counts-itself",
        file="dsarch/train/memory.py",
        old="    once = (ranks - 1) * (latency + size / ranks / bandwidth)\n",
        new="    once = ranks * (latency + size / ranks / bandwidth)\n",
        story="Two ranks seem to need twice the time that they take.",
        tests=(
            "tests/test_train_memory.py::test_a_ring_sends_what_the_formula_says",
        ),
    ),
]
