// Recorded conversations of an agent, turn by turn.
// data: {words, prompt, stages, runs: [{seed, stages: [[{database, asked,
// tokens, mask, solved, advantage}]]}]}
import { bars, define, fold, heading, num, plural, table, tiles } from "./lib.js";

const ROLES = ["user", "assistant", "tool"];

/** Who speaks, from where, to where, for each message in turn. */
function split(mask, prompt) {
  const parts = [0, 0, prompt];
  for (let place = prompt; place < mask.length; place += 1) {
    const who = mask[place] ? 1 : 2;
    if (parts[parts.length - 3] === who) parts[parts.length - 1] = place + 1;
    else parts.push(who, place, place + 1);
  }
  return parts;
}
function messages(mask, prompt) {
  const flat = split(mask, prompt);
  return flat
    .filter((_, i) => i % 3 === 0)
    .map((who, i) => [ROLES[who], flat[3 * i + 1], flat[3 * i + 2]]);
}

/** Which messages a strategy leaves once the window is 80 % full. */
function kept(roles, sizes, window, strategy) {
  const all = roles.map((_, i) => i);
  const total = sizes.reduce((sum, size) => sum + size + 1, 0);
  if (strategy === "none" || total <= 0.8 * window) return all;
  const start = roles.lastIndexOf("user") + 1;
  const head = all.slice(0, start),
    history = all.slice(start);
  if (strategy === "discard_all") return head;
  let cut = Math.floor((3 * history.length) / 4);
  while (cut < history.length && roles[history[cut]] === "tool") cut += 1;
  return [...head, ...history.slice(cut)];
}

const MOST = 12;
const NAMES = { user: "question", assistant: "policy", tool: "tool" };
const STRATEGIES = [
  ["none", "keep everything"],
  ["discard_75", "drop the older three quarters"],
  ["discard_all", "drop the whole history"],
];

function controls(data) {
  const { stages } = data,
    count = data.runs[0].stages[0].length;
  return [
    {
      kind: "radio",
      key: "stage",
      label: "Policy",
      value: stages.length - 1,
      options: stages.map((name, i) => [i, name]),
    },
    {
      kind: "radio",
      key: "run",
      label: "Seed",
      value: 0,
      options: data.runs.map((run, i) => [i, String(run.seed)]),
    },
    {
      kind: "slider",
      key: "attempt",
      label: "Attempt, four at each task",
      min: 1,
      max: count,
      value: 1,
      step: 1,
    },
    {
      kind: "steps",
      key: "turn",
      label: "Message",
      unit: `of ${MOST} at most`,
      wide: true,
      min: 1,
      max: MOST,
      value: MOST,
      interval: 1200,
    },
    {
      kind: "slider",
      key: "window",
      label: "Window of the context",
      min: 4,
      max: 64,
      value: 24,
      step: 1,
      unit: "tokens",
      group: "Context management",
    },
    {
      kind: "radio",
      key: "strategy",
      label: "When it is 80 % full",
      value: "discard_all",
      options: STRATEGIES,
      wide: true,
      group: "Context management",
    },
  ];
}

function chosen(s, data) {
  return data.runs[s.run].stages[s.stage];
}

function view(s, { data, width }) {
  const group = chosen(s, data),
    talk = group[s.attempt - 1];
  const parts = messages(talk.mask, data.prompt);
  const seen = parts.slice(0, s.turn);
  const roles = seen.map(([role]) => role);
  const sizes = seen.map(([, from, to]) => to - from);
  const left = new Set(kept(roles, sizes, s.window, s.strategy));
  const say = (from, to) =>
    talk.tokens
      .slice(from, to)
      .map((x) => data.words[x])
      .join(" ");
  const rows = seen.map(([role, from, to], i) => [
    NAMES[role],
    say(from, to),
    role === "assistant" ? plural(to - from, "word") : "masked",
    left.has(i) ? "stays" : "dropped",
  ]);
  const own = sum(sizes.filter((_, i) => roles[i] === "assistant"));
  const ended = seen.length === parts.length;
  const truth = talk.asked.map((k) => talk.database[k]);
  const after = sum(sizes.map((x, i) => (left.has(i) ? x + 1 : 0)));
  const html =
    tiles([
      {
        name: "verifier",
        value: ended ? (talk.solved ? "right" : "wrong") : "waits",
        note: `expects ${(truth[0] + truth[1]) % 10}`,
      },
      {
        name: "advantage",
        value: ended ? num(talk.advantage) : "–",
        note: "reward less the group's mean",
      },
      {
        name: "trained",
        value: `${own} of ${sum(sizes)}`,
        note: "words of the policy",
      },
      {
        name: "context",
        value: `${after} of ${s.window}`,
        note: "tokens with one marker per message",
      },
    ]) +
    table(["who", "words", "in the loss", "in the context"], rows, {
      strong: rows.length - 1,
      caption: `Attempt ${s.attempt}: the database holds ${truth.join(" and ")} under the keys asked`,
    }) +
    fold(
      "the four attempts at this task",
      peers(group, s.attempt - 1, width),
    );
  return { html: heading("One conversation") + html, say: sentence(talk, ended, own, sum(sizes)) };
}

const sum = (list) => list.reduce((a, b) => a + b, 0);

function peers(group, at, width) {
  const first = 4 * Math.floor(at / 4);
  const items = group.slice(first, first + 4).map((talk, i) => ({
    name: `attempt ${first + i + 1}`,
    value: sum(talk.mask),
    series: talk.solved ? 0 : 1,
    strong: first + i === at,
    text: `${sum(talk.mask)} words, ${talk.solved ? "right" : "wrong"}, advantage ${num(talk.advantage)}`,
  }));
  return bars({
    width,
    items,
    desc: items.map((d) => `${d.name}: ${d.text}`).join("; "),
  });
}

function sentence(talk, ended, own, all) {
  const end = ended
    ? `The verifier says ${talk.solved ? "right" : "wrong"}; every word of the policy gets the advantage ${num(talk.advantage)}.`
    : "The conversation goes on.";
  return `${own} of ${all} words so far are the policy's own and are trained. ${end}`;
}

export const formulas = { split, kept };
export default define({ formulas, controls, view });
