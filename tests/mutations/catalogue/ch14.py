"""Mistakes of chapter 14: the indexer, sparse attention, the whole model."""

from tests.mutations import Mutation

LOGITS = "tests/parity/test_model.py::test_logits_equal_transformers"
MTP = "tests/parity/test_model.py::test_mtp_layer_equals_transformers"
SCORES = "tests/test_dsa.py::test_scores_are_what_the_definition_says"
PREFERS = "tests/test_dsa.py::test_the_selection_prefers_what_a_query_may_see"
SPLITS = "tests/test_dsa.py::test_cached_equals_full_at_every_split"
GATHERED = "tests/test_dsa.py::test_gathered_equals_masked_with_gradients"
WORK = "tests/test_dsa.py::test_the_gathered_work_does_not_grow_with_the_text"
SYLVESTER = (
    "tests/test_dsa.py::"
    "test_hadamard_is_orthonormal_symmetric_and_in_sylvesters_order"
)
ALIKE = "tests/test_dsa.py::test_a_transform_reaches_queries_and_keys_alike"
LOSS = "tests/test_indexing.py::test_the_loss_is_what_the_definition_says"
STAYS = "tests/test_indexing.py::test_its_gradient_stays_in_the_indexer"
WARM_UP = (
    "tests/test_indexing.py::"
    "test_warm_up_trains_indexers_alone_and_brings_them_closer"
)
CACHED = "tests/test_model.py::test_cached_equals_full_at_every_split"
RELEASED = "tests/test_model.py::test_names_and_shapes_of_the_released_folders"
BACK = "tests/test_checkpoint.py::test_what_is_saved_comes_back"
FP8 = "tests/test_checkpoint.py::test_block_fp8_is_multiplied_out"
BAD_FP8 = "tests/test_checkpoint.py::test_bad_fp8_is_refused"
WRONG = "tests/test_checkpoint.py::test_a_wrong_tensor_is_named"
FULL = (
    "tests/test_checkpoint.py::"
    "test_a_failure_late_in_saving_leaves_nothing_behind"
)
HANGS = (
    "tests/test_checkpoint.py::test_the_loaded_model_does_not_hang_on_the_files"
)
BIASES = (
    "tests/test_checkpoint.py::"
    "test_dtype_and_device_are_chosen_and_biases_stay_wide"
)
COPIES = (
    "tests/test_checkpoint.py::"
    "test_copies_of_shared_tensors_may_be_absent_but_not_different"
)
INSIDE = "tests/test_checkpoint.py::test_an_index_stays_inside_its_folder"
HOSTILE = "tests/test_checkpoint.py::test_a_hostile_header_is_refused"
CUT_OFF = "tests/test_checkpoint.py::test_a_cut_off_file_is_refused"
MORE_KEYS = (
    "tests/test_sparse_cost.py::test_one_more_key_costs_what_the_formula_says"
)
PROMPTS = "tests/test_sparse_cost.py::test_a_prompt_is_the_sum_of_its_tokens"

MUTATIONS = [
    Mutation(
        id="14.indexer-interleaved",
        file="dsarch/dsa.py",
        old="rope = rotate(rope, phase, interleaved=False)",
        new="rope = rotate(rope, phase)",
        story="The error of the first public demo: the indexer rotates like "
        "the attention it serves, and long texts pick the wrong keys.",
        tests=(LOGITS,),
    ),
    Mutation(
        id="14.rotary-part-last",
        file="dsarch/dsa.py",
        old="rope, rest = x.split(self.widths, -1)\n"
        "        rope = rotate(rope, phase, interleaved=False)\n"
        "        return self.transform(torch.cat([rope, rest], -1))",
        new="rest, rope = x.split(self.widths[::-1], -1)\n"
        "        rope = rotate(rope, phase, interleaved=False)\n"
        "        return self.transform(torch.cat([rest, rope], -1))",
        story="The rotary part was put last, as everywhere else in the model.",
        tests=(LOGITS,),
    ),
    Mutation(
        id="14.key-not-normed",
        file="dsarch/dsa.py",
        old="return self.turn(self.k_norm(self.wk(x)), phase)",
        new="return self.turn(self.wk(x), phase)",
        story="A stretch of loud tokens is chosen by every query: the index "
        "key lost its LayerNorm.",
        tests=(LOGITS,),
    ),
    Mutation(
        id="14.rms-norm-for-the-key",
        file="dsarch/dsa.py",
        old="self.k_norm = nn.LayerNorm(width, INDEX_EPS)",
        new="self.k_norm = nn.RMSNorm(width, INDEX_EPS)",
        story="The only LayerNorm of the model was made like all other "
        "norms; its bias has no place to go.",
        tests=(RELEASED, LOGITS),
    ),
    Mutation(
        id="14.relu-after-the-sum",
        file="dsarch/dsa.py",
        old='score = einsum("btim,bsm->bits", widen(q), widen(k)).relu()\n'
        '    return einsum("bits,bti->bts", score, widen(w))',
        new='score = einsum("btim,bsm->bits", widen(q), widen(k))\n'
        '    return einsum("bits,bti->bts", score, widen(w)).relu()',
        story="Heads cancel before the ReLU and half of all keys tie at zero.",
        tests=(SCORES, LOGITS),
    ),
    Mutation(
        id="14.softmaxed-head-weights",
        file="dsarch/dsa.py",
        old='return einsum("bits,bti->bts", score, widen(w))',
        new='return einsum("bits,bti->bts", score, widen(w).softmax(-1))',
        story="Head weights were taken for attention weights; a head can no "
        "longer vote against a key.",
        tests=(SCORES, LOGITS),
    ),
    Mutation(
        id="14.mask-after-top-k",
        file="dsarch/dsa.py",
        old="visible = score.masked_fill(~mask, -math.inf)",
        new="visible = score",
        story="Early tokens of a prompt read hardly anything: their choices "
        "lie in the future and are masked afterwards.",
        tests=(PREFERS, LOGITS),
    ),
    Mutation(
        id="14.mask-not-applied-again",
        file="dsarch/dsa.py",
        old="return torch.zeros_like(mask).scatter(-1, index, True) & mask",
        new="return torch.zeros_like(mask).scatter(-1, index, True)",
        story="Queries with fewer keys than they choose read the future.",
        tests=(PREFERS, LOGITS),
    ),
    Mutation(
        id="14.gathered-without-a-mask",
        file="dsarch/dsa.py",
        old="p = masked_softmax(score, mask.gather(-1, index))",
        new="p = score.softmax(-1)",
        story="The gathered form trusts its indices: a short text verified "
        "in one pass with its drafts sees ahead.",
        tests=(GATHERED,),
    ),
    Mutation(
        id="14.queries-from-the-input",
        file="dsarch/mla.py",
        old="latent = self.q_a_layernorm(self.q_a_proj(x))",
        new="latent = self.q_a_proj(x)",
        story="The query latent reaches the indexer without its norm.",
        tests=(LOGITS,),
    ),
    Mutation(
        id="14.old-keys-forgotten",
        file="dsarch/dsa.py",
        old="c, k_rope, k = cache.extend(latent=c, k_rope=k_rope, k_index=k)",
        new="c, k_rope, _ = cache.extend(latent=c, k_rope=k_rope, k_index=k)\n"
        "            k = torch.nn.functional.pad(\n"
        "                k, (0, 0, c.size(1) - k.size(1), 0)\n"
        "            )",
        story="The index keys of the past are lost, and a long chat reads "
        "only what was said last.",
        tests=(SPLITS,),
    ),
    Mutation(
        id="14.dense-after-all",
        file="dsarch/dsa.py",
        old="return index[0].numel() <= keys",
        new="return False",
        story="Every key is scored and most are then masked: right answers, "
        "and none of the promised speed.",
        tests=(WORK,),
    ),
    Mutation(
        id="14.one-key-too-few",
        file="dsarch/dsa.py",
        old="if mask.size(-1) <= self.topk:",
        new="if mask.size(-1) <= self.topk + 1:",
        story="At one length, the first beyond the budget, nothing is "
        "selected.",
        tests=(
            "tests/test_dsa.py::test_one_key_more_or_less_matters",
            SPLITS,
        ),
    ),
    Mutation(
        id="14.hadamard-not-normalised",
        file="dsarch/dsa.py",
        old="return matrix * width**-0.5",
        new="return matrix",
        story="Scores grow by the width of the index heads; choices stay and "
        "the loss of the indexer explodes.",
        tests=(SYLVESTER,),
    ),
    Mutation(
        id="14.queries-not-transformed",
        file="dsarch/dsa.py",
        old="return index_scores(self.turn(q, phase), k, w)",
        new="kept, self.transform = self.transform, unchanged\n"
        "        q, self.transform = self.turn(q, phase), kept\n"
        "        return index_scores(q, k, w)",
        story="Only the cached keys were spread: products of queries and "
        "keys mean nothing any more.",
        tests=(ALIKE,),
    ),
    Mutation(
        id="14.trunk-not-detached",
        file="dsarch/indexing.py",
        old="    x, latent = x.detach(), latent.detach()\n",
        new="    latent = layer.queries(x, phase)[2]\n",
        story="The indexer bends the model to what is easy to index; the "
        "language loss creeps up.",
        tests=(STAYS,),
    ),
    Mutation(
        id="14.softmax-of-summed-logits",
        file="dsarch/indexing.py",
        old="return masked_softmax(score * scale, mask).mean(1)",
        new="return masked_softmax((score * scale).mean(1), mask)",
        story="The target is one softmax of averaged logits, which no head "
        "ever computed.",
        tests=(LOSS,),
    ),
    Mutation(
        id="14.divergence-backwards",
        file="dsarch/indexing.py",
        old='return F.kl_div(log_q, p.type_as(log_q), reduction="none").sum(-1)',
        new="return (log_q.exp() * (log_q - (p + 1e-9).log())).sum(-1)",
        story="The indexer finds one key that attention likes and ignores "
        "the others.",
        tests=(LOSS,),
    ),
    Mutation(
        id="14.loss-over-all-keys",
        file="dsarch/indexing.py",
        old="seen = mask if index is None else chosen(index, mask)",
        new="seen = mask",
        story="The sparse stage pulls the indexer towards keys that the "
        "model did not read.",
        tests=(LOSS,),
    ),
    Mutation(
        id="14.warm-up-trains-everything",
        file="dsarch/indexing.py",
        old="weight.requires_grad_(id(weight) in trained)",
        new="weight.requires_grad_(True)",
        story="The trunk is trained with the learning rate of the warm-up, "
        "a hundred times too high.",
        tests=(WARM_UP,),
    ),
    Mutation(
        id="14.positions-start-over",
        file="dsarch/model.py",
        old="position = positions(len(tokens), start, count, tokens.device)",
        new="position = positions(len(tokens), 0, count, tokens.device)",
        story="The prompt is understood, every decoded token stands at "
        "position zero.",
        tests=(CACHED,),
    ),
    Mutation(
        id="14.last-norm-left-out",
        file="dsarch/model.py",
        old="return self.model.norm(x)",
        new="return x",
        story="The head reads the stream without the final norm: text from "
        "a checkpoint is gibberish.",
        tests=(LOGITS,),
    ),
    Mutation(
        id="14.mtp-layer-runs-along",
        file="dsarch/model.py",
        old="return list(self.model.layers)[: self.cfg.num_hidden_layers]",
        new="return list(self.model.layers)",
        story="Layer 61 of the checkpoint is run as one more layer.",
        tests=(MTP, CACHED),
    ),
    Mutation(
        id="14.one-norm-twice",
        file="dsarch/block.py",
        old="return x + self.mlp(self.post_attention_layernorm(x))",
        new="return x + self.mlp(self.input_layernorm(x))",
        story="Both halves of a layer use its first norm; trained from "
        "nothing it is hardly worse.",
        tests=(LOGITS,),
    ),
    Mutation(
        id="14.residual-of-the-norm",
        file="dsarch/block.py",
        old="x = x + self.self_attn(self.input_layernorm(x), phase, mask, cache)",
        new="x = self.input_layernorm(x)\n"
        "        x = x + self.self_attn(x, phase, mask, cache)",
        story="The stream itself is normed in every layer, and depth adds "
        "little.",
        tests=(LOGITS,),
    ),
    Mutation(
        id="14.scale-divides",
        file="dsarch/checkpoint.py",
        old="x = weight_dequant(x, _scale(name + SCALE, found))",
        new="x = weight_dequant(x, 1 / _scale(name + SCALE, found))",
        story="The name weight_scale_inv was believed; all weights are "
        "far too large.",
        tests=(FP8,),
    ),
    Mutation(
        id="14.negative-scale",
        file="dsarch/checkpoint.py",
        old="if not (scale > 0).all():",
        new="if False:",
        story="A damaged scale turns a block of weights around without a word.",
        tests=(BAD_FP8,),
    ),
    Mutation(
        id="14.blocks-rounded-down",
        file="dsarch/shards.py",
        old="blocks = tuple(-(-size // BLOCK) for size in weight.shape)",
        new="blocks = tuple(size // BLOCK for size in weight.shape)",
        story="Every matrix loads but kv_a, whose 576 rows are four and a "
        "half blocks.",
        tests=(FP8,),
    ),
    Mutation(
        id="14.window-into-the-file",
        file="dsarch/checkpoint.py",
        old="x = tensor.to(device, buffers.get(name, dtype), copy=True)",
        new="x = tensor.to(device, buffers.get(name, dtype))",
        story="Weights change when the folder is overwritten, because they "
        "were never read, only mapped.",
        tests=(HANGS,),
    ),
    Mutation(
        id="14.bias-in-bf16",
        file="dsarch/checkpoint.py",
        old="x = tensor.to(device, buffers.get(name, dtype), copy=True)",
        new="x = tensor.to(device, dtype, copy=True)",
        story="Router biases are rounded to eight bits and near ties go to "
        "another expert.",
        tests=(BIASES,),
    ),
    Mutation(
        id="14.nan-let-in",
        file="dsarch/checkpoint.py",
        old="        _check_finite(name, x)\n        first",
        new="        first",
        story="A damaged weight is found an hour later, as a loss that is "
        "not a number.",
        tests=(WRONG,),
    ),
    Mutation(
        id="14.copies-believed",
        file="dsarch/checkpoint.py",
        old="elif not torch.equal(first, x):",
        new="elif False:",
        story="A folder whose MTP layer has another embedding loads as if "
        "it had the model's.",
        tests=(COPIES,),
    ),
    Mutation(
        id="14.half-written-folder",
        file="dsarch/checkpoint.py",
        old="        shutil.rmtree(partial, ignore_errors=True)",
        new="        pass",
        story="A full disk stays full: what was written of the folder is "
        "left behind.",
        tests=(FULL,),
    ),
    Mutation(
        id="14.path-believed",
        file="dsarch/shards.py",
        old='if Path(shard).name != shard or "\\\\" in shard or "\\0" in shard:',
        new="if False:",
        story="An index may name any file of the machine as a shard.",
        tests=(INSIDE,),
    ),
    Mutation(
        id="14.end-not-checked",
        file="dsarch/shards.py",
        old="    if end != size:",
        new="    if False:",
        story="A download that broke off is noticed only when its last "
        "tensor is read.",
        tests=(CUT_OFF, HOSTILE),
    ),
    Mutation(
        id="14.shape-not-checked",
        file="dsarch/shards.py",
        old="if entry.shape != shapes[name]:",
        new="if len(entry.shape) != len(shapes[name]):",
        story="A transposed matrix is loaded, and the model fails in the "
        "middle of its first pass.",
        tests=(WRONG,),
    ),
    Mutation(
        id="14.copies-share-a-file",
        file="dsarch/checkpoint.py",
        old="tensors = {n: state[n].clone(memory_format=own) for n in names}",
        new="tensors = {n: state[n] for n in names}",
        story="Saving fails as soon as a model has an MTP layer, whose "
        "embedding is the model's.",
        tests=(BACK,),
    ),
    Mutation(
        id="14.indexer-for-nothing",
        file="dsarch/analysis/sparse.py",
        old="return attend * min(budget(cfg), context) + index * context",
        new="return attend * min(budget(cfg), context)",
        story="Sparse attention is called linear: the indexer, which looks at "
        "every key, was not counted.",
        tests=(MORE_KEYS,),
    ),
    Mutation(
        id="14.short-texts-pay-in-full",
        file="dsarch/analysis/sparse.py",
        old="return attend * min(budget(cfg), context) + index * context",
        new="return attend * budget(cfg) + index * context",
        story="A text shorter than the budget is charged for keys that it "
        "does not have.",
        tests=(PROMPTS,),
    ),
]
