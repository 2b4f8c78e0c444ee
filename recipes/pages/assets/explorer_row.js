"use strict";
// A row: its tokens, and who sees whom. The rule is that of flexmask.attention.masks: query q sees key k where
// k <= q and q < until[k]. So what sees a token is one stretch of the row, and what it sees are a few: its path.

class Row {
  // data: of the page; layout, number: which row of a conversation; its tokens may stand in a row of the first layout.
  constructor(vocabulary, conversation, layout, number) {
    const known = layout.rows[number];
    this.known = known;
    this.vocabulary = vocabulary;
    this.tokens = known.tokens
      ? Int32Array.from(known.tokens)
      : Int32Array.from(known.spans.flatMap(([start, end]) => conversation.layouts[0].rows[known.of].tokens.slice(start, end)));
    this.length = this.tokens.length;
    this.role = spread(known.roles, Uint8Array, this.length);
    this.weight = spread(known.weights, Float64Array, this.length);
    this.start = known.nodes.start;
    this.end = known.nodes.end;
    this.parent = known.nodes.parent;
    this.lay();
    this.segments = this.cut();
  }

  // Nodes stand in depth-first order, so a parent is laid before its children, and its subtree ends with theirs.
  lay() {
    this.node = new Int32Array(this.length);
    this.previous = new Int32Array(this.length);
    this.position = new Int32Array(this.length);
    this.until = new Int32Array(this.length);
    this.children = this.start.map(() => []);
    const reach = this.end.slice();
    for (let n = this.start.length - 1; n >= 0; n--) {
      const parent = this.parent[n];
      if (parent >= 0) {
        reach[parent] = Math.max(reach[parent], reach[n]);
        this.children[parent].unshift(n);
      }
    }
    for (let n = 0; n < this.start.length; n++) {
      const before = this.parent[n] < 0 ? -1 : this.end[this.parent[n]] - 1;
      const first = before < 0 ? 0 : this.position[before] + 1;
      for (let i = this.start[n]; i < this.end[n]; i++) {
        this.node[i] = n;
        this.previous[i] = i === this.start[n] ? before : i - 1;
        this.position[i] = first + i - this.start[n];
        this.until[i] = reach[n];
      }
    }
  }

  // Stretches of one node and one role, as flexmask.tree.segments has them.
  cut() {
    const found = [];
    for (let n = 0; n < this.start.length; n++) {
      for (let at = this.start[n]; at < this.end[n]; ) {
        let end = at;
        while (end < this.end[n] && this.role[end] === this.role[at]) end++;
        found.push({ start: at, end, node: n, role: this.role[at], until: this.until[at] });
        at = end;
      }
    }
    return found;
  }

  sees(query, key) {
    return key <= query && query < this.until[key];
  }

  // What a token sees, itself with it: stretches [start, end) in the order of the row.
  path(token) {
    const found = [];
    let end = token + 1;
    for (let n = this.node[token]; n >= 0; n = this.parent[n]) {
      const start = this.start[n];
      if (found.length && found[0][0] === end) found[0][0] = start;
      else found.unshift([start, end]);
      if (this.parent[n] >= 0) end = this.end[this.parent[n]];
    }
    return found;
  }

  // Who sees a token, without itself: at most one stretch.
  seers(token) {
    return token + 1 < this.until[token] ? [[token + 1, this.until[token]]] : [];
  }

  // The tokens that are predicted from one.
  next(token) {
    if (token < this.end[this.node[token]] - 1) return [token + 1];
    return this.children[this.node[token]].map((n) => this.start[n]);
  }

  // The passes that a token stands in, by their number in the row, and those of them that generate it.
  passes(token) {
    const { last, prompt_length: prompts } = this.known.passes;
    const on = [...last.keys()].filter((p) => this.sees(last[p], token));
    return { on, generated: on.filter((p) => this.position[token] >= prompts[p]) };
  }

  // Where each pass begins to generate, in the order of the row.
  generations() {
    const { last, prompt_length: prompts } = this.known.passes;
    const first = last.map((end, p) => {
      for (const [start, stop] of this.path(end)) {
        const at = start + prompts[p] - this.position[start];
        if (at < stop) return Math.max(at, start);
      }
      return end;
    });
    return [...new Set(first)].sort((a, b) => a - b);
  }

  segmentOf(token) {
    return lastAtMost(this.segments.length, (i) => this.segments[i].start, token);
  }

  text(token) {
    return this.vocabulary.text[this.tokens[token]];
  }
}

function spread(runs, Kind, length) {
  const found = new Kind(length);
  let at = 0;
  for (const [value, count] of runs) found.fill(value, at, (at += count));
  return found;
}

// The greatest i below `count` with of(i) <= value; `of` ascends.
function lastAtMost(count, of, value) {
  let low = 0, high = count - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (of(middle) <= value) low = middle;
    else high = middle - 1;
  }
  return low;
}

// What cannot be seen as it stands: white space but the blank, control and format characters.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cn}\p{Co}\p{Cs}\p{Zl}\p{Zp}]|[^\S ]/gu;

function visible(text) {
  if (text === "") return "\u25ab";
  return text.replace(UNSEEN, (sign) => {
    if (sign === "\n") return "\u21b5\n";
    if (sign === "\t") return "\u2192\t";
    const code = sign.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    return `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
  });
}

const counted = (n) => n.toLocaleString("en-US");

// Stretches in words, as first and last index.
function intervals(stretches, most = 6) {
  const said = stretches.slice(0, most).map(([a, b]) => (b - a === 1 ? counted(a) : `${counted(a)}\u2013${counted(b - 1)}`));
  return said.join(", ") + (stretches.length > most ? ` and ${stretches.length - most} more stretches` : "");
}

const sizeOf = (stretches) => stretches.reduce((sum, [a, b]) => sum + b - a, 0);

// Consecutive numbers as a range.
function ranges(numbers) {
  const runs = [];
  for (const n of numbers) {
    const last = runs[runs.length - 1];
    if (last && last[1] === n) last[1] = n + 1;
    else runs.push([n, n + 1]);
  }
  return intervals(runs, 12);
}

// An element with attributes and children; text is text and never markup.
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}
