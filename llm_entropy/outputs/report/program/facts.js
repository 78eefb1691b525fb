/* What the data of the page says: of metrics, conditions, placebos and the summary's columns. */

const data = JSON.parse(document.getElementById("data").textContent);
const state = { model: data.models[0], number: null, picked: [] };
const STANDARD = data.conditions.find((one) => one.role === "standard");

const about = (metric) => data.metrics[metric];

const metricName = (metric) => capital(about(metric).label);
const withUnit = (metric) => metricName(metric) + (about(metric).unit ? ` (${about(metric).unit})` : "");
const numPoints = (model, metric) =>
  ({ layer: model.num_layers, block: model.num_blocks, text: 1 })[about(metric).axis];
/* The layers or blocks that have numbers: a block without attention that can be read has none in any sentence. */
const pointsOf = (model, metric) => range(numPoints(model, metric))
  .filter((at) => about(metric).axis !== "block" || !model.heads || model.heads[at] > 0);
const lastPoint = (model, metric) => pointsOf(model, metric).slice(-1)[0];
const isBridged = (model, metric) => pointsOf(model, metric).length < numPoints(model, metric);
const isOfText = (metric) => about(metric).axis === "text";
const pointName = (metric, index) =>
  isOfText(metric) ? "the whole text" : about(metric).axis === "block" ? `block ${index}` : index === 0
    ? "layer 0 (embeddings)" : `layer ${index}`;
const least = (metric) => real(about(metric).bounds[0]);
const layerText = (layer) => (layer ? `layer ${layer}` : "the embeddings");
const atPoint = (metric, index) => (isOfText(metric) ? "" : ` at ${pointName(metric, index)}`);
const steered = () => data.conditions.filter((one) => one.role !== "standard");
const compared = (model) => steered().filter((one) => model.summary[one.name]);
const acting = (model) => compared(model).filter((one) => one.strength !== 0);
const column = (model, condition, metric, name) =>
  ((model.summary[condition] || {})[metric] || {})[name] || [];
const placebosOf = (model, condition, metric) =>
  ((model.placebos[condition.vector] || {})[metric] || []);
const aboutPlacebos = (condition) => data.placebos.filter((one) => one.vector === condition.vector);
const strongest = (own) => own.reduce((best, one) =>
  Math.abs(one.strength) > Math.abs(best.strength) || (one.strength === -best.strength && one.strength > 0) ? one
    : best);
const vectors = (model) => [...new Set(compared(model).map((one) => one.vector))];
function larger(model, condition, metric, layer) {
  const total = placebosOf(model, condition, metric).length;
  const p = column(model, condition.name, metric, "placebo_p")[layer];
  return total && isNumber(p) ? { total, number: Math.round(p * (1 + total)) - 1 } : null;
}
function beside(model, condition, metric, layer) {
  const found = larger(model, condition, metric, layer);
  return found ? `${found.number} of ${found.total}` : BLANK;
}
function placeboWords(model, condition, metric, layer) {
  const found = larger(model, condition, metric, layer);
  return found ? `${found.number || "none"} of ${found.total} as large` : "no placebos";
}
function largest(model, condition, metric) {
  const sizes = column(model, condition, metric, "effect_size").map(real);
  const tested = column(model, condition, metric, "p_holm");
  let best = -1;
  sizes.forEach((size, layer) => {
    if (isNumber(size) && isNumber(tested[layer]) && (best < 0 || Math.abs(size) > Math.abs(sizes[best]))) best = layer;
  });
  return best;
}
