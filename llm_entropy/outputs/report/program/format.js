/* Numbers and words as they are shown. */

const BLANK = "\u2013", MINUS = "\u2212", SIGNIFICANT = 0.05, MOST_ROWS = 400;

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const real = (value) => (value === "inf" ? Infinity : value === "-inf" ? -Infinity : value);
const dash = (text) => text.replace("-", MINUS);

function fmt(value, digits = 4) {
  value = real(value);
  if (value === null || value === undefined || Number.isNaN(value)) return BLANK;
  if (!Number.isFinite(value)) return value > 0 ? "\u221e" : MINUS + "\u221e";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return dash(value.toExponential(1).replace("e+", "e"));
  if (size >= 1000) return dash(Math.round(value).toLocaleString("en-US"));
  return dash(String(Number(value.toPrecision(digits))));
}
const signed = (value, digits = 3) => (real(value) > 0 ? "+" : "") + fmt(value, digits);
const interval = (low, high) => (isNumber(low) && isNumber(high) ? `${signed(low)} to ${signed(high)}` : BLANK);
const pvalue = (p) => (!isNumber(p) ? "not tested" : p < 0.001 ? "<\u00a00.001" : p.toFixed(3));
const percent = (value) => (isNumber(value) ? `${Math.round(100 * value)} %` : BLANK);
const count = (number, what) => `${number.toLocaleString("en-US")} ${what}${number === 1 ? "" : "s"}`;
function probability(value) {
  if (!isNumber(value)) return BLANK;
  return value >= 0.9995 ? "100 %" : value < 0.00001 ? "< 0.001 %"
    : `${Number((100 * value).toPrecision(value < 0.1 ? 2 : 3))} %`;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

const shorten = (text, most) => ([...text].length > most ? [...text].slice(0, most - 1).join("") + "\u2026" : text);
function matcher(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return (other) => { const whole = other.toLowerCase(); return words.every((word) => whole.includes(word)); };
}
const range = (number) => [...Array(number).keys()];
