// What drafting gains by formula, and recorded rounds of the tiny model.
// data: {chance, draft, extra, drafts, domains, shown: {domain: {begin,
// rounds: [{drafts, p, q, u, kept, last, options: [[text, p, q, left]]}]}}}
import {
  define,
  esc,
  fold,
  heading,
  num,
  plot,
  plural,
  table,
  tiles,
  times,
} from "./lib.js";

/** Expected tokens of a pass that verifies `k` drafts. */
function tokensPerPass(a, k) {
  let kept = 1,
    total = 1;
  for (let i = 0; i < k; i += 1) {
    kept *= a;
    total += kept;
  }
  return total;
}
/** Against plain decoding; c: a draft, w: one more token in a pass. */
const speedup = (a, k, c, w) => tokensPerPass(a, k) / (1 + k * (c + w));
/** The best number of drafts up to `most`; the smaller of equals. */
function bestDrafts(a, c, w, most) {
  let best = 0;
  for (let k = 1; k <= most; k += 1) {
    if (speedup(a, k, c, w) > speedup(a, best, c, w)) best = k;
  }
  return best;
}
/** The chance that a draft is kept. */
const keep = (p, q) => Math.min(1, p / q);

const MOST = 12;
const STAGES = ["draft", "verify", "keep"];
const tenths = (n) => Array.from({ length: n + 1 }, (_, i) => i / n);

function controls(data) {
  const curve = (s) => s.show === "curve",
    rounds = (s) => s.show === "rounds";
  const share = (key, label, value, max = 1) => ({
    kind: "slider",
    key,
    label,
    min: 0,
    max,
    real: true,
    value,
    values: tenths(20).map((v) => Math.round(v * max * 1000) / 1000),
    when: curve,
  });
  return [
    {
      kind: "radio",
      key: "show",
      label: "Show",
      value: "curve",
      wide: true,
      options: [
        ["curve", "the gain by formula"],
        ["rounds", "recorded rounds of the tiny model"],
      ],
    },
    share("chance", "Chance that a draft is kept", data.chance),
    share("draft", "Cost of a draft, in passes", data.draft, 0.5),
    share("extra", "Cost of one more token in a pass", data.extra),
    {
      kind: "slider",
      key: "drafts",
      label: "Drafts per pass",
      min: 1,
      max: MOST,
      value: data.drafts,
      values: Array.from({ length: MOST }, (_, i) => i + 1),
      when: curve,
    },
    {
      kind: "select",
      key: "domain",
      label: "Text",
      value: data.domains[0],
      options: data.domains.map((name) => [name, name]),
      when: rounds,
    },
    {
      kind: "steps",
      key: "round",
      label: "Round",
      wide: true,
      min: 1,
      max: data.shown[data.domains[0]].rounds.length,
      value: 1,
      interval: 1500,
      when: rounds,
    },
    {
      kind: "steps",
      key: "stage",
      label: "Stage of the round",
      unit: `of ${STAGES.length}`,
      wide: true,
      min: 1,
      max: STAGES.length,
      value: STAGES.length,
      interval: 1500,
      when: rounds,
    },
  ];
}

const STYLE = `<style>
.ds .told { font-family: ui-monospace, monospace; font-size: .92rem; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; margin: .4rem 0 .6rem; }
.ds .told span { border: 1px solid var(--field); border-radius: .25rem; padding: 1px 4px; margin: 0 1px; }
.ds .told .yes { background: var(--tint); border-color: var(--accent); border-width: 2px; }
.ds .told .no { text-decoration: line-through; color: var(--muted); border-style: dashed; }
.ds .told .own { border-color: var(--fg); border-width: 2px; font-weight: 650; }
</style>`;

function gain(s, { width }) {
  const { chance: a, draft: c, extra: w, drafts: k } = s;
  const grid = Array.from({ length: MOST + 1 }, (_, i) => i);
  const best = bestDrafts(a, c, w, MOST),
    now = speedup(a, k, c, w);
  const series = [
    { name: "speed-up", points: grid.map((i) => [i, speedup(a, i, c, w)]) },
    { name: "tokens per pass", points: grid.map((i) => [i, tokensPerPass(a, i)]) },
  ];
  const top = Math.max(2, tokensPerPass(a, MOST));
  const html =
    tiles([
      {
        name: "Tokens per pass",
        value: num(tokensPerPass(a, k), 3),
        note: `with ${plural(k, "draft")}, of ${k + 1} at most`,
      },
      {
        name: "Time of a round",
        value: num(1 + k * (c + w), 3),
        note: "in passes over one token",
      },
      {
        name: "Speed-up",
        value: times(now),
        note: now > 1 ? "drafting pays" : "drafting does not pay",
      },
      {
        name: "Best number of drafts",
        value: num(best),
        note: best ? `${times(speedup(a, best, c, w))} then` : "do not draft",
      },
    ]) +
    plot({
      width,
      x: { min: 0, max: MOST, label: "drafts per pass" },
      y: { min: 0, max: top, label: "times plain decoding" },
      series,
      dots: [{ x: k, y: now, series: 0 }],
      rules: best ? [{ x: best, label: `best: ${best}` }] : [],
      desc:
        `Speed-up against drafts per pass: ${num(now, 3)} with ${k}; ` +
        `the best number is ${best}`,
    }) +
    fold(
      "The numbers",
      table(
        ["Drafts", "Tokens per pass", "Time", "Speed-up"],
        grid.map((i) => [
          i,
          num(tokensPerPass(a, i), 4),
          num(1 + i * (c + w), 4),
          num(speedup(a, i, c, w), 4),
        ]),
        { caption: "By number of drafts", strong: k },
      ),
    );
  const verdict = best
    ? `The best number is ${best}, with ${times(speedup(a, best, c, w))}.`
    : "No number of drafts pays here.";
  return {
    html,
    say:
      `${plural(k, "draft")}, each kept with chance ${num(a, 3)}: ` +
      `${num(tokensPerPass(a, k), 3)} tokens in ${num(1 + k * (c + w), 3)} ` +
      `passes' time, ${times(now)} plain decoding. ${verdict}`,
  };
}

const added = (r) => r.drafts.slice(0, r.kept).join("") + r.last;
const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;

/** Stage by stage, what is known of the drafts of a round. */
function drafted(r, stage) {
  const marks = r.drafts.map((token, i) => {
    const state = stage < 3 ? "" : i < r.kept ? "yes" : "no";
    return `<span class="${state}">${esc(token)}</span>`;
  });
  const own = stage < 3 ? "" : `<span class="own">${esc(r.last)}</span>`;
  return marks.join("") + own;
}

function rows(r, stage) {
  return r.drafts.map((token, i) => {
    const chance = keep(r.p[i], r.q[i]);
    const fate =
      i < r.kept ? "kept" : i === r.kept ? "refused" : "not reached";
    return [
      token,
      r.q[i].toFixed(4),
      ...(stage > 1 ? [r.p[i].toFixed(4), chance.toFixed(3)] : []),
      ...(stage > 2 ? [r.u[i].toFixed(3), fate] : []),
    ];
  });
}

function rounds(s, { data }) {
  const { begin, rounds: all } = data.shown[s.domain];
  const r = all[s.round - 1],
    full = r.kept === r.drafts.length;
  const before = begin + all.slice(0, s.round - 1).map(added).join("");
  const head = ["Draft", "q", "p", "min(1, p/q)", "u", ""];
  const shown = [2, 4, 6][s.stage - 1];
  const where = full
    ? "after all drafts"
    : `at the refused draft ${r.kept + 1}`;
  const html =
    STYLE +
    heading(`Round ${s.round}`, STAGES[s.stage - 1]) +
    `<p class="told">…${esc(before.slice(-70))}${drafted(r, s.stage)}</p>` +
    table(head.slice(0, shown), rows(r, s.stage), {
      caption: "q: the MTP layer, p: the model, u: drawn from 0 to 1",
    }) +
    (s.stage < 3
      ? ""
      : heading(`Where the last token came from`, where) +
        table(
          full ? ["Token", "p"] : ["Token", "p", "q", "(p − q)₊, normalised"],
          r.options.map(([token, p, q, left]) =>
            [token, p.toFixed(4), ...(full ? [] : [q.toFixed(4), left.toFixed(4)])],
          ),
          {
            caption: full
              ? "All kept: one more token from the model's own distribution"
              : "Drawn from the last column",
            strong: r.options.findIndex(([token]) => token === r.last),
          },
        ));
  return { html, say: told(s, r, full, all) };
}

function told(s, r, full, all) {
  const quoted = r.drafts.map((token) => `“${token}”`).join(", ");
  if (s.stage === 1) return `The MTP layer drafts ${quoted}.`;
  if (s.stage === 2) {
    return `One pass of the model gives p for all ${r.drafts.length} drafts at once, and for the token after them.`;
  }
  const so = all.slice(0, s.round).map((x) => x.kept + 1);
  const end = full
    ? `All are kept, and “${r.last}” is drawn from p`
    : `${r.kept} of ${r.drafts.length} are kept; “${r.last}” is drawn from what p has over q`;
  return `${end}. ${plural(r.kept + 1, "token")} from one pass; so far ${num(mean(so), 3)} per pass.`;
}

const view = (s, given) =>
  s.show === "curve" ? gain(s, given) : rounds(s, given);

export const formulas = { tokensPerPass, speedup, bestDrafts, keep };
export default define({ formulas, controls, view });
