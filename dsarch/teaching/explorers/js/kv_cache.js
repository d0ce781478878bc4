// KV-cache sizes of MHA, GQA, MQA and MLA for any dimensions.
// data: {models: [{name, kind, layers, heads, kvHeads, headDim, latent,
// rope}], start: index of the first model shown}
import {
  bars,
  binary,
  bytes,
  define,
  fold,
  heading,
  num,
  plural,
  powers,
  table,
  tiles,
  times,
} from "./lib.js";

/** Numbers that one layer caches for one token. */
function kvElements(kind, heads, kvHeads, headDim, latent, rope) {
  if (kind === "MLA") return latent + rope;
  const kept = { MHA: heads, GQA: kvHeads, MQA: 1 }[kind];
  return 2 * kept * headDim;
}
const bytesPerToken = (
  kind,
  layers,
  heads,
  kvHeads,
  headDim,
  latent,
  rope,
  size,
) => layers * kvElements(kind, heads, kvHeads, headDim, latent, rope) * size;
const cacheBytes = (perToken, context, batch) => perToken * context * batch;
const sequencesThatFit = (perToken, context, memory) =>
  Math.floor(memory / (perToken * context));
/** Key-value groups of a GQA whose cache is as large as the latent. */
const equalGroups = (latent, rope, headDim) => (latent + rope) / (2 * headDim);

const OWN = "own";
const SIZES = [
  "kind",
  "layers",
  "heads",
  "kvHeads",
  "headDim",
  "latent",
  "rope",
];
const of = (m) => Object.fromEntries(SIZES.map((k) => [k, m[k]]));

function controls(data) {
  const first = data.models[data.start];
  const size = (key, label, min, max, value, more = {}) => ({
    kind: "slider",
    key,
    label,
    min,
    max,
    value,
    values: powers(min, max),
    ...more,
  });
  const group = "Sizes of the model";
  const latent = (s) => s.kind === "MLA";
  return [
    {
      kind: "select",
      key: "model",
      label: "Model",
      value: data.start,
      options: [
        ...data.models.map((m, i) => [i, m.name]),
        [OWN, "your own sizes"],
      ],
    },
    {
      kind: "radio",
      key: "kind",
      label: "Attention",
      value: first.kind,
      options: ["MHA", "GQA", "MQA", "MLA"].map((k) => [k, k]),
    },
    size("context", "Context", 1, 1 << 20, data.context, { unit: "tokens" }),
    size("batch", "Sequences at once", 1, 4096, data.batch),
    {
      kind: "radio",
      key: "element",
      label: "Bytes per number",
      value: 2,
      options: [
        [1, "1 · FP8"],
        [2, "2 · BF16"],
        [4, "4 · FP32"],
      ],
    },
    {
      kind: "select",
      key: "memory",
      label: "Memory left for the cache",
      value: 80,
      options: [24, 40, 80, 141].map((g) => [g, `${g} GB`]),
    },
    size("layers", "Layers", 1, 256, first.layers, { group }),
    size("heads", "Query heads", 1, 512, first.heads, { group }),
    size("kvHeads", "KV heads", 1, 512, first.kvHeads, {
      group,
      when: (s) => s.kind === "GQA",
    }),
    size("headDim", "Head width", 1, 1024, first.headDim, { group }),
    size("latent", "Latent width", 1, 8192, first.latent || 512, {
      group,
      when: latent,
    }),
    size("rope", "Rotary key width", 1, 1024, first.rope || 64, {
      group,
      when: latent,
    }),
  ];
}

/** A model sets all sizes; touching a size makes them the reader's own. */
function change(state, why, data) {
  if (why === "model" && state.model !== OWN) {
    const m = of(data.models[state.model]);
    return { ...state, ...m, latent: m.latent || 512, rope: m.rope || 64 };
  }
  return SIZES.includes(why) ? { ...state, model: OWN } : state;
}

const uneven = (s) => s.kind === "GQA" && s.heads % s.kvHeads !== 0;

function compare(s, width) {
  const kinds = [["MHA"], ["GQA", "GQA"], ["MQA"], ["MLA"]];
  const groups =
    uneven(s) || s.kind !== "GQA" ? fallbackGroups(s.heads) : s.kvHeads;
  const items = kinds.map(([kind], series) => {
    const value = bytesPerToken(
      kind,
      s.layers,
      s.heads,
      groups,
      s.headDim,
      s.latent,
      s.rope,
      s.element,
    );
    const name = {
      MHA: "MHA",
      MQA: "MQA",
      GQA: `GQA, ${plural(groups, "KV head")}`,
      MLA: `MLA, ${s.latent} + ${s.rope}`,
    }[kind];
    return { name, value, series, strong: kind === s.kind };
  });
  const most = items[0].value;
  for (const d of items) d.text = bytes(d.value) + versus(d.value / most);
  const desc = items.map((d) => `${d.name}: ${d.text}`).join("; ");
  return bars({ width, items, desc });
}
/** Smaller or larger than MHA, in words. */
function versus(ratio) {
  if (ratio === 1) return "";
  return ratio < 1
    ? `, ${times(1 / ratio)} smaller`
    : `, ${times(ratio)} larger`;
}
/** The number of KV heads that GQA is shown with: 8, if it divides. */
const fallbackGroups = (heads) =>
  [8, 4, 2, 1].find((g) => heads % g === 0 && g < heads) ?? 1;

function published(s, data) {
  const rows = data.models.map((m) => {
    const each = bytesPerToken(
      m.kind,
      m.layers,
      m.heads,
      m.kvHeads,
      m.headDim,
      m.latent,
      m.rope,
      s.element,
    );
    const whole = cacheBytes(each, s.context, s.batch);
    const fit = sequencesThatFit(each, s.context, s.memory * 1e9);
    return [m.name, m.kind, num(each, 15), bytes(whole), num(fit, 15)];
  });
  const head = [
    "Model",
    "Kind",
    "Bytes per token",
    "Your batch",
    "Sequences that fit",
  ];
  const caption =
    `${num(s.context)} tokens, ${plural(s.batch, "sequence")}, ` +
    `${s.element} B per number, ${s.memory} GB`;
  return table(head, rows, {
    caption,
    strong: s.model === OWN ? -1 : +s.model,
  });
}

function view(s, { data, width }) {
  const each = bytesPerToken(
    s.kind,
    s.layers,
    s.heads,
    s.kvHeads,
    s.headDim,
    s.latent,
    s.rope,
    s.element,
  );
  const whole = cacheBytes(each, s.context, s.batch);
  const fit = sequencesThatFit(each, s.context, s.memory * 1e9);
  const elements = kvElements(
    s.kind,
    s.heads,
    s.kvHeads,
    s.headDim,
    s.latent,
    s.rope,
  );
  const html =
    tiles([
      {
        name: "One token",
        value: `${num(each, 15)} B`,
        note: `${num(s.layers)} layers × ${num(elements, 15)} numbers × ${s.element} B`,
      },
      {
        name: "The whole batch",
        value: bytes(whole),
        note: `${binary(whole)}, ${plural(s.batch, "sequence")} × ${num(s.context, 15)} tokens`,
      },
      {
        name: `Fit into ${s.memory} GB`,
        value: num(fit, 15),
        note: `sequences of ${num(s.context, 15)} tokens`,
      },
    ]) +
    heading(
      "The same model with another attention",
      "bytes per token, compared with MHA",
    ) +
    compare(s, width) +
    fold("All published models at your context and batch", published(s, data));
  return { html, say: sentence(s, each, whole, fit) };
}

function sentence(s, each, whole, fit) {
  if (uneven(s)) {
    const lower = divisor(s.heads, s.kvHeads, -1),
      upper = divisor(s.heads, s.kvHeads, 1);
    return (
      `${plural(s.kvHeads, "KV head")} cannot be shared evenly by ` +
      `${plural(s.heads, "query head")}: the number must divide ${s.heads}. ` +
      `Nearest that do: ${[...new Set([lower, upper])].join(" and ")}.`
    );
  }
  const size =
    `${s.kind} keeps ${num(each, 15)} bytes for every token; this batch needs ` +
    `${bytes(whole)}. ${s.memory} GB hold ${plural(fit, "sequence")} of this length.`;
  if (s.kind !== "MLA") return size;
  const groups = equalGroups(s.latent, s.rope, s.headDim);
  return `${size} The latent is as large as a GQA with ${num(groups)} KV heads.`;
}
function divisor(heads, from, step) {
  for (let g = from; g >= 1 && g <= heads; g += step)
    if (heads % g === 0) return g;
  return step > 0 ? heads : 1;
}

export const formulas = {
  kvElements,
  bytesPerToken,
  cacheBytes,
  sequencesThatFit,
  equalGroups,
};
export default define({ formulas, controls, change, view });
