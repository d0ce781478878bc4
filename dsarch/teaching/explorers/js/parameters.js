// Stored and activated parameters of mixtures.
// data: {models: [{name, sizes: {hidden, vocab, layers, dense, inter, width,
// routed, shared, chosen, attention, bias}}], start}
import {
  bars,
  bytes,
  define,
  fold,
  heading,
  num,
  powers,
  raised,
  table,
  tiles,
} from "./lib.js";

/** One expert: gate, up and down. */
const expert = (hidden, width) => 3 * hidden * width;
/** One mixture layer: experts, shared ones, centroids and bias. */
const layer = (hidden, width, routed, shared, bias) =>
  (routed + shared) * expert(hidden, width) + routed * (hidden + bias);
const common = (hidden, layers, dense, inter, attention) =>
  layers * attention + (2 * layers + 1) * hidden + dense * 3 * hidden * inter;
/** All parameters of the main model. */
const stored = (
  hidden,
  vocab,
  layers,
  dense,
  inter,
  width,
  routed,
  shared,
  attention,
  bias,
) =>
  2 * vocab * hidden +
  common(hidden, layers, dense, inter, attention) +
  (layers - dense) * layer(hidden, width, routed, shared, bias);
/** Those that one token is multiplied with; the embedding is not. */
const active = (
  hidden,
  vocab,
  layers,
  dense,
  inter,
  width,
  routed,
  shared,
  attention,
  bias,
  chosen,
) =>
  vocab * hidden +
  common(hidden, layers, dense, inter, attention) +
  (layers - dense) *
    (layer(hidden, width, routed, shared, bias) -
      (routed - chosen) * expert(hidden, width));
/** In how many ways `k` of `n` experts can be chosen. */
function combinations(n, k) {
  let ways = 1;
  for (let i = 1; i <= k; i += 1) ways = (ways * (n - k + i)) / i;
  return ways;
}

/** Up to ten digits as they are, more as a power of ten, however large. */
function many(n, k) {
  let log = 0;
  for (let i = 1; i <= k; i += 1) log += Math.log10((n - k + i) / i);
  if (log < 10) return num(combinations(n, k), 15);
  const power = Math.floor(log);
  return `${(10 ** (log - power)).toFixed(2)} × 10${raised(power)}`;
}
const FREE = ["routed", "chosen", "shared", "width", "dense"];
const big = (x) =>
  x >= 1e9
    ? `${num(x / 1e9, 4)}B`
    : x >= 1e6
      ? `${num(x / 1e6, 3)}M`
      : num(x, 6);

function controls(data) {
  const first = data.models[data.start].sizes;
  const size = (key, label, min, max, value, more = {}) => ({
    kind: "slider",
    key,
    label,
    min,
    max,
    value,
    values: powers(Math.max(min, 1), max),
    ...more,
  });
  const from0 = (max) => ({
    values: Array.from({ length: max + 1 }, (_, i) => i),
  });
  return [
    {
      kind: "select",
      key: "model",
      label: "Attention, layers and vocabulary of",
      value: data.start,
      options: data.models.map((m, i) => [i, m.name]),
    },
    {
      kind: "radio",
      key: "split",
      label: "Split every expert into",
      value: 1,
      options: [1, 2, 4, 8].map((m) => [m, `${m}`]),
    },
    {
      kind: "radio",
      key: "table",
      label: "Count the embedding as active",
      value: "no",
      options: [
        ["no", "no"],
        ["yes", "yes"],
      ],
    },
    size("routed", "Routed experts", 1, 1024, first.routed),
    size("chosen", "Chosen for a token", 1, 64, first.chosen),
    {
      kind: "radio",
      key: "shared",
      label: "Shared experts",
      value: first.shared,
      options: [0, 1, 2, 4, 8].map((n) => [n, `${n}`]),
    },
    size("width", "Width of an expert", 8, 32768, first.width),
    size("dense", "First layers without experts", 0, 8, first.dense, from0(8)),
    { kind: "hidden", key: "own", value: false },
  ];
}
/** A model sets all sizes; touching one makes them the reader's own. */
function change(state, why, data) {
  if (why === "model") {
    const sizes = data.models[state.model].sizes;
    const set = Object.fromEntries(FREE.map((key) => [key, sizes[key]]));
    return { ...state, ...set, split: 1, own: false };
  }
  return FREE.includes(why) ? { ...state, own: true } : state;
}

function counted(s, base) {
  const routed = s.routed * s.split,
    chosen = s.chosen * s.split,
    shared = s.shared * s.split,
    width = s.width / s.split;
  const head = [base.hidden, base.vocab, base.layers, s.dense, base.inter];
  const args = [...head, width, routed, shared, base.attention, base.bias];
  const embedding = s.table === "yes" ? base.vocab * base.hidden : 0;
  const used = active(...args, chosen) + embedding;
  const total = stored(...args);
  return { routed, chosen, shared, width, total, used, embedding };
}

function parts(s, base, c) {
  const n = base.layers - s.dense,
    each = expert(base.hidden, c.width);
  const table_ = base.vocab * base.hidden;
  const rest = common(
    base.hidden,
    base.layers,
    s.dense,
    base.inter,
    base.attention,
  );
  const router = n * c.routed * (base.hidden + base.bias);
  return [
    ["routed experts", n * c.routed * each, n * c.chosen * each],
    ["shared experts", n * c.shared * each, n * c.shared * each],
    ["router", router, router],
    ["attention, norms, dense", rest, rest],
    ["embedding", table_, c.embedding],
    ["output head", table_, table_],
  ];
}

function view(s, { data, width }) {
  const model = data.models[s.model],
    base = model.sizes;
  if (s.chosen > s.routed) {
    const say = `${num(s.chosen)} experts cannot be chosen from ${num(s.routed)}.`;
    return { html: `<p class="note">No such model.</p>`, say };
  }
  const c = counted(s, base),
    share = c.used / c.total,
    ways = many(c.routed, c.chosen);
  const drawn = [
    { name: "stored", value: c.total, text: big(c.total), series: 0 },
    { name: "active", value: c.used, text: big(c.used), series: 1, strong: true },
  ];
  const html =
    tiles([
      { name: "Stored", value: big(c.total), note: `${num(c.total, 15)} parameters` },
      { name: "Active for a token", value: big(c.used), note: `${num(100 * share, 3)} % of the stored ones` },
      { name: "Choices in a layer", value: ways, note: `${num(c.chosen)} of ${num(c.routed)} experts` },
      { name: "Weights in BF16", value: bytes(2 * c.total), note: `${bytes(c.total)} in FP8` },
    ]) +
    heading("Stored against active") +
    bars({ width, items: drawn, desc: `stored ${big(c.total)}, active ${big(c.used)}` }) +
    fold(
      "Where they are",
      table(
        ["Part", "stored", "active"],
        parts(s, base, c).map(([name, a, b]) => [name, big(a), big(b)]),
        { caption: "Parameters by part" },
      ),
    );
  const name = s.own || s.split > 1 ? `Your sizes on ${model.name}` : model.name;
  const say =
    `${name}: ${num(c.total, 15)} parameters stored, ${num(c.used, 15)} active, ` +
    `${num(100 * share, 3)} %. A layer can choose its experts in ${ways} ways.`;
  return { html, say };
}

export const formulas = { expert, layer, common, stored, active, combinations };
export default define({ formulas, controls, change, view });
