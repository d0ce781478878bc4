// Estimators of a divergence over three tokens: value, error, gradient.
// data: {policy, reference}: weights of the tokens
import {
  bars,
  define,
  heading,
  num,
  powers,
  table,
  tiles,
} from "./lib.js";

const share = (weights) => {
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.map((w) => w / total);
};
const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
const logRho = (policy, reference) => {
  const q = share(reference);
  return share(policy).map((p, i) => Math.log(q[i] / p));
};

const divergence = (policy, reference) =>
  -dot(share(policy), logRho(policy, reference));

const ESTIMATES = {
  k1: (x) => -x,
  k2: (x) => (x * x) / 2,
  k3: (x) => Math.exp(x) - x - 1,
  unbiased: (x) => Math.exp(x) - x - 1,
};
/** Derivatives by log π of the drawn token; x is log ρ. */
const SLOPES = {
  k1: () => 1,
  k2: (x) => -x,
  k3: (x) => 1 - Math.exp(x),
  unbiased: (x) => -x,
};
const estimates = (policy, reference, kind) =>
  logRho(policy, reference).map(ESTIMATES[kind]);
function moments(policy, reference, kind) {
  const p = share(policy),
    values = estimates(policy, reference, kind);
  const mean = dot(p, values);
  const spread = values.map((v) => (v - mean) ** 2);
  return [mean, Math.sqrt(dot(p, spread))];
}
/** Expected gradient by the logits, the samples held fixed. */
function pull(policy, reference, kind) {
  const p = share(policy),
    slopes = logRho(policy, reference).map(SLOPES[kind]);
  const mean = dot(p, slopes);
  return p.map((x, i) => x * (slopes[i] - mean));
}

const TOKENS = ["A", "B", "C"];
const NAMES = { k1: "k1", k2: "k2", k3: "k3", unbiased: "r · k3 (V3.2)" };
const PULLS = {
  k1: "nothing",
  k2: "KL(π‖ref)",
  k3: "KL(ref‖π)",
  unbiased: "KL(π‖ref)",
};
const near = (x) => (Math.abs(x) < 5e-7 ? 0 : x);
const signed = (x) =>
  `${near(x) > 0 ? "+" : near(x) < 0 ? "−" : ""}${num(Math.abs(near(x)), 3)}`;

function controls(data) {
  const three = (name, key, values) =>
    TOKENS.map((token, i) => ({
      kind: "slider",
      key: `${key}${i}`,
      label: `${name}: weight of ${token}`,
      min: 1,
      max: 99,
      value: values[i],
      values: Array.from({ length: 99 }, (_, j) => j + 1),
    }));
  return [
    ...three("Policy π", "policy", data.policy),
    ...three("Reference", "reference", data.reference),
    {
      kind: "slider",
      key: "samples",
      label: "Sampled tokens in the mean",
      min: 1,
      max: 65536,
      value: 16,
      values: powers(1, 65536),
    },
  ];
}

function view(s, { width }) {
  const pick = (key) => TOKENS.map((_, i) => s[`${key}${i}`]);
  const policy = pick("policy"),
    reference = pick("reference");
  const truth = divergence(policy, reference),
    back = divergence(reference, policy);
  const root = Math.sqrt(s.samples);
  const found = ["k1", "k2", "k3"].map((kind) => {
    const [mean, spread] = moments(policy, reference, kind);
    return { kind, mean, error: spread / root, bias: mean - truth };
  });
  const p = share(policy),
    q = share(reference);
  const html =
    tiles([
      { name: "KL(π‖ref)", value: num(truth, 4), note: "what is estimated" },
      { name: "KL(ref‖π)", value: num(back, 4), note: "the other direction" },
    ]) +
    heading(
      "What the estimators say",
      `mean ± deviation over ${num(s.samples, 6)} sampled tokens`,
    ) +
    bars({
      width,
      items: [
        { name: "truth", value: truth, text: num(truth, 4), strong: true },
        ...found.map((f, i) => ({
          name: f.kind,
          value: f.mean,
          series: i + 1,
          text: `${num(f.mean, 4)} ± ${num(f.error, 2)}`,
        })),
      ],
      desc: found
        .map((f) => `${f.kind} ${num(f.mean, 4)} ± ${num(f.error, 2)}`)
        .join("; "),
    }) +
    table(
      ["Token", "π", "ref", "ρ", "k1", "k2", "k3"],
      TOKENS.map((token, i) => [
        token,
        num(p[i]),
        num(q[i]),
        num(q[i] / p[i]),
        ...["k1", "k2", "k3"].map((kind) =>
          signed(estimates(policy, reference, kind)[i]),
        ),
      ]),
      { caption: "One sampled token says" },
    ) +
    table(
      ["As a loss", "A", "B", "C", "is the gradient of"],
      Object.keys(NAMES).map((kind) => [
        NAMES[kind],
        ...pull(policy, reference, kind).map(signed),
        PULLS[kind],
      ]),
      { caption: "Expected gradient by the logits, samples held fixed" },
    );
  return { html, say: sentence(truth, found) };
}

function sentence(truth, [k1, k2, k3]) {
  if (truth < 1e-9) return "The two are equal: every estimate is 0.";
  const calm = k3.error < k1.error ? "k3" : "k1";
  return (
    `KL is ${num(truth, 4)}. k1 and k3 have no bias, k2 is off by ` +
    `${signed(k2.bias)}. ${calm} scatters less: ± ${num(k1.error, 2)} for k1, ` +
    `± ${num(k3.error, 2)} for k3.`
  );
}

export const formulas = { divergence, estimates, moments, pull };
export default define({ formulas, controls, view });
