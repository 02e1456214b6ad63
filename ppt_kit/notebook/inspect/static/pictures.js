// Cameras: colour pictures, and depth with a metric colour bar.

class Camera {
  constructor(root, head) {
    Object.assign(this, { root, head });
    this.canvas = make("canvas", { class: "ppt-picture", "data-camera": head.name, "data-kind": head.kind });
    this.canvas.style.aspectRatio = `${head.width} / ${head.height}`;
    this.told = make("span", { class: "ppt-told" });
    const shown = make("div", { class: "ppt-shown" }, this.canvas);
    if (head.kind === "depth") {
      shown.append(this.bar());
      this.table = Array.from({ length: 1024 }, (_, i) => viridis(1 - i / 1023));
      this.canvas.addEventListener("pointermove", event => this.tell(event));
      this.canvas.addEventListener("pointerleave", () => { this.told.textContent = ""; });
    }
    this.element = make("figure", { class: "ppt-tile" }, shown,
      make("figcaption", {}, make("span", { text: head.title || `${head.kind} ${head.name}` }), this.told));
  }
  share(metres) {
    const { low, high, log } = this.head;
    return log ? Math.log(metres / low) / Math.log(high / low) : (metres - low) / (high - low);
  }
  metres(share) {
    const { low, high, log } = this.head;
    return log ? low * (high / low) ** share : low + share * (high - low);
  }
  bar() {
    const stops = Array.from({ length: 9 }, (_, i) => `rgb(${viridis(i / 8)})`);
    const ticks = [0, 0.5, 1].map(share => make("span", { style: `top:${share * 100}%`, text: `${brief(this.metres(share))} m` }));
    return make("div", { class: "ppt-bar", title: "distance; black is no reading" },
      make("i", { style: `background:linear-gradient(0deg, ${stops.join(", ")})` }), make("div", {}, ...ticks));
  }
  // whether the frame was there to be drawn
  draw([page, index], ready) {
    if (this.head.kind === "rgb") {
      const bitmap = page.picture(this.head.name, index, ready);
      if (!bitmap) return false;
      this.size(bitmap.width, bitmap.height);
      this.canvas.getContext("2d").drawImage(bitmap, 0, 0);
      return true;
    }
    const { width, height, values } = page.depthOf(this.head.name, index);
    this.size(width, height);
    const g = this.canvas.getContext("2d"), image = this.image ?? (this.image = g.createImageData(width, height)), rgba = image.data;
    if (!this.levels) this.levels = this.levelled();
    const out = new Uint32Array(rgba.buffer);
    for (let i = 0; i < values.length; i++) out[i] = this.levels[values[i]];
    g.putImageData(image, 0, 0);
    this.values = values;
    return true;
  }
  // a colour a millimetre: looking up is faster than logarithms
  levelled() {
    const levels = new Uint32Array(65536);
    levels[0] = 0xff000000;
    for (let mm = 1; mm < levels.length; mm++) {
      const [r, g, b] = this.table[Math.round(clamp(this.share(mm / 1000), 0, 1) * 1023)];
      levels[mm] = (255 << 24 | b << 16 | g << 8 | r) >>> 0;
    }
    return levels;
  }
  size(width, height) {
    if (this.canvas.width !== width || this.canvas.height !== height) {
      [this.canvas.width, this.canvas.height] = [width, height];
      this.image = null;
    }
  }
  tell(event) {
    if (!this.values) return;
    const column = Math.floor(event.offsetX / this.canvas.clientWidth * this.canvas.width), row = Math.floor(event.offsetY / this.canvas.clientHeight * this.canvas.height);
    const mm = this.values[row * this.canvas.width + column];
    this.told.textContent = mm ? `${(mm / 1000).toFixed(3)} m` : "no reading";
  }
}
