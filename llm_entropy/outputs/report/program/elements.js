/* Elements: text goes in as text, never as markup. */

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "paint") Object.assign(element.style, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
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
