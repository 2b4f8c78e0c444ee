"use strict";
// The page: what is chosen, and what each part shows of it.

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const ROLES = data.roles;
const ABOUT = {
  one_pass: (unit) => `all ${unit}s as one tree in one row`,
  per_turn: (unit) => `one row a ${unit}: the exact baseline`,
  keep_thinking: () => "thinking stays in the history: not the same training",
  last_turn: (unit) => `the last ${unit} only: not the same training`,
};

const text = new TextView(at("text"), ROLES);
const tree = new TreeView(at("tree"), ROLES, (token) => choose(token));
const mask = new MaskView(at("mask"), at("mask-overlay"), {
  hover: (query, key) => (query === null ? light(chosen) : light(query, key)),
  choose: (query, key) => choose(query, { key }),
});
mask.roles = ROLES;

let conversation, layout, row, generations;
let chosen = null; // the token that stays lit
let lit = { token: null, key: null };

// ---- what is looked at ----

function showConversation(number) {
  conversation = data.conversations[number];
  at("name").textContent = conversation.name;
  at("about").textContent = [conversation.heldout ? "held out" : "", conversation.calls ? `${conversation.calls.length} ${conversation.calls.length === 1 ? "call" : "calls"}` : ""].filter(Boolean).join(", ");
  at("notes").replaceChildren(...conversation.notes.map((note) => make("li", {}, note)));
  showComparison();
  const first = conversation.layouts.find((one) => one.name === data.layout && one.rows?.length);
  showLayout((first ?? conversation.layouts[0]).name);
}

function showLayout(name) {
  layout = conversation.layouts.find((one) => one.name === name);
  at("layout").value = name;
  for (const line of at("comparison").tBodies[0].rows) line.toggleAttribute("data-shown", line.dataset.layout === name);
  for (const button of at("comparison").querySelectorAll("button")) button.setAttribute("aria-pressed", button.dataset.layout === name);
  const unit = conversation.calls ? "call" : "turn";
  at("row").replaceChildren(...layout.rows.map((one, i) => make("option", { value: i }, `${i + 1} of ${layout.rows.length}: ${unit}s ${ranges(one.turns)}`)));
  at("row-choice").hidden = layout.rows.length < 2;
  at("dropped").textContent = layout.dropped.length ? `Left out, longer than a pack: ${unit}s ${ranges(layout.dropped)}.` : "";
  at("explorer").classList.toggle("empty", !layout.rows.length);
  at("nothing").hidden = layout.rows.length > 0;
  if (layout.rows.length) showRow(0);
}

function showRow(number) {
  at("row").value = number;
  row = new Row(data.vocabulary, conversation, layout, number);
  row.unit = conversation.calls ? "call" : "turn";
  row.names = conversation.calls;
  generations = row.generations();
  chosen = null;
  const known = row.known;
  const [skipped, partial, full] = known.blocks.counts;
  const pairs = row.position.reduce((sum, p) => sum + p + 1, 0);
  at("totals").textContent = `${counted(row.length)} tokens, ${counted(known.weights.reduce((n, [w, count]) => n + (w > 0) * count, 0))} trained, ${counted(pairs)} visible pairs`;
  at("blocks").textContent = `Blocks of ${known.blocks.size} tokens: ${counted(skipped)} skipped, ${counted(partial)} partial, ${counted(full)} full`;
  at("mask-overlay").setAttribute("aria-label", `Mask of ${counted(row.length)} tokens. Lines are queries, columns keys. ${at("blocks").textContent}. Arrow keys move a cell, plus and minus zoom, 0 fits.`);
  text.show(row);
  tree.show(row);
  mask.show(row);
  light(null);
}

function showComparison() {
  const cells = (one) => [
    counted(one.rows.length),
    counted(one.tokens),
    counted(one.trained),
    counted(one.pairs),
    counted(one.in_blocks),
    one.faster === null ? "unknown" : `${one.faster.toFixed(2)}\u00d7`,
  ];
  at("comparison").tBodies[0].replaceChildren(
    ...conversation.layouts.map((one) => {
      const name = one.refused ? one.name : make("button", { type: "button", class: "link", "data-layout": one.name, onclick: () => showLayout(one.name) }, one.name);
      const head = make("th", { scope: "row" }, name, make("span", { class: "faint" }, ABOUT[one.name](conversation.calls ? "call" : "turn")));
      const rest = one.refused ? [make("td", { colspan: 6, class: "warn" }, `cannot be formed: ${one.refused}`)] : cells(one).map((cell) => make("td", { class: "number" }, cell));
      return make("tr", { "data-layout": one.name }, head, ...rest);
    }),
  );
  const formed = conversation.layouts.filter((one) => !one.refused);
  at("layout").replaceChildren(...formed.map((one) => make("option", { value: one.name }, one.name)));
}

// ---- what is lit ----

// Light what a token sees and who sees it; key: of a cell of the mask.
function light(token, key = null) {
  lit = { token, key };
  const path = token === null ? [] : row.path(token);
  const seers = token === null ? [] : row.seers(token);
  text.light("seen", path);
  text.light("seers", seers);
  text.light("chosen", token === null ? [] : [[token, token + 1]]);
  text.light("parent", token !== null && row.previous[token] >= 0 ? [[row.previous[token], row.previous[token] + 1]] : []);
  text.light("key", key === null || key === token ? [] : [[key, key + 1]]);
  mask.light(token, key);
  tree.light(token);
  tell(token, path, seers);
  at("cell").textContent = key === null ? "" : cellInWords(token, key);
}

// Keep a token lit, with its text and its cell of the mask in sight.
function choose(token, { key = null, reveal = true } = {}) {
  chosen = token;
  if (key === null) mask.cell = null;
  light(token, key);
  if (token === null) return;
  if (reveal) text.reveal(token);
  at("said").textContent = key === null ? inWords(token) : cellInWords(token, key);
}

const quoted = (token) => `\u201c${visible(row.text(token)).replace("\u21b5\n", "\u21b5").replace("\u2192\t", "\u2192")}\u201d`;

function cellInWords(query, key) {
  return `Query ${counted(query)} ${quoted(query)} ${row.sees(query, key) ? "sees" : "does not see"} key ${counted(key)} ${quoted(key)}`;
}

function inWords(token) {
  const path = row.path(token), seers = row.seers(token);
  return `Token ${counted(token)} ${quoted(token)}, ${ROLES[row.role[token]].label}, position ${counted(row.position[token])}, ${weightInWords(token)}. It sees ${intervals(path, 3)}. ${seers.length ? `Seen by ${intervals(seers)}.` : "No other token sees it."}`;
}

function weightInWords(token) {
  const weight = row.weight[token];
  return weight > 0 ? `loss weight ${Number(weight.toPrecision(6))}` : "loss weight 0: not trained";
}

function tell(token, path, seers) {
  at("token").hidden = token === null;
  at("no-token").hidden = token !== null;
  if (token === null) return;
  const { on, generated } = row.passes(token);
  const turns = row.known.passes.turn;
  const name = (passes) => {
    const numbers = passes.map((p) => turns[p]).sort((a, b) => a - b);
    if (row.names && numbers.length <= 2) return numbers.map((t) => row.names[t]).join(", ");
    return `${row.unit}${numbers.length > 1 ? "s" : ""} ${ranges(numbers)}`;
  };
  const before = row.previous[token];
  const index = row.tokens[token];
  const { id, piece, special } = data.vocabulary;
  at("token-text").textContent = visible(row.text(token));
  at("token-about").textContent = row.text(token) === "" ? "no text of its own: part of a character that a later token ends" : special[index] ? "special token" : "";
  at("token-role").textContent = ROLES[row.role[token]].label;
  at("token-role").dataset.role = ROLES[row.role[token]].name;
  const told = {
    "token-index": `${counted(token)} of ${counted(row.length)}`,
    "token-position": counted(row.position[token]),
    "token-weight": weightInWords(token),
    "token-parent": before < 0 ? "nothing: it begins the row's tree" : `${counted(before)} ${quoted(before)}`,
    "token-generated": generated.length ? name(generated) : "no pass: context",
    "token-passes": name(on),
    "token-sees": `${counted(sizeOf(path))}: ${intervals(path)}`,
    "token-seers": seers.length ? `${counted(sizeOf(seers))}: ${intervals(seers)}` : "no other",
    "token-id": `${id[index]}  ${piece[index]}`,
  };
  for (const [id, said] of Object.entries(told)) at(id).textContent = said;
}

// ---- moving ----

const MOVES = {
  previous: (token) => token - 1,
  next: (token) => token + 1,
  first: () => 0,
  last: () => row.length - 1,
  parent: (token) => row.previous[token],
  child: (token) => row.next(token)[0],
  // The next branch of what the token continues: another token that is predicted from the same one.
  sibling: (token) => {
    const before = row.previous[token];
    const all = before < 0 ? row.start.filter((_, n) => row.parent[n] < 0) : row.next(before);
    return all[(all.indexOf(token) + 1) % all.length];
  },
  "segment-next": (token) => row.segments[row.segmentOf(token) + 1]?.start,
  "segment-previous": (token) => {
    const number = row.segmentOf(token);
    return row.segments[token > row.segments[number].start ? number : number - 1]?.start;
  },
  "turn-next": (token) => generations.find((one) => one > token),
  "turn-previous": (token) => generations.findLast((one) => one < token),
};
const KEYS = {
  ArrowLeft: "previous", ArrowRight: "next", Home: "first", End: "last", ArrowDown: "segment-next", ArrowUp: "segment-previous",
  p: "parent", c: "child", b: "sibling", t: "turn-next", T: "turn-previous",
};

function go(move) {
  const to = chosen === null && !["first", "last"].includes(move) ? (move.startsWith("turn") ? MOVES[move](-1) : 0) : MOVES[move](chosen);
  if (to === undefined || to < 0 || to >= row.length) {
    at("said").textContent = { parent: "It is predicted from nothing.", child: "Nothing is predicted from it." }[move] ?? "There is no further one.";
    return;
  }
  choose(to);
}

at("text").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") choose(null);
  else if (KEYS[event.key]) go(KEYS[event.key]);
  else return;
  event.preventDefault();
});
for (const button of document.querySelectorAll("[data-move]")) button.addEventListener("click", () => go(button.dataset.move));
at("token-parent").addEventListener("click", () => go("parent"));

at("text").addEventListener("pointermove", (event) => {
  if (event.pointerType === "touch" || event.buttons) return;
  // Lit within the event; several between two pictures light once more each, which takes a millisecond.
  const token = text.tokenAt(event.clientX, event.clientY);
  if (token !== null && (token !== lit.token || lit.key !== null)) light(token);
});
at("text").addEventListener("pointerleave", () => light(chosen));
at("text").addEventListener("click", (event) => {
  if (String(getSelection())) return; // text is being copied
  const token = text.tokenAt(event.clientX, event.clientY);
  if (token !== null) choose(token, { reveal: false });
});

at("conversation").append(...data.conversations.map((one, i) => make("option", { value: i }, one.name)));
at("conversation-choice").hidden = data.conversations.length < 2;
at("conversation").addEventListener("change", (event) => showConversation(Number(event.target.value)));
at("layout").addEventListener("change", (event) => showLayout(event.target.value));
at("row").addEventListener("change", (event) => showRow(Number(event.target.value)));
for (const choice of document.querySelectorAll("[name=level]")) {
  choice.addEventListener("change", () => {
    mask.byBlocks = choice.value === "blocks";
    at("mask-legend").dataset.level = choice.value;
    mask.fit();
  });
}
at("zoom-in").addEventListener("click", () => mask.closer(0.5));
at("zoom-out").addEventListener("click", () => mask.closer(2));
at("zoom-fit").addEventListener("click", () => mask.fit());
at("zoom-token").addEventListener("click", () => {
  if (chosen === null) at("said").textContent = "Choose a token first.";
  else mask.center(chosen, lit.key ?? chosen, 48);
});

at("no-light").hidden = CAN_LIGHT;
showConversation(0);
requestAnimationFrame(() => performance.mark("explorer: drawn"));
