/* The numbers of the sampled sentences: two bytes each, in base64. */

function unpack(own) {
  if (!own.array) {
    const text = atob(own.codes), bytes = new Uint8Array(text.length);
    for (let index = 0; index < text.length; index++) bytes[index] = text.charCodeAt(index);
    const view = new DataView(bytes.buffer), array = new Float64Array(bytes.length / 2), isLog = own.scale === "logarithmic";
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
  const own = model.sample.conditions[condition], tokens = own.tracked[record], probabilities = unpack(own.probabilities);
  return tokens.map((token, place) => ({ token: model.sample.names[token], probability: probabilities[(record * tokens.length + place) * model.num_layers + layer] }));
}
/* Show another sentence wherever one is shown. */
function pickSentence(number) {
  state.number = number;
  state.picked.forEach((follow) => follow());
}

const seen = (token) => token === null ? "\u2026" : token.replace(/^ /, "\u2423").replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5") || "\u2205";
const textOf = (sentence) => sentence.pieces.map(([text]) => text).join("");
const recordsOf = (sentence) => sentence.pieces.filter(([, token]) => token >= 0).map(([, token]) => sentence.first + token);
const meanOf = (model, sentence, metric, condition, layer) => {
  const values = recordsOf(sentence).map((record) => valueOf(model, metric, condition, record, layer)).filter(isNumber);
  return values.length ? values.reduce((a, b) => a + b, 0) / values.length : NaN;
};
