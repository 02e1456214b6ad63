// What a launched job does, the log of a rank, and three buttons. The page asks; the kernel answers.

const ASK_MS = 1000, ASK_ENDED_MS = 3000, SILENT_MS = 15000, SURE_MS = 4000;
const HINTS = {
  stop: "Save and stop: Resume goes on from there",
  kill: "End at once: what came after the last checkpoint is lost",
  resume: "Go on from the newest checkpoint, with the same ranks",
};

function make(tag, name, parent, text) {
  const element = document.createElement(tag);
  element.className = name;
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function build(el) {
  const root = make("div", "ppt-job", el);
  const head = make("div", "ppt-job-head", root);
  const parts = {
    root,
    word: make("span", "ppt-job-word", head),
    run: make("span", "ppt-job-run", head),
    where: make("span", "ppt-job-where", head),
  };
  parts.detail = make("div", "ppt-job-detail", root);
  parts.failure = make("pre", "ppt-job-failure", root);
  const buttons = make("div", "ppt-job-buttons", root);
  for (const name of ["stop", "kill", "resume"]) {
    parts[name] = make("button", `ppt-job-${name}`, buttons, name[0].toUpperCase() + name.slice(1));
    parts[name].title = HINTS[name];
  }
  parts.message = make("span", "ppt-job-message", buttons);
  const tools = make("div", "ppt-job-tools", root);
  const label = make("label", "ppt-job-label", tools, "Log of rank ");
  parts.rank = make("select", "ppt-job-rank", label);
  parts.copy = make("button", "ppt-job-copy", tools, "Copy command");
  parts.command = make("input", "ppt-job-command", tools);
  parts.command.readOnly = true;
  parts.command.setAttribute("aria-label", "The command that starts the same ranks");
  parts.log = make("pre", "ppt-job-log", root);
  parts.log.tabIndex = 0;
  // JupyterLab would take the keys that scroll and choose
  for (const each of [parts.log, parts.rank, parts.command]) each.setAttribute("data-lm-suppress-shortcuts", "true");
  return parts;
}

function show(parts, told, silent) {
  parts.root.dataset.word = told.word;
  write(parts.word, told.word);
  write(parts.run, told.run);
  parts.run.title = told.run_dir;
  write(parts.where, told.where);
  write(parts.detail, told.detail);
  const isNew = told.failure && parts.failure.textContent !== told.failure;
  write(parts.failure, told.failure);
  parts.failure.hidden = !told.failure;
  // what went wrong is its last line
  if (isNew) parts.failure.scrollTop = parts.failure.scrollHeight;
  parts.stop.disabled = silent || !told.lives;
  parts.kill.disabled = silent || !told.lives;
  parts.resume.disabled = silent || told.lives || told.word === "ended";
  write(parts.message, silent ? "the kernel does not answer; the job goes on, ppt.attach(run_dir) finds it" : told.message);
  parts.message.classList.toggle("ppt-job-refused", Boolean(told.refused && !silent));
  if (parts.command.value !== told.command) parts.command.value = told.command;
}

function showRanks(select, ranks, chosen) {
  if (select.options.length !== ranks) {
    select.replaceChildren(...Array.from({ length: ranks }, (_, rank) => new Option(String(rank), String(rank))));
  }
  select.value = String(chosen);
}

function showLog(log, text) {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
  write(log, text || "it has printed nothing");
  if (atEnd) log.scrollTop = log.scrollHeight;
}

async function copy(parts) {
  parts.command.select();
  try {
    await navigator.clipboard.writeText(parts.command.value);
  } catch {
    // a page that came by plain http from another machine has no clipboard; what is selected can be copied
    document.execCommand("copy");
  }
  write(parts.copy, "Copied");
  setTimeout(() => write(parts.copy, "Copy command"), 1500);
}

function render({ model, el }) {
  const parts = build(el);
  let answered = Date.now(), waiting = false, timer = 0, sure = 0;
  const draw = () => {
    show(parts, model.get("told"), Date.now() - answered > SILENT_MS);
    showRanks(parts.rank, model.get("told").ranks, model.get("rank"));
    showLog(parts.log, model.get("log"));
  };
  const heard = () => { answered = Date.now(); waiting = false; draw(); };
  const calm = () => { clearTimeout(sure); sure = 0; write(parts.kill, "Kill"); };
  const ask = () => {
    // one question at a time: a busy kernel is not buried in them
    if (!waiting) { waiting = true; model.send({ do: "tick" }); }
    if (Date.now() - answered > SILENT_MS) draw();
    timer = setTimeout(ask, model.get("told").lives ? ASK_MS : ASK_ENDED_MS);
  };
  for (const name of ["stop", "resume"]) parts[name].onclick = () => { calm(); model.send({ do: name }); };
  parts.kill.onclick = () => {
    if (sure) { calm(); model.send({ do: "kill" }); return; }
    write(parts.kill, "Kill now?");
    sure = setTimeout(calm, SURE_MS);
  };
  parts.rank.onchange = () => { model.set("rank", Number(parts.rank.value)); model.save_changes(); };
  parts.copy.onclick = () => copy(parts);
  parts.command.onclick = () => parts.command.select();
  model.on("change", draw);
  model.on("msg:custom", heard);
  draw();
  ask();
  parts.log.scrollTop = parts.log.scrollHeight;
  return () => { clearTimeout(timer); calm(); model.off("change", draw); model.off("msg:custom", heard); };
}

export default { render };
