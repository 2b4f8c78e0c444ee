"use strict";
// The mask on a canvas: lines are queries, columns keys. Drawn from the segments, each a strip of columns that is seen
// from its own line down to the end of its subtree; so a mask of any size is a few hundred polygons. A second canvas
// above it has the token that is looked at, so that hovering draws two lines and nothing else.

const LEAST_STEP = 3; // px of a token from which its single cells are drawn as steps

class MaskView {
  // on: {hover(query, key), choose(query), say(text)}
  constructor(base, overlay, on) {
    this.base = base;
    this.overlay = overlay;
    this.on = on;
    this.byBlocks = false;
    this.pointers = new Map();
    new ResizeObserver(() => this.resize()).observe(base);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    for (const [event, act] of Object.entries({ pointerdown: this.down, pointermove: this.move, pointerup: this.up, pointercancel: this.up, pointerleave: this.leave, wheel: this.wheel, keydown: this.key })) {
      overlay.addEventListener(event, act.bind(this), { passive: false });
    }
  }

  show(row) {
    this.row = row;
    this.token = this.cell = null;
    this.fit();
  }

  // The part that is seen: `span` tokens from query `top` and key `left`.
  fit() {
    Object.assign(this, { left: 0, top: 0, span: this.whole });
    this.draw();
  }

  // Tokens along a side, with the padding of the last block where blocks are shown.
  get whole() {
    const { size } = this.row.known.blocks;
    return Math.max(1, this.byBlocks ? Math.ceil(this.row.length / size) * size : this.row.length);
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    this.size = this.base.clientWidth;
    for (const canvas of [this.base, this.overlay]) canvas.width = canvas.height = Math.round(this.size * ratio);
    this.ratio = ratio;
    if (this.row) this.draw();
  }

  zoom(factor, x = this.size / 2, y = this.size / 2) {
    const span = Math.min(this.whole, Math.max(Math.min(8, this.whole), this.span * factor));
    this.left += (x / this.size) * (this.span - span);
    this.top += (y / this.size) * (this.span - span);
    this.span = span;
    this.bound();
  }

  pan(x, y) {
    this.left -= (x * this.span) / this.size;
    this.top -= (y * this.span) / this.size;
    this.bound();
  }

  bound() {
    const most = this.whole - this.span;
    this.left = Math.min(Math.max(this.left, 0), most);
    this.top = Math.min(Math.max(this.top, 0), most);
    this.draw();
  }

  // With a query and a key in the middle.
  center(query, key, span = this.span) {
    this.span = Math.min(span, this.whole);
    this.left = key - this.span / 2;
    this.top = query - this.span / 2;
    this.bound();
  }

  x(token) {
    return ((token - this.left) / this.span) * this.size;
  }

  y(token) {
    return ((token - this.top) / this.span) * this.size;
  }

  colors() {
    const style = getComputedStyle(this.base);
    return (name) => style.getPropertyValue(`--${name}`).trim();
  }

  draw() {
    if (!this.size || !this.row) return;
    // Fitted, a finger scrolls the page; closer, it moves the mask.
    this.overlay.style.touchAction = this.span < this.whole ? "none" : "pan-x pan-y";
    const context = this.base.getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    const color = this.colors();
    context.fillStyle = color("hidden");
    context.fillRect(0, 0, this.size, this.size);
    if (this.byBlocks) this.drawBlocks(context, color);
    else this.drawTokens(context, color);
    this.drawToken();
  }

  drawTokens(context, color) {
    const { row, left, top, span } = this;
    const steps = this.size / span >= LEAST_STEP;
    for (const { start, end, until, role } of row.segments) {
      if (end <= left || start >= left + span || until <= top || start >= top + span) continue;
      context.fillStyle = color(this.roles[role].name);
      context.beginPath();
      context.moveTo(this.x(start), this.y(start));
      if (steps) {
        const last = Math.min(end, Math.ceil(left + span), Math.ceil(top + span));
        for (let k = Math.max(start, Math.floor(Math.min(left, top))); k < last; k++) {
          context.lineTo(this.x(k), this.y(k));
          context.lineTo(this.x(k + 1), this.y(k));
        }
      }
      context.lineTo(this.x(end), this.y(steps ? end - 1 : end));
      context.lineTo(this.x(end), this.y(until));
      context.lineTo(this.x(start), this.y(until));
      context.fill();
    }
    if (this.size / span >= 8) this.grid(context, color("hidden"), 1);
  }

  drawBlocks(context, color) {
    const { size, lines } = this.row.known.blocks;
    const side = (size / this.span) * this.size;
    const fills = [null, hatched(context, color("partial"), color("hidden")), color("full")];
    const first = Math.max(0, Math.floor(this.top / size));
    const last = Math.min(lines.length, Math.ceil((this.top + this.span) / size));
    for (let line = first; line < last; line++) {
      let column = 0;
      for (const [kind, count] of lines[line]) {
        if (fills[kind]) {
          context.fillStyle = fills[kind];
          context.fillRect(this.x(column * size), this.y(line * size), side * count, side);
        }
        column += count;
      }
    }
    if (side >= 6) this.grid(context, color("ground"), size);
  }

  grid(context, color, step) {
    context.strokeStyle = color;
    context.lineWidth = 1;
    context.beginPath();
    for (let at = Math.floor(Math.min(this.left, this.top) / step) * step; at <= Math.max(this.left, this.top) + this.span; at += step) {
      context.moveTo(this.x(at), 0);
      context.lineTo(this.x(at), this.size);
      context.moveTo(0, this.y(at));
      context.lineTo(this.size, this.y(at));
    }
    context.stroke();
  }

  // The token that is looked at: in its line what it sees, in its column who sees it.
  light(token, key = null) {
    this.token = token;
    this.lit = key;
    this.drawToken();
  }

  drawToken() {
    const context = this.overlay.getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.size, this.size);
    if (this.token === null || this.token === undefined) return;
    const color = this.colors();
    const { row, token } = this;
    const width = Math.max(2, this.size / this.span);
    const boxes = [
      ...row.path(token).map(([start, end]) => ["sees", this.x(start), this.y(token), this.x(end) - this.x(start), width]),
      ...row.seers(token).map(([start, end]) => ["seers", this.x(token), this.y(start), width, this.y(end) - this.y(start)]),
    ];
    // Apart from whatever colour is below.
    context.fillStyle = color("ground");
    for (const [, x, y, w, h] of boxes) context.fillRect(x - 1, y - 1, w + 2, h + 2);
    for (const [name, ...box] of boxes) {
      context.fillStyle = color(name);
      context.fillRect(...box);
    }
    context.strokeStyle = color("ink");
    context.lineWidth = 1.5;
    const key = this.lit ?? token;
    context.strokeRect(this.x(key) - 1, this.y(token) - 1, width + 2, width + 2);
  }

  // ---- pointers, wheel and keys ----

  place(event) {
    const box = this.overlay.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  cellAt({ x, y }) {
    const key = Math.floor(this.left + (x / this.size) * this.span);
    const query = Math.floor(this.top + (y / this.size) * this.span);
    const inside = (token) => token >= 0 && token < this.row.length;
    return inside(key) && inside(query) ? { query, key } : null;
  }

  down(event) {
    this.overlay.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.place(event));
    this.moved = false;
  }

  move(event) {
    const to = this.place(event);
    const from = this.pointers.get(event.pointerId);
    if (!from) {
      const cell = this.cellAt(to);
      if (cell) this.on.hover(cell.query, cell.key);
      return;
    }
    if (Math.hypot(to.x - from.x, to.y - from.y) < 3 && !this.moved) return;
    this.moved = true;
    const other = [...this.pointers].find(([id]) => id !== event.pointerId);
    if (other) {
      const apart = (point) => Math.hypot(point.x - other[1].x, point.y - other[1].y);
      this.zoom(apart(from) / Math.max(1, apart(to)), (to.x + other[1].x) / 2, (to.y + other[1].y) / 2);
    } else this.pan(to.x - from.x, to.y - from.y);
    this.pointers.set(event.pointerId, to);
  }

  up(event) {
    const cell = this.cellAt(this.place(event));
    if (event.type === "pointerup" && this.pointers.has(event.pointerId) && !this.moved && cell) this.choose(cell);
    this.pointers.delete(event.pointerId);
  }

  leave() {
    if (!this.pointers.size) this.on.hover(null, null);
  }

  wheel(event) {
    const closer = event.deltaY < 0;
    if (!closer && this.span >= this.whole) return; // nothing to widen: the page scrolls
    event.preventDefault();
    const { x, y } = this.place(event);
    this.zoom(Math.exp(Math.max(-120, Math.min(120, event.deltaY)) / 300), x, y);
  }

  choose(cell) {
    this.cell = cell;
    this.on.choose(cell.query, cell.key);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (steps) {
      const within = (token) => Math.min(Math.max(token, 0), this.row.length - 1);
      // A cell that can be told from the next by eye: at least a pixel further.
      const far = (event.shiftKey ? 16 : 1) * Math.max(1, Math.round(this.span / this.size));
      const at = this.cell ?? { query: this.token ?? 0, key: this.token ?? 0 };
      const cell = { query: within(at.query + steps[0] * far), key: within(at.key + steps[1] * far) };
      if (cell.key < this.left || cell.key >= this.left + this.span || cell.query < this.top || cell.query >= this.top + this.span) {
        this.center(cell.query, cell.key);
      }
      this.choose(cell);
    } else if (event.key === "+" || event.key === "=") this.closer(0.5);
    else if (event.key === "-") this.closer(2);
    else if (event.key === "0") this.fit();
    else return;
    event.preventDefault();
  }

  // Zoom around the cell that is looked at, or the middle.
  closer(factor) {
    const at = this.cell ?? (this.token === null || this.token === undefined ? null : { query: this.token, key: this.token });
    if (!at) return this.zoom(factor);
    const within = (value) => Math.min(Math.max(value, 0), this.size);
    this.zoom(factor, within(this.x(at.key + 0.5)), within(this.y(at.query + 0.5)));
  }
}

// Blocks of which the kernel masks single tokens are hatched, so that they are told from full ones without colour.
function hatched(context, color, ground) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 6;
  const inside = tile.getContext("2d");
  inside.fillStyle = ground;
  inside.fillRect(0, 0, 6, 6);
  inside.strokeStyle = color;
  inside.lineWidth = 2.5;
  for (const at of [-6, 0, 6]) {
    inside.moveTo(at, 6);
    inside.lineTo(at + 6, 0);
  }
  inside.stroke();
  return context.createPattern(tile, "repeat");
}
