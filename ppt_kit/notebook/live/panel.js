// A run while it trains: the kernel sends new rows of metrics.jsonl, this page keeps and draws them.

const SMOOTHING = 0.9; // of the thick loss curve, a row
const QUIET_S = 60; // without a row: said
const ASKED = /^(Stop|SIG\w+)$/; // why a run ended that was asked to
const UNANSWERED_S = 20; // a run that makes no step meanwhile: said
const UNHEARD_MS = 3000; // a kernel that is free has heard a request by then

function element(tag, given = {}, ...children) {
  const made = Object.assign(document.createElement(tag), given);
  made.append(...children);
  return made;
}

function short(value) {
  if (value === null || value === undefined || !isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) {
    const [digits, power] = value.toExponential(2).split("e");
    return `${Number(digits)}e${power.replace("+", "").replace("-", "−")}`;
  }
  if (size >= 1000) return Math.round(value).toLocaleString("en").replaceAll(",", " ");
  return String(Number(value.toPrecision(4)));
}

function duration(seconds) {
  if (!isFinite(seconds)) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  const hours = Math.round(seconds / 3600);
  return hours < 36 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

// ---------------------------------------------------------------- what is known

function nothing() {
  return { has: 0, train: [], smooth: [], rates: [], val: [], eval: new Map(), saved: [], steered: [], last: {}, end: null, epochs: null };
}

function take(known, row) {
  if (row.kind === "train") {
    known.every = row.step - (known.last.step ?? 0);
    known.last = row;
    if (row.loss !== undefined) {
      const before = known.smooth.length ? known.smooth[known.smooth.length - 1][1] : row.loss;
      // early on a mean of the few there are, so that the first losses do not linger
      const keep = Math.min(SMOOTHING, known.smooth.length / (known.smooth.length + 4));
      known.train.push([row.step, row.loss]);
      known.smooth.push([row.step, keep * before + (1 - keep) * row.loss]);
    }
    known.rates.push([row.step, row.lr]);
  } else if (row.kind === "val" && row.loss !== undefined) known.val.push([row.step, row.loss]);
  else if (row.kind === "eval" && row.success !== undefined) {
    if (!known.eval.has(row.domain)) known.eval.set(row.domain, []);
    known.eval.get(row.domain).push([row.step, row.success, row.low_95, row.high_95]);
    known.eval.get(row.domain).sort((a, b) => a[0] - b[0]);
  } else if (row.kind === "checkpoint") {
    // a file that was written again is one file
    known.saved = [...known.saved.filter((each) => each.path !== row.path), row];
  } else if (row.kind === "steer") known.steered.push(row);
  else if (row.kind === "end") known.end = row;
}

// ---------------------------------------------------------------- curves

function ticks(low, high, most) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(Math.abs(at) < step * 1e-6 ? 0 : at);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const digit of [1, 2, 5]) found.push(digit * 10 ** power);
  const inside = found.filter((each) => each >= low * 0.999 && each <= high * 1.001);
  return inside.length > 5 ? inside.filter((each) => Math.abs(Math.log10(each) - Math.round(Math.log10(each))) < 1e-9) : inside;
}

class Chart {
  constructor(title, { wide = false, percent = false, log = false } = {}) {
    Object.assign(this, { title, percent, log, series: [], lastStep: 1, hovered: null });
    this.canvas = element("canvas");
    this.legend = element("div", { className: "legend" });
    this.at = element("span", { className: "at" });
    this.box = element("div", { className: `chart${wide ? " wide" : ""}` }, this.legend, this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this.hover(event.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.hover(null));
  }

  hover(x) {
    this.hovered = x;
    this.draw();
  }

  set(series, lastStep) {
    this.series = series.filter((each) => each.points.length);
    this.lastStep = lastStep;
    const key = JSON.stringify(this.series.map((each) => each.name));
    if (key !== this.key) {
      this.key = key;
      this.legend.replaceChildren(
        ...(this.series.length ? [] : [element("span", { textContent: this.title })]),
        ...this.series.map((each) => {
          const mark = element("i");
          mark.style.borderColor = `var(${each.color})`;
          mark.style.opacity = each.thin ? 0.4 : 1;
          return element("span", {}, mark, each.name);
        }),
        this.at,
      );
    }
    this.draw();
  }

  range() {
    let low = Infinity, high = -Infinity;
    for (const { points } of this.series)
      for (const point of points) {
        if (!isFinite(point[1])) continue;
        low = Math.min(low, point[1]);
        high = Math.max(high, point[1]);
      }
    if (this.percent) return [0, 1, false];
    if (low > high) return [0, 1, false];
    const log = this.log && low > 0 && high / low > 3;
    if (log) return [low / 1.1, high * 1.1, true];
    const room = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
    return [this.log ? low - room : Math.min(0, low), high + room, false];
  }

  draw() {
    const { canvas } = this, ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const style = getComputedStyle(canvas), colour = (name) => style.getPropertyValue(name).trim() || "#888";
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `11px ${style.fontFamily}`;
    const [low, high, log] = this.range();
    const left = 46, right = width - 8, top = 8, bottom = height - 18;
    const scale = log ? Math.log : (each) => each;
    const x = (step) => left + ((right - left) * step) / Math.max(1, this.lastStep);
    const y = (value) => bottom - ((bottom - top) * (scale(value) - scale(low))) / (scale(high) - scale(low) || 1);
    this.axes(pen, { x, y, low, high, log, left, right, top, bottom, colour });
    for (const each of this.series) this.curve(pen, each, { x, y, left, right, colour: colour(each.color) });
    this.readOut(pen, { x, y, left, right, top, bottom, colour });
  }

  axes(pen, { x, y, low, high, log, left, right, top, bottom, colour }) {
    pen.lineWidth = 1;
    pen.fillStyle = colour("--jp-ui-font-color2");
    pen.strokeStyle = colour("--jp-border-color2");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const each of log ? logTicks(low, high) : ticks(low, high, Math.max(2, (bottom - top) / 40))) {
      const at = Math.round(y(each)) + 0.5;
      if (at < top - 2 || at > bottom + 2) continue;
      pen.beginPath();
      pen.moveTo(left, at);
      pen.lineTo(right, at);
      pen.stroke();
      pen.fillText(this.percent ? `${Math.round(each * 100)} %` : short(each), left - 6, at);
    }
    pen.textBaseline = "top";
    const steps = ticks(0, this.lastStep, Math.max(3, (right - left) / 90)).filter((each) => Number.isInteger(each));
    for (const each of steps) {
      pen.textAlign = each === 0 ? "left" : x(each) > right - 16 ? "right" : "center";
      pen.fillText(short(each), x(each), bottom + 5);
    }
  }

  curve(pen, { points, thin, dots, spread }, { x, y, left, right, colour }) {
    pen.strokeStyle = pen.fillStyle = colour;
    pen.globalAlpha = thin ? 0.3 : 1;
    pen.lineWidth = thin ? 1 : 1.75;
    pen.lineJoin = "round";
    pen.beginPath();
    // of more points than the curve is wide: the lowest and the highest of each column
    const every = Math.max(1, Math.floor(points.length / Math.max(1, right - left)));
    for (let from = 0; from < points.length; from += every) {
      let low = points[from], high = points[from];
      for (let place = from; place < Math.min(from + every, points.length); place++) {
        if (points[place][1] < low[1]) low = points[place];
        if (points[place][1] > high[1]) high = points[place];
      }
      for (const [step, value] of low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low])
        from === 0 && step === points[0][0] ? pen.moveTo(x(step), y(value)) : pen.lineTo(x(step), y(value));
    }
    pen.stroke();
    if (dots || points.length === 1)
      for (const [step, value, lowest, highest] of points) {
        if (spread && isFinite(lowest)) {
          pen.globalAlpha = 0.4;
          pen.beginPath();
          pen.moveTo(x(step), y(lowest));
          pen.lineTo(x(step), y(highest));
          pen.stroke();
          pen.globalAlpha = 1;
        }
        if (points.length > 60 && !spread) continue;
        pen.beginPath();
        pen.arc(x(step), y(value), 2.75, 0, 7);
        pen.fill();
      }
    pen.globalAlpha = 1;
  }

  readOut(pen, { x, y, left, right, top, bottom, colour }) {
    this.at.textContent = "";
    if (this.hovered === null || this.hovered < left || this.hovered > right || !this.series.length) return;
    const step = ((this.hovered - left) / (right - left)) * this.lastStep;
    const near = (points) => points.reduce((best, each) => (Math.abs(each[0] - step) < Math.abs(best[0] - step) ? each : best));
    const found = this.series.filter((each) => !each.thin).map((each) => [each, near(each.points)]);
    const at = Math.round(x(found[0][1][0])) + 0.5;
    pen.strokeStyle = colour("--jp-ui-font-color3");
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(at, top);
    pen.lineTo(at, bottom);
    pen.stroke();
    for (const [each, [where, value]] of found) {
      pen.fillStyle = colour(each.color);
      pen.beginPath();
      pen.arc(x(where), y(value), 3.5, 0, 7);
      pen.fill();
    }
    const named = found.length > 1 ? (each) => `${each.short ?? each.name} ` : () => "";
    const said = found.map(([each, [, value]]) => named(each) + (this.percent ? `${Math.round(100 * value)} %` : short(value)));
    this.at.textContent = `step ${short(found[0][1][0])}: ${said.join(", ")}`;
  }
}

// ---------------------------------------------------------------- the panel

class View {
  constructor(model, host) {
    this.model = model;
    this.known = nothing();
    this.part = null;
    this.asked = null;
    this.heardAt = performance.now();
    // without a header it stands below one that says how the run stands
    this.headed = model.get("headed");
    this.build(host);
    this.onNews = () => this.take(model.get("news"));
    model.on("change:news", this.onNews);
    this.resized = new ResizeObserver(() => this.redraw());
    this.resized.observe(this.root);
    // JupyterLab says on the body which theme it has
    this.themed = new MutationObserver(() => setTimeout(() => this.redraw(), 50));
    this.themed.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-name", "data-jp-theme-light"] });
    this.clock = setInterval(() => this.showState(), 1000);
    this.onNews();
  }

  close() {
    this.model.off("change:news", this.onNews);
    this.resized.disconnect();
    this.themed.disconnect();
    clearInterval(this.clock);
  }

  build(host) {
    this.name = element("span", { className: "name" });
    this.state = element("span", { className: "state" });
    this.stop = element("button", { textContent: "Stop", title: "End the training with a checkpoint" });
    this.save = element("button", { textContent: "Save now", title: "Write a checkpoint, and go on" });
    this.stop.addEventListener("click", () => this.ask("stop"));
    this.save.addEventListener("click", () => this.ask("save"));
    this.fill = element("div");
    this.far = element("span");
    this.left = element("span");
    this.numbers = element("div", { className: "numbers" });
    this.loss = new Chart("loss", { wide: true, log: true });
    this.rate = new Chart("learning rate");
    this.success = new Chart("success", { percent: true });
    this.charts = element("div", { className: "charts" }, this.loss.box, this.rate.box, this.success.box);
    this.saved = element("div", { className: "saved" });
    this.note = element("div", { className: "note" });
    this.note.setAttribute("role", "status");
    this.forms = element("div", { className: "line ask" }, this.form("lr", "peak learning rate"), this.form("epochs", "epochs"), ...(this.headed ? [] : [this.save]));
    this.root = element(
      "div", { className: this.headed ? "ppt-live" : "ppt-live below" },
      ...(this.headed ? [element("div", { className: "line head" }, this.name, this.state, this.save, this.stop)] : []),
      element("div", { className: "bar" }, this.fill),
      element("div", { className: "where" }, this.far, ...(this.headed ? [] : [this.state]), this.left),
      this.numbers, this.charts, this.saved, this.forms, this.note,
    );
    // JupyterLab would take the keys of a field for its own, and the focus with them
    this.root.dataset.lmSuppressShortcuts = "true";
    this.root.addEventListener("keydown", (event) => event.stopPropagation());
    host.append(this.root);
  }

  form(what, told) {
    const field = element("input", { type: "text", name: what, autocomplete: "off", spellcheck: false });
    const button = element("button", { type: "submit", textContent: "Set" });
    const form = element("form", { noValidate: true }, element("label", {}, `${told} `, field), button);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (field.value.trim()) this.ask(what, field.value.trim());
    });
    this[`${what}Field`] = field;
    return form;
  }

  ask(what, value = null) {
    const number = `${Date.now()}-${Math.random().toString(36).slice(2)}`;
    this.asked = { what, value, number, at: performance.now(), id: null };
    this.model.send({ ask: what, value, number });
    this.say(`${this.words(this.asked)}: asked, after the next step`);
    setTimeout(() => {
      if (this.asked?.number === number && !this.asked.id && !this.asked.answered)
        this.say("The kernel has not heard this: it runs a cell. Interrupt it (■) and the run stops with a checkpoint.", true);
    }, UNHEARD_MS);
  }

  words({ what, value }) {
    return { stop: "Stop", save: "Save now", lr: `Peak learning rate ${value}`, epochs: `${value} epochs` }[what];
  }

  say(text, bad = false) {
    this.note.textContent = text;
    this.note.classList.toggle("bad", bad);
  }

  take(news) {
    if (!news || news.end === undefined) return;
    this.news = news;
    this.heardAt = performance.now();
    if (news.part !== this.part || (news.first === 0 && news.end < this.known.has)) {
      this.part = news.part;
      this.known = nothing();
    }
    // what was sent again because an answer was late: from the start once more, or known already
    if (news.first === 0 && this.known.has < news.end) this.known = nothing();
    if (news.first === this.known.has) {
      for (const row of news.rows) take(this.known, row);
      this.known.has = news.end;
    }
    this.model.send({ has: this.known.has, part: this.part });
    this.answer(news.said ?? {});
    this.show();
  }

  answer(said) {
    const asked = this.asked;
    if (!asked || asked.answered) return;
    if (said.number === asked.number) {
      asked.id = said.id ?? null;
      if (said.refused) {
        asked.answered = true;
        this.say(said.refused, true);
        return;
      }
    }
    const row = asked.id && this.known.steered.find((each) => each.id === asked.id);
    if (!row) return;
    asked.answered = true;
    if (row.refused) return this.say(row.refused, true);
    const isNumber = row.value !== undefined;
    const when = isNumber ? `from step ${short(row.step + 1)} on, was ${short(row.was)}` : `after step ${short(row.step)}`;
    this.say(`${this.words(asked)}: ${when}`);
    if (isNumber) this[`${asked.what}Field`].value = "";
  }

  show() {
    const { known, news } = this, last = known.last;
    this.name.textContent = news.run;
    this.name.title = news.folder;
    const total = last.total_steps ?? known.end?.step ?? last.step ?? 0, step = last.step ?? 0;
    this.fill.style.width = total ? `${(100 * step) / total}%` : "0";
    const epoch = last.epoch ? `, epoch ${last.epoch}${last.epochs ? ` of ${last.epochs}` : ""}` : "";
    this.far.textContent = step ? `step ${short(step)}${total ? ` of ${short(total)}` : ""}${epoch}` : "no step yet";
    this.showNumbers();
    // a validation may be of a later step than the newest row of training
    const end = Math.max(1, Math.min(total, Math.max(step, known.val.at(-1)?.[0] ?? 0) * 1.03)), brand = "--jp-brand-color1", warm = "--jp-warn-color1";
    this.loss.set(
      [
        { name: "training", points: known.train, color: brand, thin: known.train.length > 1 },
        { name: "smoothed", points: known.train.length > 1 ? known.smooth : [], color: brand },
        { name: "validation", points: known.val, color: warm, dots: true },
      ],
      end,
    );
    this.rate.set([{ name: "learning rate", points: known.rates, color: "--jp-info-color1" }], end);
    const shades = ["--jp-success-color1", "--jp-info-color1", "--jp-warn-color1", "--jp-error-color1"];
    const success = [...known.eval].map(([domain, points], place) => ({
      name: place ? domain : `success in ${domain}`, short: domain, points, color: shades[place % shades.length], dots: true, spread: true,
    }));
    this.success.box.style.display = success.length ? "" : "none";
    this.rate.box.classList.toggle("across", !success.length);
    this.success.set(success, end);
    this.showSaved();
    this.lrField.placeholder = short(news.peak ?? undefined);
    this.epochsField.placeholder = String(last.epochs ?? "–");
    this.showState();
  }

  showNumbers() {
    const { known } = this, last = known.last;
    const val = known.val.at(-1)?.[1];
    const success = [...known.eval.values()].map((each) => each.at(-1)[1]);
    const memory = last.device_gb ?? last.host_gb;
    const told = [
      ["loss", short(last.loss)],
      ["validation", short(val)],
      ...(success.length ? [["success", `${Math.round((100 * success.reduce((a, b) => a + b)) / success.length)} %`]] : []),
      ["learning rate", short(last.lr)],
      ["samples/s", short(last.samples_per_s)],
      [last.device_gb === undefined ? "memory" : "GPU memory", memory === undefined ? "–" : `${memory.toFixed(memory < 10 ? 2 : 1)} GB`],
    ];
    this.numbers.replaceChildren(
      ...told.map(([name, value]) => element("div", {}, element("span", { textContent: name }), element("b", { textContent: value }))),
    );
  }

  showSaved() {
    const rows = this.known.saved.slice(-3).reverse().map((row) => {
      const cells = [
        row.path?.split("/").at(-1) ?? "", `epoch ${row.epoch}`, `step ${short(row.step)}`, `loss ${short(row.loss)}`,
        row.val_loss === undefined ? "" : `val. ${short(row.val_loss)}`,
      ];
      return element("tr", {}, ...cells.map((textContent) => element("td", { textContent })));
    });
    this.saved.replaceChildren(rows.length ? element("table", {}, element("tbody", {}, ...rows)) : "no checkpoint yet");
  }

  showState() {
    if (!this.news) return;
    const { known, news } = this, last = known.last;
    const age = (news.age_s ?? 0) + (performance.now() - this.heardAt) / 1000;
    let is = "training", told = "training";
    if (news.failed) [is, told] = ["failed", "failed"];
    else if (known.end?.reason === "finished") [is, told] = ["finished", "finished"];
    else if (known.end && !ASKED.test(known.end.reason)) [is, told] = ["failed", "failed"];
    else if (known.end) [is, told] = ["stopped", `stopped (${known.end.reason}), saved`];
    else if (news.interrupted) [is, told] = ["stopped", "stopped before its first step"];
    else if (news.gone) [is, told] = ["failed", "gone: no process trains here any more"];
    else if (!last.step) [is, told] = ["waiting", "waiting for the first row"];
    else if (age > Math.max(QUIET_S, (5 * known.every) / (last.steps_per_s || 1))) [is, told] = ["quiet", `nothing new for ${duration(age)}`];
    if (is === "failed" && this.headed) this.say(news.failed || known.end?.reason || "the same call goes on, by train.resume=auto", true);
    const { asked } = this, waits = asked ? (performance.now() - asked.at) / 1000 : 0;
    if (asked?.id && !asked.answered && waits > UNANSWERED_S)
      this.say(`${this.words(asked)}: asked ${duration(waits)} ago, and no answer. Is the run alive?`, true);
    this.state.dataset.is = is;
    this.state.textContent = told;
    this.state.hidden = !this.headed && is !== "quiet";
    const over = ["finished", "stopped", "failed"].includes(is);
    for (const each of this.root.querySelectorAll("button, input")) each.disabled = over;
    // what the run did not live to answer
    if (over && asked && !asked.answered) {
      asked.answered = true;
      if (is !== "failed") this.say("");
    }
    const left = last.total_steps && last.steps_per_s ? (last.total_steps - last.step) / last.steps_per_s : NaN;
    this.left.textContent = over || !last.step ? "" : `${duration(left)} left`;
  }

  redraw() {
    for (const chart of [this.loss, this.rate, this.success]) chart.draw();
  }
}

export default {
  render({ model, el }) {
    const view = new View(model, el);
    return () => view.close();
  },
};
