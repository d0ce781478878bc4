"""Mistakes of chapter 7: the extra layer, its loss, drafts and verification."""

from tests.mutations import Mutation

PARITY = "tests/parity/test_model.py::test_mtp_layer_equals_transformers"
LOSS = "tests/test_mtp.py::test_the_loss_is_what_the_report_says"
DIVISOR = (
    "tests/test_mtp.py::"
    "test_the_loss_counts_all_positions_though_depths_see_fewer"
)
SHARED = "tests/test_mtp.py::test_embedding_and_head_are_the_models_own"
MAIN_TOO = "tests/test_mtp.py::test_the_loss_trains_the_main_model_too"
CACHED = "tests/test_mtp.py::test_cached_equals_full_at_every_split"
GREEDY = "tests/test_generate.py::test_speculation_does_not_change_greedy_text"
PASSES = (
    "tests/test_generate.py::"
    "test_it_takes_fewer_passes_and_both_refuses_and_accepts"
)
HISTORY = (
    "tests/test_generate.py::"
    "test_drafts_do_not_depend_on_how_the_text_came_about"
)
SAMPLED = (
    "tests/test_generate.py::"
    "test_sampled_text_has_the_distribution_of_the_model"
)
EXPECTED = (
    "tests/test_generate.py::"
    "test_acceptance_is_the_overlap_and_gives_the_expected_tokens"
)
PERFECT = (
    "tests/test_generate.py::"
    "test_a_model_that_drafts_perfectly_has_all_drafts_accepted"
)
NUCLEUS = (
    "tests/test_generate.py::"
    "test_the_nucleus_is_the_fewest_tokens_that_reach_its_size"
)

MUTATIONS = [
    Mutation(
        id="07.state-first",
        file="dsarch/mtp.py",
        old="torch.cat([embedding, self.hnorm(hidden)], -1)",
        new="torch.cat([self.hnorm(hidden), embedding], -1)",
        story="Written from the report, which prints the state first: "
        "training works, released weights draft nonsense.",
        tests=(PARITY, LOSS),
    ),
    Mutation(
        id="07.norm-of-the-model",
        file="dsarch/mtp.py",
        old="return self.shared_head.norm(super().forward(x, phase, mask, cache))",
        new="return super().forward(x, phase, mask, cache)",
        story="The layer's own final norm is left out, as if the shared head "
        "brought one: acceptance drops, and only with released weights.",
        tests=(PARITY,),
    ),
    Mutation(
        id="07.norms-exchanged",
        file="dsarch/mtp.py",
        old="embedding = self.enorm(self.embed_tokens(tokens))\n"
        "        return self.eh_proj("
        "torch.cat([embedding, self.hnorm(hidden)], -1))",
        new="embedding = self.hnorm(self.embed_tokens(tokens))\n"
        "        return self.eh_proj("
        "torch.cat([embedding, self.enorm(hidden)], -1))",
        story="The h of hnorm was not read as hidden: fine when trained so, "
        "wrong with a checkpoint.",
        tests=(PARITY,),
    ),
    Mutation(
        id="07.state-not-normed",
        file="dsarch/mtp.py",
        old="self.hnorm(hidden)], -1",
        new="hidden], -1",
        story="The state looks normed already, so its second norm was left "
        "out; its learnt weights are lost.",
        tests=(PARITY,),
    ),
    Mutation(
        id="07.sees-its-own-token",
        file="dsarch/mtp.py",
        old="known, target = tokens[:, depth:-1], tokens[:, depth + 1 :]",
        new="known, target = tokens[:, depth - 1 : -2], tokens[:, depth + 1 :]",
        story="The embedding is that of the token the state has read anyway: "
        "the loss is higher and drafting has nothing to gain.",
        tests=(LOSS,),
    ),
    Mutation(
        id="07.predicts-what-it-is-told",
        file="dsarch/mtp.py",
        old="known, target = tokens[:, depth:-1], tokens[:, depth + 1 :]",
        new="known, target = tokens[:, depth:-1], tokens[:, depth:-1]",
        story="The loss falls to zero in a minute: the target is the token "
        "whose embedding goes in.",
        tests=(LOSS,),
    ),
    Mutation(
        id="07.mean-over-fewer",
        file="dsarch/mtp.py",
        old="losses.append(total / (sequences * count))",
        new="losses.append(total / target.numel())",
        story="Each depth is averaged over its own terms; the report divides "
        "by the whole length, so deeper layers weigh less.",
        tests=(DIVISOR, LOSS),
    ),
    Mutation(
        id="07.state-cut-off",
        file="dsarch/mtp.py",
        old="advance(module, hidden[:, : count - depth], known)",
        new="advance(module, hidden[:, : count - depth].detach(), known)",
        story="The extra loss trains the extra layer only, and the promised "
        "gain of the main model never comes.",
        tests=(MAIN_TOO,),
    ),
    Mutation(
        id="07.chain-broken",
        file="dsarch/mtp.py",
        old="        hidden = advance(module, hidden[:, : count - depth], known)\n"
        "        total = nll(module.shared_head.head(hidden), target).sum()",
        new="        ahead = advance(module, hidden[:, : count - depth], known)\n"
        "        total = nll(module.shared_head.head(ahead), target).sum()",
        story="Every depth starts from the main model's state instead of the "
        "depth before it: with one depth nothing is wrong.",
        tests=(LOSS,),
    ),
    Mutation(
        id="07.positions-start-over",
        file="dsarch/mtp.py",
        old="start, count = length(cache), tokens.size(1)\n"
        "    position = positions(len(tokens), start, count, tokens.device)",
        new="start, count = length(cache), tokens.size(1)\n"
        "    position = positions(len(tokens), 0, count, tokens.device)",
        story="The first draft of a text is good, all later ones stand at "
        "position zero: acceptance fades, no text is wrong.",
        tests=(CACHED,),
    ),
    Mutation(
        id="07.embedding-of-its-own",
        file="dsarch/mtp.py",
        old="self.embed_tokens = embed_tokens\n",
        new="self.embed_tokens = nn.Embedding(cfg.vocab_size, dim)\n",
        story="Two embeddings drift apart in training and the model grows by "
        "a vocabulary.",
        tests=(SHARED,),
    ),
    Mutation(
        id="07.memory-keeps-guesses",
        file="dsarch/generate.py",
        old="    memory.crop(true)\n",
        new="",
        story="The drafting cache keeps states that were guessed, at places "
        "that come again: drafts are refused more and more often.",
        tests=(HISTORY,),
    ),
    Mutation(
        id="07.refused-stays-cached",
        file="dsarch/generate.py",
        old="cache.crop(len(cache) - 1 - drafts + new.size(1))",
        new="cache.crop(len(cache) - 1)",
        story="A refused draft stays in the model's memory: the text changes "
        "after the first refusal.",
        tests=(GREEDY,),
    ),
    Mutation(
        id="07.cropped-too-far",
        file="dsarch/generate.py",
        old="cache.crop(len(cache) - 1 - drafts + new.size(1))",
        new="cache.crop(len(cache) - 2 - drafts + new.size(1))",
        story="One token too many is forgotten with every draft: the text "
        "slowly goes astray.",
        tests=(GREEDY,),
    ),
    Mutation(
        id="07.hidden-not-cut",
        file="dsarch/generate.py",
        old="        hidden = hidden[:, : new.size(1)]\n",
        new="        hidden = hidden[:, -new.size(1) :]\n",
        story="The states kept are the last instead of the accepted ones: "
        "text is right, acceptance poor.",
        tests=(PASSES, PERFECT),
    ),
    Mutation(
        id="07.resampled-from-the-model",
        file="dsarch/sampling.py",
        old="return left.where(left.sum(-1, keepdim=True) > 0, p)",
        new="return p",
        story="After a refusal the token is drawn from the model's own "
        "distribution, which gives too much to what was just refused.",
        tests=(SAMPLED,),
    ),
    Mutation(
        id="07.threshold",
        file="dsarch/sampling.py",
        old="kept = (u < ratio).cumprod(1).bool()",
        new="kept = (ratio >= 0.7).cumprod(1).bool()",
        story="Drafts are kept when they are likely enough: faster, and "
        "another distribution.",
        tests=(SAMPLED,),
    ),
    Mutation(
        id="07.ratio-upside-down",
        file="dsarch/sampling.py",
        old="ratio = likelihood(p[:, :count], drafts) / likelihood(q, drafts)",
        new="ratio = likelihood(q, drafts) / likelihood(p[:, :count], drafts)",
        story="What the draft over-rates is kept and what it under-rates "
        "refused: greedy text still agrees.",
        tests=(SAMPLED,),
    ),
    Mutation(
        id="07.accepts-behind-a-refusal",
        file="dsarch/sampling.py",
        old="kept = (u < ratio).cumprod(1).bool()",
        new="kept = u < ratio",
        story="A draft behind a refused one is counted, though its prefix is "
        "gone.",
        tests=(SAMPLED, GREEDY),
    ),
    Mutation(
        id="07.no-bonus",
        file="dsarch/sampling.py",
        old="return torch.cat([drafts, sampling.draw(p[:, count:])], 1)",
        new="return drafts",
        story="When every draft holds, the token that the last row of logits "
        "would give for nothing is thrown away.",
        tests=(EXPECTED, PERFECT),
    ),
    Mutation(
        id="07.batch-waits-for-nobody",
        file="dsarch/sampling.py",
        old="last = drafts[:, here].where(kept[:, here], again)",
        new="last = again",
        story="A sequence whose draft held is drawn again because another "
        "one's did not: wrong in batches only.",
        tests=(SAMPLED,),
    ),
    Mutation(
        id="07.nucleus-without-its-edge",
        file="dsarch/sampling.py",
        old="before = ranked.cumsum(-1) - ranked",
        new="before = ranked.cumsum(-1)",
        story="The token that crosses the nucleus is cut off; a sure token "
        "alone leaves nothing to draw from.",
        tests=(NUCLEUS,),
    ),
]
