/* The line of each condition, and colours of cells. */

const DASHES = ["", "8 4", "2 3", "10 3 2 3"];
const styleOf = (name) => {
  const index = Math.max(0, data.conditions.findIndex((one) => one.name === name));
  return { stroke: `var(--c${index % 8})`, dash: DASHES[index % 4] };
};
const trackLook = (place) => ({ stroke: `var(--c${(place + 1) % 8})`, dash: DASHES[place % 4] });
const swatch = (look) => s("svg", { class: "swatch", viewBox: "0 0 28 10", "aria-hidden": "true" },
  s("line", { x1: 0, x2: 28, y1: 5, y2: 5, "stroke-width": 2.5, paint: { stroke: look.stroke },
      "stroke-dasharray": look.dash }));

function tint(element, share, isDiverging) {
  const size = Math.min(1, Math.abs(share));
  if (!isNumber(size)) return element;
  const colour = isDiverging ? (share > 0 ? "--more" : "--less") : "--heat";
  element.style.backgroundColor = `rgba(var(${colour}), ${(0.9 * size).toFixed(3)})`;
  if (size > 0.74) element.classList.add("strong");
  return element;
}
