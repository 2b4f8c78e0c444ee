"use strict";
// The row as text. Tokens are stretches of a few text nodes and no elements of their own: what is lit are ranges
// (CSS Custom Highlights), so that lighting thirty thousand tokens changes no element and lays nothing out anew.

const CHUNK = 256; // tokens of a block
const LONG = 64; // from which on the browser may leave a block unpainted while it is out of sight
const LONGEST_CHUNK = 1024; // where no line ends before
const LINE = 26; // px, as explorer.css has it

const CAN_LIGHT = "highlights" in CSS;

class TextView {
  constructor(scroller, roles) {
    this.scroller = scroller;
    this.roles = roles;
    this.runOf = new WeakMap();
  }

  show(row) {
    this.row = row;
    this.runs = []; // stretches of one weight in a block: {start, end, node}
    this.offset = new Int32Array(row.length); // of each token in the text node of its run
    this.clear();
    this.scroller.replaceChildren(...row.segments.map((segment, i) => this.segment(segment, i)));
    this.scroller.scrollTop = 0;
  }

  segment(segment, number) {
    const { row } = this;
    const role = this.roles[segment.role];
    const count = segment.end - segment.start;
    const first = row.position[segment.start];
    const { generated } = row.passes(segment.start);
    const weights = new Set(row.weight.subarray(segment.start, segment.end));
    const trained = [...weights].filter((w) => w > 0);
    const said = !trained.length ? "not trained" : `trained, loss weight ${trained.join(" and ")}${weights.has(0) ? " in part" : ""}`;
    const of = generated.length ? `${row.unit} ${ranges(generated.map((p) => row.known.passes.turn[p]))}, ` : "";
    const head = make("p", { class: "head" }, make("b", {}, role.label), ` ${of}${counted(count)} token${count === 1 ? "" : "s"}, positions ${counted(first)}\u2013${counted(first + count - 1)}, ${said}`);
    const body = [];
    for (let at = segment.start; at < segment.end; ) {
      const end = this.endOfChunk(at, segment.end);
      body.push(this.chunk(at, end));
      at = end;
    }
    return make("section", { class: "segment", "data-role": role.name, "data-segment": number }, head, ...body);
  }

  endOfChunk(start, end) {
    for (let at = Math.min(start + CHUNK, end); at < end; at++) {
      if (this.row.text(at - 1).endsWith("\n") || at - start >= LONGEST_CHUNK) return at;
    }
    return end;
  }

  chunk(start, end) {
    const { row } = this;
    const spans = [];
    let lines = 0, characters = 0;
    for (let at = start; at < end; ) {
      const weight = row.weight[at];
      const run = { start: at, end: at, node: document.createTextNode("") };
      let text = "";
      for (; run.end < end && row.weight[run.end] === weight; run.end++) {
        this.offset[run.end] = text.length;
        text += visible(row.text(run.end));
      }
      run.node.data = text;
      this.runOf.set(run.node, run);
      this.runs.push(run);
      spans.push(make("span", { "data-weight": weight, class: weight > 0 ? (weight < 1 ? "trained less" : weight > 1 ? "trained more" : "trained") : null }, run.node));
      lines += text.split("\n").length - 1;
      characters += text.length;
      at = run.end;
    }
    const long = end - start >= LONG;
    const chunk = make("div", { class: long ? "chunk long" : "chunk" }, ...spans);
    // What is out of sight has about this height, so that the bar beside it does not jump.
    if (long) chunk.style.containIntrinsicSize = `auto ${Math.max(1, Math.round(lines + characters / 80)) * LINE}px`;
    return chunk;
  }

  runAt(token) {
    return this.runs[lastAtMost(this.runs.length, (i) => this.runs[i].start, token)];
  }

  endOffset(run, token) {
    return token + 1 < run.end ? this.offset[token + 1] : run.node.length;
  }

  // The ranges of tokens [start, end), one a text node.
  ranges(start, end) {
    const found = [];
    let i = lastAtMost(this.runs.length, (n) => this.runs[n].start, start);
    for (; i < this.runs.length && this.runs[i].start < end; i++) {
      const run = this.runs[i];
      found.push(
        new StaticRange({
          startContainer: run.node,
          startOffset: this.offset[Math.max(start, run.start)],
          endContainer: run.node,
          endOffset: this.endOffset(run, Math.min(end, run.end) - 1),
        }),
      );
    }
    return found;
  }

  // Light stretches of tokens in a style of explorer.css.
  light(style, stretches) {
    if (!CAN_LIGHT) return;
    if (!stretches.length) CSS.highlights.delete(style);
    else CSS.highlights.set(style, new Highlight(...stretches.flatMap(([start, end]) => this.ranges(start, end))));
    const lit = CSS.highlights.get(style);
    if (lit) lit.priority = { seers: 0, seen: 1, parent: 2, key: 3, chosen: 4 }[style];
  }

  clear() {
    if (!CAN_LIGHT) return;
    for (const style of ["seers", "seen", "parent", "key", "chosen"]) CSS.highlights.delete(style);
  }

  rects(token) {
    const run = this.runAt(token);
    const range = document.createRange();
    range.setStart(run.node, this.offset[token]);
    range.setEnd(run.node, this.endOffset(run, token));
    return [...range.getClientRects()];
  }

  // The token at a point of the window, or null.
  tokenAt(x, y) {
    let node, at;
    if (document.caretPositionFromPoint) {
      const caret = document.caretPositionFromPoint(x, y);
      if (caret) [node, at] = [caret.offsetNode, caret.offset];
    } else {
      const caret = document.caretRangeFromPoint(x, y);
      if (caret) [node, at] = [caret.startContainer, caret.startOffset];
    }
    const run = node && this.runOf.get(node);
    if (!run) return null;
    const found = run.start + lastAtMost(run.end - run.start, (i) => this.offset[run.start + i], at);
    // A caret stands between two characters: the point may be in the token before it.
    const inside = (token) => this.rects(token).some((r) => x >= r.left && x <= r.right && y >= r.top && y <= r.bottom);
    return [found, found - 1].find((token) => token >= run.start && inside(token)) ?? null;
  }

  // Bring a token into sight, without moving the page.
  reveal(token) {
    const chunk = this.runAt(token).node.parentElement.parentElement;
    const box = () => this.scroller.getBoundingClientRect();
    const far = chunk.getBoundingClientRect();
    if (far.bottom < box().top || far.top > box().bottom) this.scroller.scrollTop += far.top - box().top;
    // Twice: what was out of sight has its true height only now.
    for (let i = 0; i < 2; i++) {
      const [rect] = this.rects(token);
      if (!rect) return;
      const { top, bottom } = box();
      if (rect.top < top + LINE) this.scroller.scrollTop += rect.top - top - 3 * LINE;
      else if (rect.bottom > bottom - LINE) this.scroller.scrollTop += rect.bottom - bottom + 3 * LINE;
    }
  }
}
