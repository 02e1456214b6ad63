// A table of runs: ticked by a click, sorted by a column's head, filtered by words; a run unfolds to its checkpoints.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function number(value) {
  return value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString();
}

// numbers by size, words by letter, what is missing last
function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

function render({ model, el }) {
  const look = { sort: null, down: false, words: "", open: new Set() };
  const filter = element("input", {
    type: "search", placeholder: "filter, e.g. flow finished", "aria-label": "filter runs",
    "data-lm-suppress-shortcuts": "true", oninput: () => { look.words = filter.value; draw(); },
  });
  const said = element("span", { class: "ppt-said", "aria-live": "polite" });
  const head = element("thead"), body = element("tbody");
  const press = (label, act) => element("button", { type: "button", onclick: act }, label);
  el.classList.add("ppt-picker");
  el.append(
    element("div", { class: "ppt-bar" }, filter,
      press("Tick all shown", () => pick([...new Set([...model.get("picked"), ...shown().map(name)])])),
      press("Clear", () => pick([])),
      press("Read again", () => model.send("read"))),
    element("div", { class: "ppt-scroll" }, element("table", {}, head, body)),
    element("div", { class: "ppt-foot" }, said),
  );

  const name = (row) => row.cells.run.value;

  function pick(names) {
    model.set("picked", names);
    model.save_changes();
    draw();
  }

  function toggle(run) {
    const picked = model.get("picked");
    pick(picked.includes(run) ? picked.filter((each) => each !== run) : [...picked, run]);
  }

  function shown() {
    const words = look.words.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = model.get("rows").filter((row) => {
      const text = model.get("columns").map(({ key, name }) => `${name}=${row.cells[key].text}`).join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
    if (look.sort === null) return rows;
    const sign = look.down ? -1 : 1;
    return [...rows].sort((a, b) => {
      const [one, other] = [a.cells[look.sort].value, b.cells[look.sort].value];
      return one === null || other === null ? compare(one, other) : sign * compare(one, other);
    });
  }

  function sortBy(key) {
    look.down = look.sort === key && !look.down;
    look.sort = key;
    draw();
  }

  function drawHead() {
    const cells = model.get("columns").map(({ key, name }) => {
      const sorted = look.sort === key;
      const mark = element("span", { class: "ppt-mark" }, sorted ? (look.down ? "▾" : "▴") : "");
      return element("th", { title: key, "aria-sort": sorted ? (look.down ? "descending" : "ascending") : "none" },
        element("button", { type: "button", onclick: () => sortBy(key) }, name, mark));
    });
    head.replaceChildren(element("tr", {}, element("th"), ...cells,
      element("th", { class: "ppt-files" }, "checkpoints")));
  }

  function drawRow(row) {
    const run = name(row), picked = model.get("picked").includes(run), open = look.open.has(run);
    const tick = element("input", {
      type: "checkbox", "aria-label": run, onclick: (event) => { event.stopPropagation(); toggle(run); },
    });
    tick.checked = picked;
    const cells = model.get("columns").map(({ key }) => element("td", {
      class: `${typeof row.cells[key].value === "number" ? "ppt-number" : ""} ${key === "run" ? "ppt-run" : ""}`,
      title: key === "state" && row.error ? row.error : row.cells[key].text,
      "data-state": key === "state" && row.cells[key].text,
    }, row.cells[key].text));
    const files = row.checkpoints.length;
    const unfold = element("button", {
      type: "button", "aria-expanded": String(open), "aria-label": `checkpoints of ${run}`, disabled: files === 0,
      onclick: (event) => {
        event.stopPropagation();
        open ? look.open.delete(run) : look.open.add(run);
        draw();
      },
    }, files ? `${files} ${open ? "▴" : "▾"}` : "–");
    return element("tr", { class: picked ? "ppt-picked" : "", "data-run": run, onclick: () => toggle(run) },
      element("td", {}, tick), ...cells, element("td", { class: "ppt-files" }, unfold));
  }

  function drawCheckpoints(row) {
    const buttons = row.checkpoints.map((file) => {
      const parts = [["loss", file.loss], ["val loss", file.val_loss], ["success", file.success]];
      const numbers = parts.filter(([, value]) => value !== null).map(([what, value]) => `${what} ${number(value)}`);
      const chosen = model.get("checkpoint") === file.path;
      return element("button", {
        type: "button", title: file.path, "aria-pressed": String(chosen), "data-path": file.path,
        onclick: () => { model.set("checkpoint", chosen ? "" : file.path); model.save_changes(); draw(); },
      }, element("b", {}, `epoch ${file.epoch}`), ` ${numbers.join(", ")}`);
    });
    const width = model.get("columns").length + 2;
    return element("tr", { class: "ppt-checkpoints" }, element("td", { colspan: width }, ...buttons));
  }

  function draw() {
    const rows = shown(), picked = model.get("picked").length, file = model.get("checkpoint");
    drawHead();
    body.replaceChildren(...rows.flatMap((row) =>
      look.open.has(name(row)) ? [drawRow(row), drawCheckpoints(row)] : [drawRow(row)]));
    const all = model.get("rows").length;
    const which = rows.length < all ? `${rows.length} of ${all} runs shown, ` : `${all} runs, `;
    said.textContent = `${which}${picked} ticked` + (file ? `; checkpoint ${file.split("/").slice(-2).join("/")}` : "");
    said.title = file;
  }

  const changes = ["change:rows", "change:columns", "change:picked", "change:checkpoint"];
  for (const change of changes) model.on(change, draw);
  draw();
  return () => { for (const change of changes) model.off(change, draw); };
}

export default { render };
