// Elements, colours and small arithmetic that every part uses.

const PALETTE = ["#3b7dd8", "#e07b39", "#2e9a5a", "#b05cc6", "#c9a227", "#17a2b8", "#d1495b", "#7f8c8d", "#8d6e4f", "#5c6bc0"];
const PREDICTED = "#e0378c";
const SEEN = "rgba(59,125,216,0.16)", ACTED = "rgba(224,123,57,0.18)";
const VIRIDIS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "text") element.textContent = value;
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter(Boolean));
  return element;
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

function viridis(share) {
  const at = clamp(share, 0, 1) * (VIRIDIS.length - 1), below = Math.min(Math.floor(at), VIRIDIS.length - 2), part = at - below;
  return VIRIDIS[below].map((value, i) => Math.round(value + part * (VIRIDIS[below + 1][i] - value)));
}

// a canvas as sharp as the screen: its context, in CSS pixels
function sharp(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1, w = Math.round(width * ratio), h = Math.round(height * ratio);
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

function themed(root) {
  const style = getComputedStyle(root), read = name => style.getPropertyValue(name).trim();
  return { ink: read("--ink"), faint: read("--faint"), line: read("--line") };
}

// round numbers between two others, about so many
function ticks(low, high, count) {
  const rough = (high - low) / count, size = 10 ** Math.floor(Math.log10(rough)), step = [1, 2, 5, 10].map(each => each * size).find(each => each >= rough);
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high + step * 1e-6; n++) found.push(n * step);
  return found;
}

// few digits, none that say nothing
function brief(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size >= 1e4 || size < 1e-3) ? value.toExponential(1) : String(+value.toPrecision(3));
}

// floats at any offset of a message's bytes
function floats(view) {
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

const bytes = view => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

function words(view) {
  return new Uint16Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}
