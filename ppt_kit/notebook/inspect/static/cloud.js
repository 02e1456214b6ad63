// The point cloud: WebGL without a library; drag turns it, shift and drag moves it, the wheel comes nearer.

const POINTS_VERTEX = `
attribute vec3 at; attribute vec3 colour; attribute float segment;
uniform mat4 view; uniform vec3 low, span; uniform float bottom, top, size, dim; uniform int by; uniform vec3 stops[9], palette[10];
varying vec4 ink;
vec3 ramp(float share) {
  float x = clamp(share, 0.0, 1.0) * 8.0; vec3 c = stops[0];
  for (int i = 0; i < 8; i++) if (x >= float(i)) c = mix(stops[i], stops[i + 1], min(x - float(i), 1.0));
  return c;
}
void main() {
  vec3 p = low + at * span;
  gl_Position = view * vec4(p, 1.0);
  gl_PointSize = clamp(size / gl_Position.w, 1.5, 9.0);
  vec3 c = colour;
  if (by == 1) c = ramp((p.z - bottom) / (top - bottom));
  if (by == 2) { float s = mod(segment, 10.0); for (int i = 0; i < 10; i++) if (abs(s - float(i)) < 0.5) c = palette[i]; }
  ink = vec4(c, dim);
}`;
const LINES_VERTEX = `
attribute vec3 at; attribute vec4 colour; uniform mat4 view; uniform float size; varying vec4 ink;
void main() { gl_Position = view * vec4(at, 1.0); gl_PointSize = size; ink = colour; }`;
const FRAGMENT = `precision mediump float; varying vec4 ink; void main() { gl_FragColor = vec4(ink.rgb * ink.a, ink.a); }`;

const BY = { colour: 0, height: 1, segment: 2 };

class Cloud {
  constructor(root, head, { changed, title = "point cloud" }) {
    Object.assign(this, { root, head, changed });
    this.canvas = make("canvas", { class: "ppt-cloud", "data-view": "cloud", title: "drag: turn · shift+drag: move · wheel: nearer · double click: as before" });
    this.by = head.by[0];
    this.choice = make("select", { class: "ppt-select", title: "colour of the points (c)", onchange: () => this.colored(this.choice.value) },
      ...head.by.map(name => make("option", { value: name, text: `by ${name}` })));
    const count = head.shown < head.points ? `${head.shown} of ${head.points} points` : `${head.points} points`;
    this.element = make("figure", { class: "ppt-tile ppt-wide" }, this.canvas,
      make("figcaption", {}, make("span", { text: `${title}, ${count}` }), this.ways = make("span", { class: "ppt-ways" }), this.choice));
    this.centre = head.low.map((low, i) => (low + head.high[i]) / 2);
    this.radius = Math.max(0.05, Math.hypot(...head.low.map((low, i) => head.high[i] - low)) / 2);
    this.start();
    this.reset();
    this.steer();
  }
  // what the paths are: [name, colour] of each
  legend(paths) {
    this.ways.replaceChildren(...paths.map(([text, color]) => make("span", {}, make("i", { style: `background:${color}` }), text)));
  }
  colored(name) { this.by = name; this.choice.value = name; this.changed(); }
  next() { this.colored(this.head.by[(this.head.by.indexOf(this.by) + 1) % this.head.by.length]); }
  start() {
    const gl = this.gl = this.canvas.getContext("webgl", { antialias: true, alpha: true, preserveDrawingBuffer: true });
    if (!gl) {
      this.element.append(make("p", { class: "ppt-refused", text: "this browser draws no WebGL: no point cloud" }));
      return;
    }
    this.points = this.program(POINTS_VERTEX, ["at", "colour", "segment"]);
    this.lines = this.program(LINES_VERTEX, ["at", "colour"]);
    this.buffers = Object.fromEntries(["xyz", "colors", "segments", "line", "ink"].map(name => [name, gl.createBuffer()]));
    gl.useProgram(this.points.program);
    gl.uniform3fv(this.points.at("stops"), VIRIDIS.flat().map(value => value / 255));
    gl.uniform3fv(this.points.at("palette"), PALETTE.flatMap(hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16) / 255)));
    gl.enable(gl.DEPTH_TEST); gl.enable(gl.BLEND); gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA); gl.depthFunc(gl.LEQUAL);
  }
  program(vertex, attributes) {
    const gl = this.gl, program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source); gl.compileShader(shader); gl.attachShader(program, shader);
    }
    attributes.forEach((name, i) => gl.bindAttribLocation(program, i, name));
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    const found = {};
    return { program, at: name => found[name] ?? (found[name] = gl.getUniformLocation(program, name)) };
  }
  reset() { this.yaw = -0.9; this.pitch = 0.5; this.far = this.radius * 1.7; this.target = [...this.centre]; }
  steer() {
    let from = null;
    this.canvas.addEventListener("pointerdown", event => { from = [event.clientX, event.clientY]; this.canvas.setPointerCapture(event.pointerId); });
    this.canvas.addEventListener("pointerup", () => { from = null; });
    this.canvas.addEventListener("pointermove", event => {
      if (!from) return;
      const dx = event.clientX - from[0], dy = event.clientY - from[1];
      from = [event.clientX, event.clientY];
      if (event.shiftKey) this.shift(dx, dy);
      else { this.yaw -= dx * 0.01; this.pitch = clamp(this.pitch + dy * 0.01, -1.5, 1.5); }
      this.changed();
    });
    this.canvas.addEventListener("wheel", event => { event.preventDefault(); this.far *= Math.exp(clamp(event.deltaY, -200, 200) * 0.002); this.changed(); }, { passive: false });
    this.canvas.addEventListener("dblclick", () => { this.reset(); this.changed(); });
  }
  axes() {
    const [cy, sy, cp, sp] = [Math.cos(this.yaw), Math.sin(this.yaw), Math.cos(this.pitch), Math.sin(this.pitch)];
    return { right: [-sy, cy, 0], up: [-sp * cy, -sp * sy, cp], back: [cp * cy, cp * sy, sp] };
  }
  shift(dx, dy) {
    const { right, up } = this.axes(), metres = this.far / this.canvas.clientHeight;
    this.target = this.target.map((value, i) => value - (right[i] * dx - up[i] * dy) * metres);
  }
  matrix() {
    const { right, up, back } = this.axes(), eye = this.target.map((value, i) => value + back[i] * this.far);
    const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2], near = this.far * 0.02, end = this.far * 10 + this.radius * 10, f = 1.6;
    const aspect = this.canvas.width / this.canvas.height, a = (end + near) / (near - end), b = 2 * end * near / (near - end);
    const rows = [[...right, -dot(right, eye)], [...up, -dot(up, eye)], [...back, -dot(back, eye)]];
    const out = new Float32Array(16);
    for (let column = 0; column < 4; column++) {
      out[column * 4] = rows[0][column] * f / aspect; out[column * 4 + 1] = rows[1][column] * f;
      out[column * 4 + 2] = rows[2][column] * a + (column === 3 ? b : 0); out[column * 4 + 3] = -rows[2][column];
    }
    return out;
  }
  // clouds: [{cloud, dim}]; paths: [{points (flat xyz), color [r, g, b, a], dots}]
  draw(clouds, paths) {
    const gl = this.gl, canvas = this.canvas, ratio = window.devicePixelRatio || 1;
    if (!gl || !canvas.clientWidth) return;
    const w = Math.round(canvas.clientWidth * ratio), h = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
    gl.viewport(0, 0, w, h); gl.clearColor(0, 0, 0, 0); gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const view = this.matrix();
    for (const each of clouds) if (each.cloud) this.drawPoints(each, view, ratio);
    this.drawLines([this.ground(), ...paths], view, ratio);
  }
  drawPoints({ cloud, dim }, view, ratio) {
    const gl = this.gl, { program, at } = this.points;
    gl.useProgram(program);
    gl.uniformMatrix4fv(at("view"), false, view); gl.uniform3fv(at("low"), cloud.low); gl.uniform3fv(at("span"), cloud.span);
    gl.uniform1f(at("bottom"), this.head.low[2]); gl.uniform1f(at("top"), Math.max(this.head.high[2], this.head.low[2] + 1e-3));
    gl.uniform1f(at("size"), 3 * ratio * this.radius * 1.7); gl.uniform1f(at("dim"), dim); gl.uniform1i(at("by"), BY[this.by]);
    this.fill(0, "xyz", cloud.xyz, 3, gl.UNSIGNED_SHORT, true);
    cloud.colors ? this.fill(1, "colors", cloud.colors, 3, gl.UNSIGNED_BYTE, true) : this.none(1, 0.5);
    cloud.segments ? this.fill(2, "segments", cloud.segments, 1, gl.UNSIGNED_BYTE, false) : this.none(2, 0);
    gl.drawArrays(gl.POINTS, 0, cloud.points);
  }
  fill(place, name, values, size, type, normalised) {
    const gl = this.gl;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name]); gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(place); gl.vertexAttribPointer(place, size, type, normalised, 0, 0);
  }
  none(place, value) { this.gl.disableVertexAttribArray(place); this.gl.vertexAttrib3f(place, value, value, value); }
  // the axes of the world at the cloud's lowest corner: x red, y green, z blue
  ground() {
    const [x, y, z] = this.head.low, length = this.radius * 0.25;
    return { pieces: [
      { points: [x, y, z, x + length, y, z], color: [0.85, 0.3, 0.3, 1] }, { points: [x, y, z, x, y + length, z], color: [0.3, 0.7, 0.35, 1] },
      { points: [x, y, z, x, y, z + length], color: [0.3, 0.5, 0.9, 1] },
    ] };
  }
  drawLines(paths, view, ratio) {
    const gl = this.gl, { program, at } = this.lines;
    gl.useProgram(program); gl.uniformMatrix4fv(at("view"), false, view); gl.disableVertexAttribArray(2);
    for (const each of paths.flatMap(path => path.pieces || [path])) {
      const count = each.points.length / 3;
      if (!count) continue;
      const ink = new Float32Array(count * 4);
      for (let i = 0; i < count; i++) ink.set(each.color, 4 * i);
      this.fill(0, "line", new Float32Array(each.points), 3, gl.FLOAT, false);
      this.fill(1, "ink", ink, 4, gl.FLOAT, false);
      if (each.dots) gl.disable(gl.DEPTH_TEST);
      gl.drawArrays(gl.LINE_STRIP, 0, count);
      if (each.dots) {
        gl.uniform1f(at("size"), each.dots * ratio);
        gl.drawArrays(gl.POINTS, 0, count);
        gl.enable(gl.DEPTH_TEST);
      }
    }
  }
  close() { this.gl?.getExtension("WEBGL_lose_context")?.loseContext(); }
}
