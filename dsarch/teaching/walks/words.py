r"""What the steps say: title, formula, and the rule in a sentence or two.

A formula here needs its MathML: ``python -m book.walk_formulas``.
"""

from typing import NamedTuple


class Words(NamedTuple):
    """The fixed text of one step; ``tex`` is the formula."""

    title: str
    tex: str
    why: str


ATTENTION = {
    "queries": Words(
        "Queries of the new token",
        r"[q_h;\; q^R_h] = W^{UQ}_h\,\mathrm{norm}(W^{DQ} x)",
        "The token's state goes through a small latent and becomes one query "
        "for each head: a content part and a part that is turned by the "
        "position.",
    ),
    "memory": Words(
        "What the token leaves behind",
        r"c_t = \mathrm{norm}(W^{DKV} x_t),\;\; "
        r"k^R_t = \mathrm{RoPE}(W^{KR} x_t)",
        "One latent and one turned key, shared by all heads. There are no "
        "keys and values of single heads.",
    ),
    "cache": Words(
        "The cache grows by one row",
        r"C = [c_1;\, \dots;\, c_t]",
        "All that attention will read of the past is here.",
    ),
    "absorb": Words(
        "The query absorbs the key matrix",
        r"\tilde q_h = (W^{UK}_h)^{\!\top} q_h \big/ \sqrt{n+r}",
        "The matrix that would rebuild keys moves to the query's side: once "
        "for one token, not once for every cached one. The division by the "
        "root happened one line above.",
    ),
    "content": Words(
        "Content scores",
        r"s_{h,j} = \tilde q_h^{\,\top} c_j",
        "A query meets the latents themselves.",
    ),
    "position": Words(
        "Position joins",
        r"s_{h,j} \leftarrow s_{h,j} + (q^R_h)^{\!\top} k^R_j "
        r"\big/ \sqrt{n+r}",
        "The turned query meets the turned keys. Only this term knows how "
        "far away a letter is.",
    ),
    "softmax": Words(
        "Softmax",
        r"p_{h,j} = \frac{e^{s_{h,j}}}{\sum_i e^{s_{h,i}}}",
        "Every row sums to one. Nothing lies in the future of the last "
        "token, so the mask hides nothing here.",
    ),
    "mix": Words(
        "One latent for each head",
        r"z_h = \sum_j p_{h,j}\, c_j",
        "The same cached latents, now mixed by the shares.",
    ),
    "values": Words(
        "Values, after the sum",
        r"o_h = W^{UV}_h z_h",
        "The matrix that would rebuild values works once, on the mix.",
    ),
    "output": Words(
        "Back to the stream",
        r"u = W^O\,[o_1;\, \dots;\, o_H]",
        "The heads are joined; the block will add the result to the token's "
        "state.",
    ),
}

ROUTING = {
    "logits": Words(
        "Logits",
        r"u_i = x^{\top} e_i",
        "Every expert has a direction; the token's state is compared with "
        "all of them.",
    ),
    "scores": Words(
        "Sigmoid",
        r"s_i = \sigma(u_i)",
        "Each score stands for itself: unlike in a softmax, one expert's "
        "score does not push down another's.",
    ),
    "bias": Words(
        "The bias, for the choice only",
        r"\tilde s_i = s_i + b_i",
        "Training raised the bias of experts that had too little to do and "
        "lowered it where there was too much.",
    ),
    "groups": Words(
        "What a group is worth",
        r"w_g = \text{sum of the two largest } \tilde s_i,\; i \in g",
        "The two best of each group speak for it.",
    ),
    "closed": Words(
        "The other groups close",
        r"\tilde s_i \leftarrow -\infty \;\text{ in a closed group}",
        "On a cluster a group lives on one machine, so that a token travels "
        "to few machines.",
    ),
    "chosen": Words(
        "The best of what is left",
        r"\mathcal K = \mathrm{TopK}_i(\tilde s_i)",
        "Only the identity of the experts is taken from here. The biased "
        "scores are not used again.",
    ),
    "weights": Words(
        "Weights come without the bias",
        r"g_i = s_i, \quad i \in \mathcal K",
        "What balances the load must not change what is computed.",
    ),
    "shares": Words(
        "Shares of one",
        r"g_i \leftarrow \frac{g_i}{\sum_{j \in \mathcal K} g_j}",
        "The chosen experts divide the answer among themselves.",
    ),
    "scaled": Words(
        "Scaled",
        r"g_i \leftarrow \lambda\, g_i",
        "A fixed factor sets how loud the routed experts are beside the "
        "shared one.",
    ),
}

SPECULATION = {
    "draft": Words(
        "The small layer drafts",
        r"d_i \sim q_i, \quad i = 1, \dots, k",
        "The MTP layer proposes tokens one after the other, each drawn from "
        "its own distribution.",
    ),
    "pass": Words(
        "One pass of the model",
        r"p_1, \dots, p_{k+1} = \mathrm{model}(\dots, d_1, \dots, d_k)",
        "The whole model reads all drafts at once and says what it would "
        "have drawn at each place, and at one place more.",
    ),
    "ratio": Words(
        "How well does a draft fit?",
        r"r_i = \frac{p_i(d_i)}{q_i(d_i)}",
        "At least 1: the model likes the token as much as the drafter did, "
        "or more. Below 1: the drafter was too sure.",
    ),
    "coin": Words(
        "A coin for each draft",
        r"u_i \sim U(0, 1)",
        "A draft will be kept if its coin falls below its ratio, so with "
        "probability min(1, p/q).",
    ),
    "kept": Words(
        "Accept up to the first refusal",
        r"a_i = \prod_{j \le i} [\,u_j < r_j\,]",
        "What follows a refused token was drafted from a text that will not "
        "exist. The running product throws it away.",
    ),
    "residual": Words(
        "What the drafter had too little of",
        r"p' \propto (p_i - q_i)_+",
        "At the refused place a token is drawn from what is left of p when "
        "q is taken away. This repairs the bias exactly.",
    ),
    "piece": Words(
        "The piece that this round yields",
        r"d_1, \dots, d_a,\; x \sim p'",
        "The accepted drafts and one corrected token. Every round yields at "
        "least one.",
    ),
    "forget": Words(
        "Forget what was refused",
        r"h \leftarrow h_1, \dots, h_{a+1}",
        "States of refused drafts are cut off here, and one line below "
        "every cache forgets them too.",
    ),
}

UPDATE = {
    "rewards": Words(
        "Four answers, judged",
        r"R_i = [\,\text{answer } i \text{ names a fox or a wolf}\,]",
        "The policy writes four answers to one prompt. A rule judges them; "
        "there is no critic.",
    ),
    "centred": Words(
        "Compare with the group",
        r"R_i - \bar R",
        "The mean of the four is the baseline.",
    ),
    "advantages": Words(
        "Advantages",
        r"\hat A_i = \frac{R_i - \bar R}{\mathrm{std}(R) + 10^{-4}}",
        "Divided by the deviation of the group, with g − 1 = 3 below the root.",
    ),
    "logp": Words(
        "What does the policy say now?",
        r"\log \pi_\theta(x_{t} \mid x_{<t})",
        "One step has been made on these answers already; the same answers "
        "are read again.",
    ),
    "ratio": Words(
        "Ratios",
        r"r_{i,t} = \frac{\pi_\theta(x_t)}{\pi_{old}(x_t)}",
        "Before the first step all of them were 1. A mark shows a token that "
        "left the range from 0.8 to 1.2.",
    ),
    "clipped": Words(
        "Where the clip binds",
        r"(r > 1+\varepsilon \wedge \hat A > 0) \vee "
        r"(r < 1-\varepsilon \wedge \hat A < 0)",
        "A good token that already rose enough, and a bad one that already "
        "fell enough, get no gradient from this step.",
    ),
    "gain": Words(
        "The surrogate",
        r"\min\big(r\hat A,\; \mathrm{clip}(r, 1-\varepsilon, "
        r"1+\varepsilon)\,\hat A\big)",
        "The smaller of the two: no credit for going further than the clip.",
    ),
    "loss": Words(
        "One number",
        r"L = -\frac1g \sum_i \frac{1}{|o_i|} \sum_t \min(\dots)_{i,t}",
        "The mean within each answer, then over the answers.",
    ),
    "step": Words(
        "The gradient moves the weights",
        r"\theta \leftarrow \theta - \eta\, \nabla_\theta L",
        "The norm is measured, bounded by 1, and the optimizer makes its step.",
    ),
}

ALL = {
    "attention": ATTENTION,
    "routing": ROUTING,
    "speculation": SPECULATION,
    "update": UPDATE,
}
