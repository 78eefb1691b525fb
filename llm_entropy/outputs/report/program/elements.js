/* Elements: text goes in as text, never as markup. */

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "paint") Object.assign(element.style, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const bdi = (text) => h("bdi", {}, text);

function choice(label, options, value, change) {
  const box = h("select", { onchange: () => change(box.value) });
  for (const [name, text] of options) box.append(h("option", { value: name }, text));
  box.value = value;
  return h("label", {}, label, box);
}

/* A table: the first cell of each row names it; what a row is given is text or an element. */
function tableOf(heads, rows, { caption, id, kind, textColumns = 1 } = {}) {
  const look = (index) => (index < textColumns ? "text" : null);
  const row = (cells) =>
    cells.map((cell, index) => h(index ? "td" : "th", { scope: index ? null : "row", class: look(index) }, cell));
  return h("table", { id, class: kind }, caption ? h("caption", { class: "note" }, caption) : null,
    h("thead", {}, h("tr", {}, heads.map((head, index) => h("th", { scope: "col", class: look(index) }, bdi(head))))),
    h("tbody", {}, rows.map((cells) => h("tr", {}, row(cells)))));
}
/* What may be wider or longer than there is room: it is scrolled by the arrow keys, too. */
const scroller = (label, ...children) =>
  h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, children);
