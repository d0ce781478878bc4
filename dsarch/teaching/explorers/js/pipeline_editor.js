// Pipeline schedules: programs, a simulator that times them, a Gantt chart.
// data: {checks}; the same programs as dsarch.train.pipeline, in its order.
import {
  define,
  fold,
  heading,
  num,
  plural,
  px,
  svg,
  table,
  text,
  tiles,
} from "./lib.js";

const repeat = (n, list) =>
  Array.from({ length: Math.max(0, n) }, () => list).flat();
const range = (n) => Array.from({ length: Math.max(0, n) }, (_, i) => i);

/** `lead` forwards ahead, then one forward and one backward in turn. */
function turns(lead, count) {
  lead = Math.min(lead, count);
  const list = range(lead).map((k) => ["F", k]);
  for (let k = 0; k < count - lead; k += 1) list.push(["F", k + lead], ["B", k]);
  for (let k = count - lead; k < count; k += 1) list.push(["B", k]);
  return list;
}
const alone = (stage, list) => list.map(([kind, k]) => [[kind, stage, k]]);

function zeroBubble(stages, micros) {
  return range(stages).map((stage) => {
    const row = [];
    for (const [kind, m] of turns(stages - 1 - stage, micros)) {
      row.push([[kind === "B" ? "I" : "F", stage, m]]);
      if (kind === "B" && m >= stage) row.push([["W", stage, m - stage]]);
    }
    for (let m = Math.max(0, micros - stage); m < micros; m += 1)
      row.push([["W", stage, m]]);
    return row;
  });
}
function interleaved(stages, micros, chunks) {
  return range(stages).map((device) => {
    const lead = 2 * (stages - 1 - device) + (chunks - 1) * stages;
    return turns(lead, micros * chunks).map(([kind, k]) => {
      const turn = Math.floor(k / stages) % chunks;
      const chunk = kind === "F" ? turn : chunks - 1 - turn;
      const micro = Math.floor(k / (stages * chunks)) * stages + (k % stages);
      return [[kind, chunk * stages + device, micro]];
    });
  });
}
function dualSteps(pairs, near, micros) {
  const inner = pairs - near - 1;
  const steps = [
    ...repeat(2 * inner, ["F0"]),
    ...repeat(near + 1, ["F0", "F1"]),
    ...repeat(inner, ["I1", "W", "F1"]),
  ];
  const main = repeat(micros - 2 * pairs + near + 1, ["F0B1", "F1B0"]);
  if (!inner) main.splice(0, 1, "F0", "B1");
  const tail = repeat(near + 1, ["B1", "B0"]);
  return [
    ...steps,
    ...main,
    ...repeat(inner, ["B1", "F1B0"]),
    ...tail.map((step, k) => (k <= near ? step : `I${step[1]}`)),
    ...repeat(inner, ["W", "I0"]),
    ...repeat(near + 1, ["W"]),
  ];
}
function dualRow(steps, stages, first) {
  const count = { F0: first[0], B0: first[0], F1: first[1], B1: first[1] };
  const delayed = [],
    row = [];
  for (const step of steps) {
    if (step === "W") {
      const [, stage, micro] = delayed.shift();
      row.push([["W", stage, micro]]);
      continue;
    }
    const item = [];
    for (let i = 0; i < step.length; i += 2) {
      const kind = step[i],
        d = +step[i + 1],
        key = (kind === "I" ? "B" : kind) + d;
      item.push([kind, stages[d], count[key]]);
      count[key] += 1;
    }
    delayed.push(...item.filter(([kind]) => kind === "I"));
    row.push(item);
  }
  return row;
}
function dualpipe(stages, micros) {
  const half = micros / 2;
  return range(stages).map((device) => {
    const near = Math.min(device, stages - 1 - device);
    const first = device === near ? 0 : half;
    return dualRow(
      dualSteps(stages / 2, near, half),
      [near, stages - 1 - near],
      [first, half - first],
    );
  });
}
const PROGRAMS = {
  gpipe: (p, m) => range(p).map((s) => alone(s, turns(m, m))),
  "1f1b": (p, m) => range(p).map((s) => alone(s, turns(p - 1 - s, m))),
  interleaved,
  zero_bubble: zeroBubble,
  dualpipe,
};
const NAMES = {
  gpipe: "GPipe",
  "1f1b": "1F1B",
  interleaved: "interleaved 1F1B",
  zero_bubble: "zero bubble (ZB-H1)",
  dualpipe: "DualPipe",
};

/** Each item as early as its device and its inputs allow. */
function simulate(program, [forward, backward, weight, pair], share) {
  const depth = 1 + Math.max(...program.flat(2).map(([, stage]) => stage));
  const done = new Map(),
    slots = [],
    next = program.map(() => 0),
    free = program.map(() => 0);
  const end = (kind, stage, micro) =>
    done.get(`${kind}${stage}.${micro}`) ??
    (kind === "B" ? done.get(`I${stage}.${micro}`) : undefined);
  const inputs = ([kind, stage, micro]) => {
    if (kind === "F") return stage ? [["F", stage - 1, micro]] : [];
    if (kind === "W") return [["I", stage, micro]];
    const own = ["F", stage, micro];
    return stage === depth - 1 ? [own] : [own, ["B", stage + 1, micro]];
  };
  const took = { F: forward, B: backward, I: backward - weight, W: weight };
  for (let before = -1; before < slots.length; ) {
    before = slots.length;
    program.forEach((row, device) => {
      for (; next[device] < row.length; next[device] += 1) {
        const item = row[next[device]];
        const ends = item.flatMap(inputs).map((need) => end(...need));
        if (ends.some((x) => x === undefined)) break;
        const start = Math.max(free[device], ...ends);
        free[device] =
          start + share * (item.length === 2 ? pair : took[item[0][0]]);
        for (const [k, s, m] of item) done.set(`${k}${s}.${m}`, free[device]);
        slots.push({ device, start, end: free[device], item });
      }
    });
  }
  return slots;
}

/** Time of a step, longest waiting of a device, idle share, most activations. */
function measured(name, stages, micros, chunks, times) {
  const slots = timeline(name, stages, micros, chunks, times);
  const last = Math.max(...slots.map((slot) => slot.end));
  const idle = range(stages).map(() => last),
    held = range(stages).map(() => 0),
    most = range(stages).map(() => 0);
  for (const slot of [...slots].sort((a, b) => a.start - b.start)) {
    const d = slot.device;
    idle[d] -= slot.end - slot.start;
    held[d] += slot.item.filter(([kind]) => kind === "F").length;
    most[d] = Math.max(most[d], held[d]);
    held[d] -= slot.item.filter(([kind]) => "BI".includes(kind)).length;
  }
  const share = idle.reduce((a, b) => a + b, 0) / stages / last;
  return [last, Math.max(...idle), share, Math.max(...most)];
}
const timeline = (name, stages, micros, chunks, times) => {
  const v = name === "interleaved" ? chunks : 1;
  return simulate(PROGRAMS[name](stages, micros, v), times, 1 / v);
};
/** The closed formula of each bubble. */
function bubble(name, p, chunks, [f, b, w, pair]) {
  if (name === "dualpipe") return (p / 2 - 1) * (pair + b - 3 * w);
  if (name === "zero_bubble") return (p - 1) * (f + b - 2 * w);
  return ((p - 1) * (f + b)) / (name === "interleaved" ? chunks : 1);
}

const slider = (key, label, min, max, value, more = {}) => ({
  kind: "slider",
  key,
  label,
  min,
  max,
  value,
  ...more,
});
function controls() {
  const whole = (low, high) => ({ values: range(high - low + 1).map((i) => i + low) });
  const halves = (low, high) => ({
    real: true,
    values: range(4 * (high - low) + 1).map((i) => low + i / 4),
  });
  return [
    {
      kind: "select",
      key: "schedule",
      label: "Schedule",
      value: "1f1b",
      options: Object.entries(NAMES),
    },
    slider("stages", "Devices, one or two stages each", 2, 16, 8, whole(2, 16)),
    slider("micros", "Micro-batches", 2, 32, 20, whole(2, 32)),
    {
      kind: "radio",
      key: "chunks",
      label: "Chunks of each device",
      value: 2,
      options: [2, 3, 4].map((n) => [n, `${n}`]),
      when: (s) => s.schedule === "interleaved",
    },
    slider("forward", "Forward", 0.25, 4, 1, halves(0.25, 4)),
    slider("backward", "Backward, whole", 0.25, 8, 2, halves(0.25, 8)),
    slider("weight", "Of it for weights (%)", 0, 100, 50, {
      values: range(21).map((i) => 5 * i),
      when: (s) => ["zero_bubble", "dualpipe"].includes(s.schedule),
    }),
    slider("hidden", "Hidden by pairing (%)", 0, 50, 0, {
      values: range(11).map((i) => 5 * i),
      when: (s) => s.schedule === "dualpipe",
    }),
  ];
}
/** The sizes that a schedule can run with. */
function change(s) {
  let { stages, micros } = s;
  if (s.schedule === "interleaved")
    micros = Math.min(
      Math.max(stages, Math.round(micros / stages) * stages),
      Math.floor(32 / stages) * stages,
    );
  if (s.schedule === "dualpipe") {
    stages += stages % 2;
    micros = Math.max(2 * stages, micros + (micros % 2));
  }
  return { ...s, stages, micros };
}
const timesOf = (s) => {
  const weight = (s.backward * s.weight) / 100;
  const pair = (s.forward + s.backward) * (1 - s.hidden / 100);
  return [s.forward, s.backward, weight, pair];
};

const SERIES = { F: 0, B: 1, I: 3, W: 2 };
function chart(slots, stages, last, width) {
  const left = 26,
    row = Math.max(14, Math.min(26, 300 / stages)),
    x = (t) => px(left + (t / last) * (width - left - 4));
  const body = range(stages).map((d) =>
    text(left - 6, d * row + row * 0.7, `${d}`, { anchor: "end", kind: "tick" }),
  );
  for (const { device, start, end, item } of slots)
    item.forEach(([kind], i) => {
      const high = (row - 2) / item.length;
      const box =
        `x="${x(start)}" y="${px(device * row + i * high)}" ` +
        `width="${px(Math.max(x(end) - x(start) - 0.6, 0.3))}" ` +
        `height="${px(high)}"`;
      body.push(`<rect class="bar s${SERIES[kind]}" ${box}/>`);
    });
  const desc = `What ${stages} devices do over ${num(last)} units of time`;
  return svg(width, stages * row + 2, desc, body.join(""));
}
const key = (kinds) =>
  `<ul class="legend">${kinds
    .map(
      ([kind, name]) =>
        `<li><svg width="16" height="12" aria-hidden="true">` +
        `<rect class="bar s${SERIES[kind]}" width="14" height="12"/></svg>` +
        `${name}</li>`,
    )
    .join("")}</ul>`;

function view(s, { width }) {
  const times = timesOf(s);
  const slots = timeline(s.schedule, s.stages, s.micros, s.chunks, times);
  const found = measured(s.schedule, s.stages, s.micros, s.chunks, times);
  const [last, waits, share, held] = found;
  const formula = bubble(s.schedule, s.stages, s.chunks, times);
  const agree = Math.abs(waits - formula) < 1e-9 * (1 + last);
  const kinds = new Set(slots.flatMap((slot) => slot.item.map(([k]) => k)));
  const names = [
    ["F", "forward"],
    ["B", "backward"],
    ["I", "its input part"],
    ["W", "its weight part"],
  ].filter(([k]) => kinds.has(k));
  const rows = Object.keys(NAMES).map((name) => {
    const c = change({ ...s, schedule: name });
    const got = measured(name, c.stages, c.micros, c.chunks, times);
    const sizes = `${c.stages} × ${c.micros}`;
    return [NAMES[name], sizes, num(got[1]), `${num(100 * got[2])} %`, num(got[3])];
  });
  const html =
    tiles([
      { name: "Bubble", value: num(waits), note: agree ? "as the formula says" : `the formula says ${num(formula)}` },
      { name: "Devices idle", value: `${num(100 * share)} %`, note: "of all their time" },
      { name: "One step", value: num(last), note: `${num(s.micros * (s.forward + s.backward))} of it is work without pairing` },
      { name: "Activations held", value: num(held), note: "stage inputs, at the worst moment" },
    ]) +
    heading("What each device does", "time to the right") +
    key(names) +
    chart(slots, s.stages, last, width) +
    fold(
      "All five schedules",
      table(["Schedule", "devices × micro-batches", "bubble", "idle", "held"], rows, {
        caption: "The same times",
        strong: Object.keys(NAMES).indexOf(s.schedule),
      }),
    );
  const say =
    `${NAMES[s.schedule]}, ${plural(s.stages, "device")}, ${plural(s.micros, "micro-batch", "micro-batches")}: ` +
    `bubble ${num(waits)}, ${num(100 * share)} % of the time idle, ` +
    `${num(held)} activations held.`;
  return { html, say };
}

export const formulas = { measured, bubble };
export default define({ formulas, controls, change, view });
