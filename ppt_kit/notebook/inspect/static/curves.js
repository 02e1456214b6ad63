// One group of curves over an episode, with the cursor, the training window and what is predicted.

const MARGIN = { left: 44, right: 12, top: 8, bottom: 16 };

class Curves {
  constructor(root, group, values, { length, seek, height = 120 }) {
    Object.assign(this, { root, group, values, length, seek, height });
    this.dims = group.names.length; this.hidden = new Set(); this.own = false; this.still = document.createElement("canvas");
    this.canvas = make("canvas", { class: "ppt-plot", style: `height:${height}px`, "data-group": group.name });
    this.legend = make("div", { class: "ppt-legend" });
    const scale = this.dims > 1 && make("button", {
      class: "ppt-small", title: "each curve between its own lowest and highest value", text: "own scales",
      onclick: () => { this.own = !this.own; scale.classList.toggle("ppt-on", this.own); this.draft(); this.again(); },
    });
    this.element = make("section", { class: "ppt-group" },
      make("header", {}, make("span", { class: "ppt-name", text: group.title || group.name }), this.legend, scale), this.canvas);
    this.items = group.names.map((name, i) => this.item(name, i));
    const move = event => { if (this.held) this.seek(this.stepAt(event.offsetX)); };
    this.canvas.addEventListener("pointerdown", event => { this.held = true; this.canvas.setPointerCapture(event.pointerId); move(event); });
    this.canvas.addEventListener("pointermove", move);
    this.canvas.addEventListener("pointerup", () => { this.held = false; });
    this.again = () => {};
  }
  item(name, i) {
    const value = make("span", { class: "ppt-value" });
    const element = make("button", { class: "ppt-item", title: "show or hide", onclick: () => {
      this.hidden.has(i) ? this.hidden.delete(i) : this.hidden.add(i);
      element.classList.toggle("ppt-off", this.hidden.has(i));
      this.draft(); this.again();
    } }, make("i", { style: `background:${this.color(i)}` }), this.dims > 1 && make("span", { text: name }), value);
    this.legend.append(element);
    return value;
  }
  color(i) { return this.group.color || PALETTE[i % PALETTE.length]; }
  get inner() { return { left: MARGIN.left, width: this.width - MARGIN.left - MARGIN.right, top: MARGIN.top, height: this.height - MARGIN.top - MARGIN.bottom }; }
  x(step) { const { left, width } = this.inner; return left + (this.length > 1 ? step / (this.length - 1) : 0.5) * width; }
  stepAt(offset) { const { left, width } = this.inner; return clamp(Math.round((offset - left) / width * (this.length - 1)), 0, this.length - 1); }
  range(i) {
    let low = Infinity, high = -Infinity;
    for (let step = 0; step < this.length; step++) {
      const value = this.values[step * this.dims + i];
      if (!Number.isFinite(value)) continue;
      low = Math.min(low, value); high = Math.max(high, value);
    }
    return low <= high ? [low, high] : [0, 1];
  }
  scales() {
    const each = Array.from({ length: this.dims }, (_, i) => this.range(i)), shown = each.filter((_, i) => !this.hidden.has(i));
    const wide = shown.length ? [Math.min(...shown.map(r => r[0])), Math.max(...shown.map(r => r[1]))] : [0, 1];
    return each.map(own => {
      const [low, high] = this.own ? own : wide, pad = (high - low || 1) * 0.06;
      return [low - pad, high + pad];
    });
  }
  y(value, i) {
    const [low, high] = this.bounds[i], { top, height } = this.inner;
    return top + height * (1 - (value - low) / (high - low));
  }
  // what does not change with the cursor, drawn once
  draft() {
    this.width = this.canvas.clientWidth;
    if (!this.width) return;
    this.bounds = this.scales();
    const g = sharp(this.still, this.width, this.height), { left, width, top, height } = this.inner, colors = themed(this.root);
    g.strokeStyle = colors.line; g.lineWidth = 1; g.fillStyle = colors.faint; g.font = "10px sans-serif"; g.textAlign = "right"; g.textBaseline = "middle";
    const [low, high] = this.bounds[this.bounds.findIndex((_, i) => !this.hidden.has(i))] || [0, 1];
    for (const value of ticks(low, high, height < 70 ? 3 : 4)) {
      const y = top + height * (1 - (value - low) / (high - low));
      // each on its own scale: none is that of all
      if (!this.own) { g.beginPath(); g.moveTo(left, y); g.lineTo(left + width, y); g.stroke(); g.fillText(brief(value), left - 5, y); }
    }
    g.textBaseline = "top"; g.textAlign = "center";
    const end = Math.max(1, this.length - 1);
    for (const step of ticks(0, end, clamp(width / 90, 2, 10))) {
      if (Number.isInteger(step)) g.fillText(step, this.x(step), top + height + 4);
    }
    g.save(); g.beginPath(); g.rect(left, top - 2, width, height + 4); g.clip();
    for (let i = 0; i < this.dims; i++) if (!this.hidden.has(i)) this.stroke(g, i);
    g.restore();
    this.ready = true;
  }
  // at most two values a pixel: the lowest and the highest
  stroke(g, i) {
    const { width } = this.inner, every = Math.max(1, Math.floor(this.length / (2 * width)));
    g.strokeStyle = this.color(i); g.lineWidth = 1.4; g.lineJoin = "round"; g.beginPath();
    let pen = false;
    const to = (step, value) => {
      if (!Number.isFinite(value)) { pen = false; return; }
      pen ? g.lineTo(this.x(step), this.y(value, i)) : g.moveTo(this.x(step), this.y(value, i));
      pen = true;
    };
    for (let first = 0; first < this.length; first += every) {
      let low = this.values[first * this.dims + i], high = low;
      for (let step = first + 1; step < Math.min(this.length, first + every); step++) {
        const value = this.values[step * this.dims + i];
        low = Math.min(low, value); high = Math.max(high, value);
      }
      to(first, low);
      if (every > 1) to(first, high);
    }
    g.stroke();
  }
  // window: offsets of the steps that are shaded, counted from `from`; over: [{start, offsets, values, color, dash}]
  draw(step, { window: offsets, from = step, tint, over = [], marks = [] } = {}) {
    if (!this.canvas.clientWidth) return;
    if (!this.ready || this.width !== this.canvas.clientWidth) this.draft();
    const g = sharp(this.canvas, this.width, this.height), { top, height, left, width } = this.inner, colors = themed(this.root);
    if (offsets) this.shade(g, from, offsets, tint);
    g.drawImage(this.still, 0, 0, this.width, this.height);
    for (const mark of marks) {
      g.strokeStyle = mark.color; g.lineWidth = 1; g.setLineDash([2, 3]); g.beginPath();
      g.moveTo(this.x(mark.step), top); g.lineTo(this.x(mark.step), top + height); g.stroke(); g.setLineDash([]);
    }
    g.save(); g.beginPath(); g.rect(left - 2, top - 4, width + 4, height + 8); g.clip();
    for (const each of over) this.overlay(g, each);
    g.restore();
    g.strokeStyle = colors.ink; g.lineWidth = 1; g.beginPath();
    g.moveTo(this.x(step), top - 4); g.lineTo(this.x(step), top + height); g.stroke();
    this.items.forEach((item, i) => { item.textContent = brief(this.values[step * this.dims + i]); });
  }
  shade(g, step, offsets, tint) {
    const { top, height } = this.inner, half = this.length > 1 ? (this.x(1) - this.x(0)) / 2 : 4, reach = Math.max(half, 1);
    const from = this.x(clamp(step + offsets[0], 0, this.length - 1)) - reach, to = this.x(clamp(step + offsets.at(-1), 0, this.length - 1)) + reach;
    g.fillStyle = tint; g.fillRect(from, top - 4, to - from, height + 4);
  }
  overlay(g, { start, offsets, values, color, dash }) {
    for (let i = 0; i < this.dims; i++) {
      if (this.hidden.has(i)) continue;
      g.strokeStyle = color || this.color(i); g.lineWidth = 2; g.setLineDash(dash || []); g.beginPath();
      offsets.forEach((offset, k) => {
        const x = this.x(start + offset), y = this.y(values[k * this.dims + i], i);
        k ? g.lineTo(x, y) : g.moveTo(x, y);
      });
      g.stroke(); g.setLineDash([]);
      g.fillStyle = color || this.color(i);
      offsets.forEach((offset, k) => { g.beginPath(); g.arc(this.x(start + offset), this.y(values[k * this.dims + i], i), 1.8, 0, 7); g.fill(); });
    }
  }
}
