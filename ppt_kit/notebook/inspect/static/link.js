// Questions to the kernel and their answers; the frames that are kept.

class Link {
  constructor(model) {
    this.model = model;
    this.waiting = new Map();
    this.last = 0;
    this.heard = (content, buffers) => {
      const waits = this.waiting.get(content.id);
      if (!waits) return;
      this.waiting.delete(content.id);
      if (content.refused) waits.no(new Error(content.refused));
      else waits.yes({ head: content, buffers });
    };
    model.on("msg:custom", this.heard);
  }
  // two views of one widget hear each other's answers: a question's name is its own
  ask(kind, asked) {
    const id = `${Math.random().toString(36).slice(2)}/${++this.last}`;
    return new Promise((yes, no) => {
      this.waiting.set(id, { yes, no });
      this.model.send({ kind, id, ...asked });
    });
  }
  close() { this.model.off("msg:custom", this.heard); }
}

const KEPT_BYTES = 160e6, KEPT_BITMAPS = 256, IN_FLIGHT = 2, OVERVIEW = 48, SETTLES_MS = 150, PATIENCE_MS = 100;

// Frames of some steps, unpacked when they are looked at.
class Page {
  constructor({ head, buffers }, steps) {
    this.steps = steps;
    this.size = buffers.reduce((sum, each) => sum + each.byteLength, 0);
    this.rgb = new Map(); this.depth = new Map(); this.cloud = null;
    head.parts.forEach((part, i) => this.take(part, buffers[i]));
  }
  take(part, buffer) {
    if (part.what === "rgb") {
      let at = 0;
      const files = part.sizes.map(size => { const file = bytes(buffer).subarray(at, at + size); at += size; return file; });
      this.rgb.set(part.camera, { files, bitmaps: new Map() });
    } else if (part.what === "depth") {
      this.depth.set(part.camera, { size: part.size, values: words(buffer) });
    } else if (part.what === "xyz") {
      this.cloud = { points: part.points, low: part.low, span: part.span, xyz: words(buffer), colors: null, segments: null };
    } else if (this.cloud) {
      this.cloud[part.what] = bytes(buffer);
    }
  }
  // the bitmap of one frame, or null while it is decoded; `ready` is called once it is
  picture(camera, index, ready) {
    const { files, bitmaps } = this.rgb.get(camera);
    const known = bitmaps.get(index);
    if (known !== undefined) return known;
    if (bitmaps.size >= KEPT_BITMAPS) {
      const [oldest, bitmap] = bitmaps.entries().next().value;
      bitmap?.close();
      bitmaps.delete(oldest);
    }
    bitmaps.set(index, null);
    createImageBitmap(new Blob([files[index]], { type: "image/jpeg" })).then(bitmap => { bitmaps.set(index, bitmap); ready(); }, ready);
    return null;
  }
  // of a page that is new: once every picture of one frame is decoded
  decoded(index) {
    return Promise.all([...this.rgb.keys()].map(camera => new Promise(done => this.picture(camera, index, done))));
  }
  depthOf(camera, index) {
    const { size, values } = this.depth.get(camera), pixels = size[0] * size[1];
    return { height: size[0], width: size[1], values: values.subarray(index * pixels, (index + 1) * pixels) };
  }
  cloudOf(index) {
    if (!this.cloud) return null;
    const { points, low, span, xyz, colors, segments } = this.cloud, from = index * points, to = from + points;
    return {
      points, low, span, xyz: xyz.subarray(3 * from, 3 * to), colors: colors && colors.subarray(3 * from, 3 * to),
      segments: segments && segments.subarray(from, to),
    };
  }
  free() {
    for (const { bitmaps } of this.rgb.values()) for (const bitmap of bitmaps.values()) bitmap?.close();
  }
}

// The pages of one episode: a few are kept, the next ones are asked for ahead.
class Pages {
  constructor(link, episode, head, { changed, refused }) {
    Object.assign(this, { link, episode, changed, refused });
    this.length = head.length; this.count = head.page_steps;
    this.needed = head.cameras.length > 0 || head.cloud !== null;
    this.pages = new Map(); this.asked = new Set(); this.step = 0; this.forward = true; this.closed = false;
    this.overview = this.still = this.stillOf = null; this.leapt = this.missed = null;
  }
  get idle() { return this.asked.size === 0 && this.stillOf === null; }
  want(step) {
    if (step !== this.step) {
      this.forward = step > this.step;
      this.leapt = Math.abs(step - this.step) > this.count / 4 ? performance.now() : null;
    }
    this.step = step;
    if (this.needed) this.fetch();
  }
  // [page, index] of one step, null where it is not here
  exact(step) {
    const number = Math.floor(step / this.count), page = this.pages.get(number);
    if (!page) return this.still?.steps[0] === step ? [this.still, 0] : null;
    this.pages.delete(number);
    this.pages.set(number, page);
    return [page, step - page.steps[0]];
  }
  // whether the frame before stays for the moment: drawing another in its place would delay the right one
  patient(step) {
    if (this.exact(step)) this.missed = null;
    else if (this.missed === null) {
      this.missed = performance.now();
      setTimeout(this.changed, PATIENCE_MS + 1);
    }
    return this.missed !== null && performance.now() - this.missed < PATIENCE_MS;
  }
  // the nearest frame that is here: what is shown while the right one comes
  nearest(step) {
    const alone = this.still && [this.still, 0];
    if (!this.overview) return alone;
    const index = clamp(Math.round(step / this.overview.every), 0, this.overview.steps.length - 1);
    // the last one that was asked for may be nearer than any of the overview
    return alone && Math.abs(this.still.steps[0] - step) < Math.abs(this.overview.steps[index] - step) ? alone : [this.overview, index];
  }
  ahead(step, count, ready) {
    for (let i = 1; i <= count; i++) {
      const next = this.exact(step + (this.forward ? i : -i));
      if (next) for (const camera of next[0].rgb.keys()) next[0].picture(camera, next[1], ready);
    }
  }
  // one frame at once; whole pages where the cursor comes to rest, or goes on step by step
  fetch() {
    if (this.closed) return;
    if (!this.exact(this.step)) this.askStill(this.step);
    clearTimeout(this.settling);
    // a page that was asked for too early holds up the next leap's frame: its answer is as long as a hundred frames
    if (this.leapt === null) this.fetchPages();
    else if (this.stillOf === null) this.settling = setTimeout(() => { this.leapt = null; this.fetchPages(); }, SETTLES_MS);
  }
  askStill(step) {
    if (this.stillOf !== null) return;
    this.stillOf = step;
    this.link.ask("page", { episode: this.episode, first: step, count: 1, every: 1 }).then(
      answer => {
        const still = new Page(answer, [step]);
        // drawn once, when all of it is there
        still.decoded(0).then(() => {
          this.stillOf = null;
          if (this.closed) { still.free(); return; }
          this.still?.free();
          this.still = still;
          this.changed();
          this.fetch();
        });
      },
      error => { this.stillOf = null; this.closed = true; this.refused(error.message); },
    );
  }
  fetchPages() {
    if (this.asked.size >= IN_FLIGHT) return;
    const here = Math.floor(this.step / this.count), last = Math.floor((this.length - 1) / this.count), turn = this.forward ? 1 : -1;
    for (const number of [here, here + turn, "overview", here + 2 * turn, here - turn]) {
      if (number !== "overview" && (number < 0 || number > last)) continue;
      if (number === "overview" ? this.overview || last === 0 : this.pages.has(number)) continue;
      if (this.asked.has(number)) continue;
      this.request(number);
      if (this.asked.size >= IN_FLIGHT) return;
    }
  }
  request(number) {
    const every = number === "overview" ? Math.ceil(this.length / Math.min(OVERVIEW, this.count)) : 1;
    const first = number === "overview" ? 0 : number * this.count;
    const count = Math.min(Math.ceil((this.length - first) / every), number === "overview" ? OVERVIEW : this.count);
    const steps = Array.from({ length: count }, (_, i) => first + i * every);
    this.asked.add(number);
    this.link.ask("page", { episode: this.episode, first, count, every }).then(
      answer => {
        this.asked.delete(number);
        if (this.closed) return;
        const page = new Page(answer, steps);
        page.every = every;
        if (number === "overview") this.overview = page;
        else this.keep(number, page);
        this.changed();
        this.fetch();
      },
      error => { this.asked.delete(number); this.closed = true; this.refused(error.message); },
    );
  }
  keep(number, page) {
    this.pages.set(number, page);
    let total = 0;
    for (const each of this.pages.values()) total += each.size;
    for (const [old, each] of this.pages) {
      if (total <= KEPT_BYTES || this.pages.size <= 4) break;
      total -= each.size;
      each.free();
      this.pages.delete(old);
    }
  }
  close() { this.closed = true; clearTimeout(this.settling); for (const page of this.pages.values()) page.free(); }
}

// What a policy predicts, step by step, the nearest to the cursor first.
class Chunks {
  constructor(link, episode, head, { changed, refused, mayAsk }) {
    Object.assign(this, { link, episode, changed, refused, mayAsk });
    this.length = head.length; this.size = head.window.acted.length; this.dims = head.groups.find(each => each.name === "action").names.length;
    this.values = new Float32Array(this.length * this.size * this.dims);
    this.error = new Float32Array(this.length).fill(NaN);
    this.path = head.policy.path ? new Float32Array(this.length * this.size * 3) : null;
    this.starts = new Int32Array(this.length).fill(-1);
    this.busy = false; this.closed = false;
  }
  has(step) { return this.starts[step] >= 0; }
  at(step) {
    const numbers = this.size * this.dims;
    return { start: this.starts[step], values: this.values.subarray(step * numbers, (step + 1) * numbers) };
  }
  pathAt(step) { return this.path && this.has(step) ? this.path.subarray(step * this.size * 3, (step + 1) * this.size * 3) : null; }
  fetch(step) {
    if (this.busy || this.closed || !this.mayAsk()) return;
    const first = this.next(step);
    if (first < 0) return;
    let count = 1;
    while (count < 32 && first + count < this.length && !this.has(first + count)) count++;
    this.busy = true;
    this.link.ask("chunks", { episode: this.episode, first, count, every: 1 }).then(
      ({ head, buffers }) => {
        this.busy = false;
        if (this.closed) return;
        this.values.set(floats(buffers[0]), first * this.size * this.dims);
        this.error.set(floats(buffers[1]), first);
        if (this.path && buffers[2]) this.path.set(floats(buffers[2]), first * this.size * 3);
        for (let i = 0; i < count; i++) this.starts[first + i] = head.starts ? head.starts[i] : first + i;
        this.changed();
      },
      error => { this.closed = true; this.refused(error.message); },
    );
  }
  next(step) {
    for (let off = 0; off < this.length; off++) {
      if (step + off < this.length && !this.has(step + off)) return step + off;
      if (step - off >= 0 && !this.has(step - off)) return Math.max(0, step - off - 16);
    }
    return -1;
  }
  close() { this.closed = true; }
}
