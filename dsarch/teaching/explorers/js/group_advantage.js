// Rewards and ratios of a group become advantages, clips and gradients.
// data: {variants: [{name, scale, reduction, low, high, detached}], start,
// rewards, ratios, lengths, longest}
import { define, esc, heading, num, plot, table, tiles } from "./lib.js";

const STD_EPS = 1e-4;
const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;
function deviation(list) {
  const middle = mean(list);
  const sum = list.reduce((a, b) => a + (b - middle) ** 2, 0);
  return Math.sqrt(sum / (list.length - 1));
}
/** Rewards against their own group; equal rewards teach nothing. */
function advantages(rewards, scale) {
  if (rewards.every((r) => r === rewards[0])) return rewards.map(() => 0);
  const middle = mean(rewards);
  const by = scale === "none" ? 1 : deviation(rewards) + STD_EPS;
  return rewards.map((r) => (r - middle) / by);
}
const clip = (x, low, high) => Math.min(Math.max(x, 1 - low), 1 + high);
/** The clipped surrogate of one token, to be minimised. */
const loss = (ratio, advantage, low, high) =>
  -Math.min(ratio * advantage, clip(ratio, low, high) * advantage);
const held = (ratio, advantage, low, high) =>
  (advantage > 0 && ratio > 1 + high) || (advantage < 0 && ratio < 1 - low);
/** Its derivative by the log-probability of the token. */
function slope(ratio, advantage, low, high, detached) {
  if (detached) return -Math.min(ratio, 1 + high) * advantage;
  return held(ratio, advantage, low, high) ? 0 : -ratio * advantage;
}
/** What one token of each answer weighs in the loss of the group. */
function weight(lengths, reduction, longest) {
  const rows = lengths.length,
    all = lengths.reduce((a, b) => a + b, 0);
  if (reduction === "token") return lengths.map(() => 1 / all);
  if (reduction === "constant") return lengths.map(() => 1 / (rows * longest));
  return lengths.map((n) => 1 / (rows * n));
}

const LETTERS = ["a", "b", "c", "d"];
const signed = (x) => {
  const short = Math.abs(x) < 5e-4 ? 0 : x;
  return `${short > 0 ? "+" : short < 0 ? "−" : ""}${num(Math.abs(short), 3)}`;
};

function controls(data) {
  const steps = (n, f) => Array.from({ length: n }, (_, i) => f(i));
  const four = (name, key, spec, values) =>
    LETTERS.map((_, i) => ({
      kind: "slider",
      key: `${key}${i}`,
      label: `${name} of answer ${i + 1}`,
      value: values[i],
      ...spec,
    }));
  return [
    {
      kind: "select",
      key: "variant",
      label: "Objective",
      value: data.start,
      options: data.variants.map((v, i) => [i, v.name]),
    },
    ...four(
      "Reward",
      "reward",
      { min: 0, max: 1, real: true, values: steps(21, (i) => i / 20) },
      data.rewards,
    ),
    ...four(
      "Ratio",
      "ratio",
      {
        min: 0.1,
        max: 3,
        real: true,
        values: steps(59, (i) => (i + 2) / 20),
      },
      data.ratios,
    ),
    ...four(
      "Tokens",
      "length",
      { min: 1, max: 8, values: steps(8, (i) => i + 1), group: "Lengths" },
      data.lengths,
    ),
  ];
}

function answers(s, data) {
  const v = data.variants[s.variant];
  const pick = (key) => LETTERS.map((_, i) => s[`${key}${i}`]);
  const rewards = pick("reward"),
    ratios = pick("ratio"),
    lengths = pick("length");
  const share = weight(lengths, v.reduction, data.longest);
  return advantages(rewards, v.scale).map((advantage, i) => ({
    name: `answer ${i + 1}`,
    reward: rewards[i],
    ratio: ratios[i],
    length: lengths[i],
    advantage,
    held: v.detached
      ? ratios[i] > 1 + v.high
      : held(ratios[i], advantage, v.low, v.high),
    loss: loss(ratios[i], advantage, v.low, v.high),
    push: -share[i] * slope(ratios[i], advantage, v.low, v.high, v.detached),
  }));
}

function drawing(v, rows, width) {
  const grid = Array.from({ length: 59 }, (_, i) => (i + 2) / 20);
  const gains = (a) => grid.map((r) => [r, -loss(r, a, v.low, v.high)]);
  const top = Math.max(0.5, ...rows.map((r) => Math.abs(r.advantage)));
  const best = Math.max(...rows.map((r) => r.advantage)),
    worst = Math.min(...rows.map((r) => r.advantage));
  const low = Math.min(-0.1, 3 * worst),
    high = Math.max(0.1, best * (1 + v.high), top / 2);
  return plot({
    width,
    height: 260,
    x: { min: 0.1, max: 3, label: "ratio r", format: (x) => num(x, 2) },
    y: { min: low, max: high, label: "gain min(rA, clip(r)A)" },
    series: [
      { name: `best answer, A = ${signed(best)}`, points: gains(best) },
      { name: `worst answer, A = ${signed(worst)}`, points: gains(worst) },
    ],
    bands: [{ from: 1 - v.low, to: 1 + v.high, label: "" }],
    dots: rows.map((r) => ({
      x: r.ratio,
      y: -r.loss,
      series: r.advantage >= 0 ? 0 : 1,
    })),
    desc:
      "Gain of a token against its ratio; " +
      rows.map((r) => `${r.name} at ratio ${num(r.ratio)}, gain ${signed(-r.loss)}`).join("; "),
  });
}

const verdict = (v, r) => {
  if (r.advantage === 0) return "no signal";
  if (!r.held) return "free";
  return v.detached ? "capped" : "held";
};

function view(s, { data, width }) {
  const v = data.variants[s.variant],
    rows = answers(s, data);
  const rewards = rows.map((r) => r.reward);
  const stuck = rows.filter((r) => r.held && r.advantage !== 0);
  const surrogate = v.detached
    ? heading("CISPO has no clipped gain", "its capped ratio only weighs log π")
    : drawing(v, rows, width);
  const html =
    tiles([
      {
        name: "Mean reward",
        value: num(mean(rewards), 3),
        note: "the baseline of all four",
      },
      {
        name: "Deviation",
        value: num(deviation(rewards), 3),
        note: v.scale === "none" ? "not divided by" : "divisor, with G − 1",
      },
      {
        name: v.detached ? "Capped answers" : "Held answers",
        value: `${stuck.length} of 4`,
        note: `clip ${num(1 - v.low, 5)} to ${num(1 + v.high, 5)}`,
      },
    ]) +
    surrogate +
    table(
      ["Answer", "reward", "advantage", "ratio", "clip", "push per token", "push per answer"],
      rows.map((r) => [
        r.name,
        num(r.reward),
        signed(r.advantage),
        num(r.ratio),
        verdict(v, r),
        signed(r.push),
        signed(r.push * r.length),
      ]),
      { caption: `${v.name}: minus the gradient by the log-probability` },
    ) +
    `<p class="note">${esc(note(v))}</p>`;
  return { html, say: sentence(v, rows, stuck) };
}

const note = (v) =>
  v.reduction === "sequence"
    ? "Each answer weighs the same, so a token of a short answer weighs more."
    : v.reduction === "token"
      ? "Each token weighs the same, so a long answer weighs more."
      : "Each token weighs the same, whatever the lengths are: the divisor is constant.";

function sentence(v, rows, stuck) {
  if (rows.every((r) => r.advantage === 0)) {
    return "All rewards are equal: every advantage is exactly 0, and the group teaches nothing.";
  }
  const names = stuck.map((r) => r.name).join(", ");
  const clipped = stuck.length
    ? v.detached
      ? `${names}: the weight is capped, the gradient stays.`
      : `${names}: held by the clip, the gradient is 0.`
    : "No answer is held by the clip.";
  return (
    `${v.name}: advantages ${rows.map((r) => signed(r.advantage)).join(", ")}. ` +
    clipped
  );
}

export const formulas = { advantages, loss, slope, weight };
export default define({ formulas, controls, view });
