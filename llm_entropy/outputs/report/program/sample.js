/* The numbers of the sampled sentences: two bytes each, in base64. */

function unpack(own) {
  if (!own.array) {
    const text = atob(own.codes), bytes = new Uint8Array(text.length);
    for (let index = 0; index < text.length; index++) bytes[index] = text.charCodeAt(index);
    const view = new DataView(bytes.buffer), array = new Float64Array(bytes.length / 2),
      isLog = own.scale === "logarithmic";
    const low = isLog ? Math.log(own.low) : own.low, high = isLog ? Math.log(own.high) : own.high;
    for (let index = 0; index < array.length; index++) {
      const code = view.getUint16(2 * index, true), value = low + (code / 65534) * (high - low);
      array[index] = code === 65535 ? NaN : isLog ? Math.exp(value) : value;
    }
    own.array = array;
  }
  return own.array;
}
function valueOf(model, metric, condition, record, layer) {
  const own = model.sample.metrics[metric], place = own.conditions.indexOf(condition), width = numPoints(model, metric);
  const at = about(metric).axis === "block" ? layer - 1 : layer;
  return place < 0 || at < 0 ? NaN : unpack(own)[(place * model.sample.tokens.length + record) * width + at];
}
function trackedAt(model, condition, record, layer) {
  const own = model.sample.conditions[condition], tokens = own.tracked[record],
    probabilities = unpack(own.probabilities);
  return tokens.map((token, place) =>
    ({ token: model.sample.names[token],
        probability: probabilities[(record * tokens.length + place) * model.num_layers + layer] }));
}
/* What a layer itself would say; where the run has not recorded it, the best of the tokens that are tracked. */
function topAt(model, condition, record, layer) {
  const own = model.sample.conditions[condition];
  if (!own.lens_tokens) return trackedAt(model, condition, record, layer).reduce((a, b) => (b.probability > a.probability ? b : a));
  if (!own.lens_tokens.array) {
    const bytes = Uint8Array.from(atob(own.lens_tokens.codes), (letter) => letter.charCodeAt(0)), view = new DataView(bytes.buffer), size = own.lens_tokens.size;
    own.lens_tokens.array = range(bytes.length / size).map((index) => (size === 2 ? view.getUint16(2 * index, true) : view.getUint32(4 * index, true)));
  }
  const at = record * model.num_layers + layer;
  return { token: model.sample.names[own.lens_tokens.array[at]], probability: unpack(own.lens_probabilities)[at] };
}
const hasTops = (model) => Boolean(model.sample.conditions[data.conditions[0].name].lens_tokens);

/* Show another sentence wherever one is shown. */
function pickSentence(number) {
  state.number = number;
  state.picked.forEach((follow) => follow());
}

const seen = (token) => token === null ? "\u2026" : token.replace(/^ /, "\u2423").replace(/\n/g, "\u21b5")
  .replace(/\t/g, "\u21e5") || "\u2205";
const textOf = (sentence) => sentence.pieces.map(([text]) => text).join("");
const recordsOf = (sentence) => sentence.pieces.filter(([, token]) => token >= 0)
  .map(([, token]) => sentence.first + token);
const meanOf = (model, sentence, metric, condition, layer) => {
  const values = recordsOf(sentence).map((record) => valueOf(model, metric, condition, record, layer)).filter(isNumber);
  return values.length ? values.reduce((a, b) => a + b, 0) / values.length : NaN;
};
