"use strict";
// The tree as bars: a node along the positions of its tokens, a lane a branch. The first branch of a node goes on in
// its lane, so the trunk of a conversation is the first lane and each earlier turn's own branch one below.

class TreeView {
  // choose(token): a node was chosen.
  constructor(place, roles, choose) {
    Object.assign(this, { place, roles, choose });
    place.addEventListener("keydown", (event) => this.key(event));
  }

  show(row) {
    this.row = row;
    const lanes = this.lanes();
    const longest = row.length ? row.position.reduce((a, b) => Math.max(a, b), 0) + 1 : 1;
    this.bars = row.start.map((start, n) => this.bar(n, longest));
    const found = [];
    row.start.forEach((start, n) => (found[lanes[n]] ??= []).push(this.bars[n]));
    this.place.replaceChildren(
      ...found.map((bars, lane) => {
        const leaf = lanes.lastIndexOf(lane);
        return make("div", { class: "lane" }, make("span", { class: "of", title: this.nameOf(leaf) }, this.nameOf(leaf)), make("div", { class: "bars" }, ...bars));
      }),
    );
    this.enter(0);
  }

  lanes() {
    const { row } = this;
    const found = [];
    let count = 0;
    row.start.forEach((_, n) => {
      const parent = row.parent[n];
      found.push(parent >= 0 && row.children[parent][0] === n ? found[parent] : count++);
    });
    return found;
  }

  // The turns or calls whose passes end in a node.
  nameOf(node) {
    const { row } = this;
    const { turn, last } = row.known.passes;
    const here = turn.filter((_, p) => row.node[last[p]] === node);
    return row.names ? here.map((t) => row.names[t]).join(", ") : `turn ${ranges(here)}`;
  }

  bar(node, longest) {
    const { row } = this;
    const [start, end] = [row.start[node], row.end[node]];
    const parts = row.segments.filter((one) => one.node === node);
    const roles = parts.map((one) => `${counted(one.end - one.start)} ${this.roles[one.role].label}`);
    const from = row.parent[node] < 0 ? "a root" : `continues node ${row.parent[node]}`;
    const said = `node ${node}, ${from}: ${counted(end - start)} tokens at positions ${counted(row.position[start])}\u2013${counted(row.position[end - 1])} (${roles.join(", ")})`;
    const bar = make("button", { type: "button", class: "node", title: said, "aria-label": said, tabindex: -1, onclick: () => this.choose(start) }, make("span", { class: "count" }, counted(end - start)));
    bar.style.left = `${(row.position[start] / longest) * 100}%`;
    bar.style.width = `${((end - start) / longest) * 100}%`;
    const colors = parts.map((one) => `color-mix(in srgb, var(--${this.roles[one.role].name}) 62%, var(--ground)) ${((one.start - start) / (end - start)) * 100}% ${((one.end - start) / (end - start)) * 100}%`);
    bar.style.background = `linear-gradient(to right, ${colors.join(", ")})`;
    return bar;
  }

  // One bar is a stop of the Tab key; arrows go to the others.
  enter(node) {
    this.bars.forEach((bar, n) => (bar.tabIndex = n === node ? 0 : -1));
  }

  key(event) {
    const at = this.bars.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: this.bars.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const node = Math.min(Math.max(to, 0), this.bars.length - 1);
    this.enter(node);
    this.bars[node].focus();
  }

  // The node of a token, and those that it continues.
  light(token) {
    const path = new Set();
    if (token !== null) for (let n = this.row.node[token]; n >= 0; n = this.row.parent[n]) path.add(n);
    this.bars.forEach((bar, n) => {
      bar.classList.toggle("on-path", path.has(n));
      if (token !== null && n === this.row.node[token]) bar.setAttribute("aria-current", "true");
      else bar.removeAttribute("aria-current");
    });
  }
}
