// The whole panel: which episode and step, what is drawn of it, and how it is steered.

const SPEEDS = [5, 10, 20, 40, 80];
const TONES = { good: "#2e9a5a", bad: "#d1495b", plain: "#8a8a8a" };
// what a key does, where there is something that it does it to
const HELP = [
  ["← → step · shift 10 · home end · space play · + − speed", () => true], ["[ ] episode", (_, several) => several],
  ["c colours · r view", head => head.cloud], ["a augment · n new noise", head => head.can_augment],
];

class Panel {
  constructor(model, root) {
    Object.assign(this, { model, root, link: new Link(model), step: 0, playing: false, speed: 20, drawn: -1, frames: 0, mixed: false, noise: 0, opened: 0 });
    this.build();
    this.watch = new ResizeObserver(() => this.later());
    this.watch.observe(root);
    // a theme that changes draws everything anew
    this.theme = new MutationObserver(() => { this.plots?.forEach(plot => { plot.ready = false; }); this.later(); });
    this.theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
    this.moved = () => this.go(model.get("step"), false);
    this.chosen = () => this.open(model.get("episode"));
    model.on("change:step", this.moved);
    model.on("change:episode", this.chosen);
    this.open(model.get("episode"), model.get("step"));
  }
  build() {
    const { title, episodes } = this.model.get("listing"), top = episodes.length - 1;
    this.play = make("button", { class: "ppt-play", title: "play or stop (space)", "aria-label": "play", onclick: () => this.toggle() });
    this.slider = make("input", { type: "range", class: "ppt-time", min: 0, max: 0, value: 0, "aria-label": "step", oninput: () => this.go(+this.slider.value) });
    this.readout = make("span", { class: "ppt-readout" });
    this.pace = make("select", { class: "ppt-select", title: "steps a second (+ and −)", onchange: () => { this.speed = +this.pace.value; } },
      ...SPEEDS.map(speed => make("option", { value: speed, text: `${speed}/s` })));
    this.pace.value = this.speed;
    this.which = make("input", { type: "range", class: "ppt-episode", min: 0, max: top, value: 0, "aria-label": "episode", oninput: () => this.choose(+this.which.value) });
    this.name = make("span", { class: "ppt-label" });
    this.chips = !episodes.some(each => each.outcome) ? "" : make("div", { class: "ppt-chips" }, ...episodes.map((each, i) =>
      make("button", { class: `ppt-chip ppt-${each.outcome}`, text: each.label, title: each.outcome, onclick: () => this.choose(i) })));
    this.sentence = make("span", { class: "ppt-sentence" });
    this.facts = make("div", { class: "ppt-facts" });
    this.refused = make("p", { class: "ppt-refused", role: "status" });
    this.views = make("div", { class: "ppt-views" });
    this.charts = make("div", { class: "ppt-charts" });
    this.mix = make("label", { class: "ppt-switch", title: "what training makes of this window (a; n: other noise)" },
      this.tick = make("input", { type: "checkbox", onchange: () => this.augment(this.tick.checked) }), make("span", { text: "augmented" }));
    this.again = make("button", { class: "ppt-small", text: "new noise", title: "another draw (n)", onclick: () => this.redraw() });
    this.root.append(
      make("header", { class: "ppt-head" }, make("strong", { text: title }), this.name, this.sentence),
      make("div", { class: "ppt-row" }, make("span", { class: "ppt-dim", text: "episode" }), this.which, make("span", { class: "ppt-dim", text: `of ${episodes.length}` })),
      this.chips, this.facts, this.refused, this.views,
      make("div", { class: "ppt-row" }, this.play, this.slider, this.readout, this.pace, this.mix, this.again),
      this.charts, this.help = make("footer", { class: "ppt-help" }));
    this.root.addEventListener("keydown", event => this.key(event));
    if (top === 0) this.which.parentElement.hidden = true;
  }
  // ---- which episode
  choose(number) {
    const next = clamp(number, 0, this.model.get("listing").episodes.length - 1);
    if (next === this.model.get("episode")) return;
    this.model.set("episode", next);
    this.model.save_changes();
  }
  open(number, step = 0) {
    const turn = ++this.opened, { episodes, waits } = this.model.get("listing");
    this.stop();
    this.which.value = number;
    this.name.textContent = episodes[number].label;
    this.sentence.textContent = waits || "";
    this.refused.textContent = "";
    if (this.chips) [...this.chips.children].forEach((chip, i) => chip.classList.toggle("ppt-on", i === number));
    this.root.classList.add("ppt-waits");
    this.link.ask("episode", { episode: number }).then(
      ({ head, buffers }) => { if (turn === this.opened) this.show(number, head, buffers, step); },
      error => { this.root.classList.remove("ppt-waits"); this.sentence.textContent = ""; this.say(error.message); });
  }
  show(number, head, buffers, step) {
    this.forget();
    this.root.classList.remove("ppt-waits");
    Object.assign(this, { number, head, length: head.length, drawn: -1, mixedAt: null, mixedFrame: null });
    const again = () => this.later(), refused = said => this.say(said);
    this.pages = new Pages(this.link, number, head, { changed: again, refused });
    this.cameras = head.cameras.map(each => new Camera(this.root, each));
    this.cloud = head.cloud && new Cloud(this.root, head.cloud, { changed: again });
    this.views.replaceChildren(...[this.cloud?.element, ...this.cameras.map(each => each.element)].filter(Boolean));
    this.plots = head.groups.map((group, i) => new Curves(this.root, group, floats(buffers[i]), { length: head.length, seek: to => this.go(to), height: group.height || 120 }));
    this.chunks = head.policy ? new Chunks(this.link, number, head, { changed: () => { this.errors(); again(); }, refused, mayAsk: () => this.pages.idle }) : null;
    if (this.chunks) {
      const said = { name: "error", title: head.policy.error || "policy: mean error of its chunk, normalised", names: ["error"], color: PREDICTED };
      this.plots.push(this.wrong = new Curves(this.root, said, this.chunks.error, { length: head.length, seek: to => this.go(to), height: 80 }));
    }
    this.plots.forEach(plot => { plot.again = again; });
    this.charts.replaceChildren(...this.plots.map(plot => plot.element));
    this.sentence.textContent = head.language ? `“${head.language}”` : "";
    this.facts.replaceChildren(...[...(head.facts || []), head.policy && head.cloud && { text: head.policy.said }].filter(Boolean)
      .map(({ text, tone, step: at }) => make(at === undefined ? "span" : "button", {
        class: `ppt-fact ppt-${tone || "plain"}`, text, ...(at === undefined ? {} : { onclick: () => this.go(at) }),
      })));
    if (this.cloud && head.hand !== null) {
      const next = head.did ? "what it did next" : "demonstrated next";
      this.cloud.legend([["hand so far", "#808080"], [next, "#2ea85c"], ...(head.policy?.path ? [["predicted", PREDICTED]] : [])]);
    }
    const several = this.model.get("listing").episodes.length > 1;
    this.help.textContent = HELP.filter(([, applies]) => applies(head, several)).map(([said]) => said).join(" · ");
    this.mix.hidden = this.again.hidden = !head.can_augment;
    this.mix.title = `what training makes of this window: ${head.augmented_by || ""} (a; n: other noise)`;
    this.slider.max = head.length - 1;
    if (this.mixed) this.augment(head.can_augment);
    this.go(step);
  }
  // ---- which step
  go(step, told = true) {
    if (!this.head) return;
    this.step = clamp(Math.round(step), 0, this.length - 1);
    this.slider.value = this.step;
    if (told && this.model.get("step") !== this.step) {
      this.model.set("step", this.step);
      clearTimeout(this.saving);
      // the kernel is told where it came to rest, not of every step
      this.saving = setTimeout(() => this.model.save_changes(), 150);
    }
    this.later();
  }
  toggle() { this.playing ? this.stop() : this.start(); }
  start() {
    if (!this.head) return;
    if (this.step === this.length - 1) this.go(0);
    this.playing = true; this.since = performance.now();
    this.play.classList.add("ppt-on");
    this.later();
  }
  stop() { this.playing = false; this.play.classList.remove("ppt-on"); }
  // the next step once its time has come and this one has been drawn
  advance(now) {
    const due = Math.floor((now - this.since) * this.speed / 1000);
    if (due >= 1 && (this.drawn === this.step || !this.pages.needed)) {
      this.since = due > 4 ? now : this.since + due * 1000 / this.speed;
      this.go(this.step + Math.min(due, 4));
      if (this.step === this.length - 1) this.stop();
    }
    this.later();
  }
  later() {
    if (this.due || this.closed) return;
    this.due = requestAnimationFrame(now => {
      this.due = null;
      this.draw();
      if (this.playing) this.advance(now);
    });
  }
  // ---- drawing
  draw() {
    if (!this.head) return;
    const { step, pages } = this, again = () => this.later();
    pages.want(step);
    const exact = pages.exact(step), waits = pages.patient(step), frame = exact || (waits ? null : pages.nearest(step));
    let complete = Boolean(exact) || !pages.needed;
    if (frame) for (const camera of this.cameras) complete = camera.draw(frame, again) && complete;
    if (exact) pages.ahead(step, 4, () => {});
    if (this.mixed) this.askMixed();
    const mixed = this.mixed && this.mixedAt === step ? this.mixedFrame : null;
    if (mixed) for (const camera of this.shadows) camera.draw([mixed.page, 0], again);
    if (this.cloud && !waits) this.drawCloud(frame, mixed);
    this.drawPlots(mixed);
    this.chunks?.fetch(step);
    if (complete && this.drawn !== step) { this.drawn = step; this.frames++; }
    this.root.dataset.step = step;
    this.root.dataset.drawn = this.drawn;
    const shown = exact || !frame ? "" : ` (picture of ${frame[0].steps[frame[1]]})`;
    this.readout.textContent = `${step} / ${this.length - 1}${shown}`;
  }
  drawPlots(mixed) {
    const { window: offsets, marks = [] } = this.head, dash = [4, 3], chunk = this.chunks?.has(this.step) ? this.chunks.at(this.step) : null;
    const tinted = { state: [offsets.seen, SEEN], action: [offsets.acted, ACTED] };
    const colored = marks.map(mark => ({ step: mark.step, color: TONES[mark.tone] }));
    for (const plot of this.plots) {
      const [shaded, tint] = tinted[plot.group.name] || [null, null], over = [];
      if (chunk && plot.group.name === "action") over.push({ start: chunk.start, offsets: offsets.acted, values: chunk.values, dash });
      const values = mixed?.numbers[plot.group.name];
      if (values) over.push({ start: this.step, offsets: shaded, values, color: "#8a63d2", dash: [2, 2] });
      // what is executed is of a chunk that began before
      const from = chunk && plot.group.name === "action" ? chunk.start : this.step;
      plot.draw(this.step, { window: shaded, from, tint, over, marks: colored });
    }
  }
  drawCloud(frame, mixed) {
    const clouds = [{ cloud: frame && frame[0].cloudOf(frame[1]), dim: mixed ? 0.2 : 1 }];
    if (mixed) clouds.push({ cloud: mixed.page.cloudOf(0), dim: 1 });
    this.cloud.draw(clouds, this.paths());
  }
  paths() {
    const state = this.plots.find(plot => plot.group.name === "state"), { hand, window: offsets } = this.head;
    if (hand === null || hand === undefined || !state) return [];
    const at = step => Array.from(state.values.subarray(step * state.dims + hand, step * state.dims + hand + 3)), found = [];
    const past = Array.from({ length: this.step + 1 }, (_, step) => at(step)).flat();
    found.push({ points: past, color: [0.5, 0.5, 0.5, 0.8] });
    const next = offsets.acted.map(offset => clamp(this.step + offset + 1, 0, this.length - 1)).flatMap(at);
    found.push({ points: [...at(this.step), ...next], color: [0.18, 0.66, 0.36, 1], dots: 5 });
    const predicted = this.chunks?.pathAt(this.step);
    if (predicted) found.push({ points: [...predicted], color: [0.88, 0.22, 0.55, 1], dots: 5 });
    return found;
  }
  errors() { this.wrong.ready = false; }
  // ---- augmentation
  augment(on) {
    this.mixed = on; this.tick.checked = on;
    this.shadows?.forEach(each => each.element.remove());
    this.shadows = on ? this.head.cameras.map(each => new Camera(this.root, { ...each })) : [];
    this.shadows.forEach((shadow, i) => {
      shadow.element.classList.add("ppt-mixed");
      shadow.element.querySelector("figcaption span").textContent += ", augmented";
      this.cameras[i].element.after(shadow.element);
    });
    this.mixedAt = null;
    this.later();
  }
  redraw() { this.noise++; this.mixedAt = null; if (!this.mixed) this.augment(true); this.later(); }
  askMixed() {
    if (this.asking || this.mixedAt === this.step) return;
    const { step, number, noise } = this;
    this.asking = true;
    this.link.ask("augmented", { episode: number, step, draw: noise }).then(({ head, buffers }) => {
      this.asking = false;
      if (number !== this.number) return;
      const from = head.parts.length, numbers = Object.fromEntries(head.groups.map((name, i) => [name, floats(buffers[from + i])]));
      this.mixedFrame = { page: new Page({ head, buffers }, [step]), numbers };
      this.mixedAt = noise === this.noise ? step : null;
      this.later();
    }, error => { this.asking = false; this.augment(false); this.say(error.message); });
  }
  // ---- keys
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target === this.which || event.target.tagName === "SELECT") return;
    const far = event.shiftKey ? 10 : 1;
    const does = {
      ArrowLeft: () => this.go(this.step - far), ArrowRight: () => this.go(this.step + far), Home: () => this.go(0), End: () => this.go(this.length - 1),
      " ": () => this.toggle(), "[": () => this.choose(this.number - 1), "]": () => this.choose(this.number + 1), PageUp: () => this.choose(this.number - 1),
      PageDown: () => this.choose(this.number + 1), c: () => this.cloud?.next(), r: () => { this.cloud?.reset(); this.later(); },
      a: () => this.head?.can_augment && this.augment(!this.mixed), n: () => this.head?.can_augment && this.redraw(),
      "+": () => this.faster(1), "-": () => this.faster(-1),
    }[event.key];
    if (!does) return;
    event.preventDefault();
    event.stopPropagation();
    does();
  }
  faster(by) {
    this.speed = SPEEDS[clamp(SPEEDS.indexOf(this.speed) + by, 0, SPEEDS.length - 1)];
    this.pace.value = this.speed;
  }
  say(said) { this.refused.textContent = said; }
  forget() {
    this.pages?.close(); this.chunks?.close(); this.cloud?.close();
    this.chunks = this.cloud = null;
  }
  close() {
    this.closed = true;
    this.stop(); this.forget(); this.link.close(); this.watch.disconnect(); this.theme.disconnect();
    this.model.off("change:step", this.moved);
    this.model.off("change:episode", this.chosen);
  }
}
