// What anywidget calls: one panel a view.

function render({ model, el }) {
  const root = make("div", { class: "ppt-inspect", tabindex: "0", "data-lm-suppress-shortcuts": "true", "aria-label": "inspector" });
  el.append(root);
  const panel = new Panel(model, root);
  root.panel = panel;
  return () => panel.close();
}

export default { render };
