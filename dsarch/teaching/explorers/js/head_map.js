// Which KV head does a query head read? data: {heads, kvHeads, headDim,
// layers, element, query}
import {
  bytes,
  define,
  esc,
  num,
  pick,
  plural,
  powers,
  table,
  tiles,
  times,
} from "./lib.js";

/** Consecutive query heads share: the rule of every released model. */
const kvHead = (query, heads, kvHeads) => Math.floor((query * kvHeads) / heads);
/** The common mistake: dealing the KV heads out in turn. */
const dealtHead = (query, kvHeads) => query % kvHeads;
/** Query heads that share their KV head with `query`, itself included. */
function sharers(query, heads, kvHeads) {
  const size = heads / kvHeads,
    first = kvHead(query, heads, kvHeads) * size;
  return Array.from({ length: size }, (_, i) => first + i);
}
const cacheBytes = (kvHeads, headDim, layers, element) =>
  2 * kvHeads * headDim * layers * element;

function controls(data) {
  return [
    {
      kind: "slider",
      key: "heads",
      label: "Query heads H",
      min: 1,
      max: 128,
      value: data.heads,
      values: powers(1, 128),
    },
    {
      kind: "slider",
      key: "kvHeads",
      label: "KV heads G",
      min: 1,
      max: 128,
      value: data.kvHeads,
      values: powers(1, 128),
    },
    {
      kind: "slider",
      key: "headDim",
      label: "Head width",
      min: 1,
      max: 1024,
      value: data.headDim,
      values: powers(8, 512),
    },
    {
      kind: "slider",
      key: "layers",
      label: "Layers",
      min: 1,
      max: 256,
      value: data.layers,
      values: powers(1, 128),
    },
    {
      kind: "radio",
      key: "rule",
      label: "Who reads which?",
      value: "blocks",
      wide: true,
      options: [
        ["blocks", "neighbours share (right)"],
        ["dealt", "dealt in turn (a common mistake)"],
      ],
    },
    { kind: "hidden", key: "query", value: data.query },
  ];
}
const change = (s) => ({ ...s, query: Math.min(s.query, s.heads - 1) });

const reads = (s, query) =>
  s.rule === "dealt"
    ? dealtHead(query, s.kvHeads)
    : kvHead(query, s.heads, s.kvHeads);
const name = ({ heads, kvHeads }) =>
  kvHeads === heads ? "MHA" : kvHeads === 1 ? "MQA" : "GQA";

function card(s, kv, mine) {
  const queries = Array.from({ length: s.heads }, (_, q) => q).filter(
    (q) => reads(s, q) === kv,
  );
  const on = kv === mine;
  const heads = queries.map((q) =>
    pick({
      patch: { query: q },
      key: `q${q}`,
      on: q === s.query,
      text: q,
      label: `Query head ${q} reads KV head ${kv}`,
    }),
  );
  return (
    `<div class="card${on ? " on" : ""}"><div class="queries">${heads.join("")}</div>` +
    `<div class="stem" aria-hidden="true"></div><div class="kv">KV ${kv}</div></div>`
  );
}

const STYLE = `<style>
.map { display: grid; gap: .6rem; margin: .9rem 0 .3rem; }
.card { border: 1px solid var(--line); border-radius: .45rem; padding: 6px; display: flex; flex-direction: column; min-width: 0; }
.card.on { border: 2px solid var(--accent); padding: 5px; background: var(--tint); }
.queries { display: flex; flex-wrap: wrap; gap: 4px; justify-content: center; flex: 1; align-content: flex-end; }
.ds .pick { min-width: 28px; height: 28px; padding: 0 1px; font-size: .82rem; border-color: var(--field); }
.ds .pick[aria-pressed=true] { background: var(--fg); color: var(--bg); border-color: var(--fg); font-weight: 650; }
.stem { width: 1px; height: .7rem; background: var(--muted); margin: .15rem auto 0; }
.card.on .stem { width: 3px; background: var(--accent); }
.kv { text-align: center; border-radius: .3rem; padding: .1rem .5rem; font-size: .82rem; font-weight: 550; border: 1px solid var(--field); }
.card.on .kv { background: var(--accent); color: var(--bg); border-color: var(--accent); font-weight: 650; }
</style>`;

function broken(s) {
  const near = [-1, 1].map((step) => {
    for (let g = s.kvHeads; g >= 1 && g <= s.heads; g += step) {
      if (s.heads % g === 0) return g;
    }
    return s.heads;
  });
  const say =
    s.kvHeads > s.heads
      ? `${num(s.kvHeads)} KV heads for ${plural(s.heads, "query head")}: some would never be read. ` +
        `Choose at most ${s.heads}.`
      : `${num(s.kvHeads)} KV heads cannot be shared evenly by ${plural(s.heads, "query head")}: ` +
        `${s.heads} = ${s.kvHeads} × ${Math.floor(s.heads / s.kvHeads)} + ${s.heads % s.kvHeads}. ` +
        `The nearest numbers that divide ${s.heads} are ${near.join(" and ")}.`;
  return { html: `<p class="note">${esc("There is no such map.")}</p>`, say };
}

function view(s, { data }) {
  if (s.heads % s.kvHeads) return broken(s);
  const mine = reads(s, s.query),
    element = data.element;
  const cache = cacheBytes(s.kvHeads, s.headDim, s.layers, element);
  const full = cacheBytes(s.heads, s.headDim, s.layers, element);
  const cards = Array.from({ length: s.kvHeads }, (_, kv) => card(s, kv, mine));
  const rows = [
    ["MHA", s.heads],
    ["this map", s.kvHeads],
    ["MQA", 1],
  ].map(([kind, g]) => {
    const size = cacheBytes(g, s.headDim, s.layers, element);
    return [kind, num(g), `${num(size, 15)} B`, times(full / size)];
  });
  const least = 10 + 32 * Math.min(s.heads / s.kvHeads, 8);
  const html =
    STYLE +
    `<div class="map" style="grid-template-columns: repeat(auto-fill, minmax(min(100%, ${least}px), 1fr))" data-roving role="group" aria-label="Query heads above the KV head they read">${cards.join("")}</div>` +
    tiles([
      {
        name: `${name(s)}: one token`,
        value: bytes(cache),
        note: `2 × ${s.kvHeads} × ${s.headDim} × ${s.layers} layers × ${element} B`,
      },
      {
        name: "Smaller than MHA",
        value: times(full / cache),
        note: `${s.heads} / ${s.kvHeads} query heads per KV head`,
      },
    ]) +
    table(["Attention", "KV heads", "one token", "smaller by"], rows, {
      strong: 1,
      caption: "BF16 cache of all layers",
    });
  return { html, say: sentence(s, mine) };
}

function sentence(s, mine) {
  if (s.rule === "dealt" && s.kvHeads > 1 && s.kvHeads < s.heads) {
    const right = kvHead(s.query, s.heads, s.kvHeads);
    return (
      `Dealt in turn, query head ${s.query} reads KV head ${mine}` +
      (right === mine
        ? ", by chance the right one."
        : `; a released checkpoint expects ${right}. Shapes and cache sizes are the same, so only the values show the mistake.`)
    );
  }
  const others = sharers(s.query, s.heads, s.kvHeads).filter(
    (q) => q !== s.query,
  );
  const with_ =
    others.length === 0
      ? "alone"
      : others.length > 8
        ? `together with ${others.length} other heads`
        : `together with ${others.join(", ")}`;
  return `Query head ${s.query} reads KV head ${mine} = ⌊${s.query} × ${s.kvHeads} / ${s.heads}⌋, ${with_}.`;
}

export const formulas = { kvHead, dealtHead, sharers, cacheBytes };
export default define({ formulas, controls, change, view });
