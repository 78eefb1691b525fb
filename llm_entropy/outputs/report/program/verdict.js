/* The first screen: for each model and condition, in plain words, whether steering did it and how surely. */

const LEAST_PLACEBOS = 20;
/* How large an effect size is called (Cohen 1988). */
const SIZES = [[0.2, "very small"], [0.5, "small"], [0.8, "medium"], [Infinity, "large"]];

const sizeName = (d) => SIZES.find(([most]) => Math.abs(real(d)) < most)?.[1] || "large";
const unitOf = (metric) => (about(metric).unit ? ` ${about(metric).unit}` : "");

/* What a verdict may be about; first how uncertain the model is, and how right answers fare. */
function verdictMetrics(models) {
  const names = Object.keys(data.metrics).filter((name) => models.some((model) =>
    acting(model).some((one) => column(model, one.name, name, "p_holm").some(isNumber))));
  const first = ["entropy", "preference"].filter((name) => names.includes(name));
  return [...first, ...names.filter((name) => !first.includes(name))];
}

/* Judge one condition by one metric at its last layer: `state` is yes, maybe or no; `headline` and `text` say why. */
function judge(model, condition, metric) {
  const layer = lastPoint(model, metric), get = (name) => column(model, condition.name, metric, name)[layer];
  const change = get("mean_difference"), p = get("p_holm"), label = about(metric).label;
  if (!isNumber(change) || !isNumber(p)) return { state: "no", headline: `Not tested: steering does not reach ${label}`,
    text: "" };
  const what = `${label}${isOfText(metric) ? "" : ` at the last ${about(metric).axis}`}`;
  if (!(p < SIGNIFICANT)) return judgeUnsure(model, condition, what);
  const does = `it ${change > 0 ? "raises" : "lowers"} ${what}`, found = larger(model, condition, metric, layer);
  if (!found) {
    return { state: "maybe", headline: `A sure change without a placebo beside it: ${does}`,
      text: `Any vector of this size may do the same: nobody knows before placebos are run (setting placebo: {random: ${LEAST_PLACEBOS}}).` };
  }
  const rank = (1 + found.number) / (1 + found.total),
    so = `${found.number || "none"} of ${count(found.total, "placebo")}`;
  if (rank < SIGNIFICANT) return { state: "yes",
    headline: `Yes, this vector does it: ${does}, and ${so} ${found.number > 1 ? "do" : "does"} as much`, text: "" };
  if (!found.number) {
    return { state: "maybe", headline: `Probably: ${does}, and ${so} does as much`,
      text: `${count(found.total, "placebo")} are too few to be sure; ${LEAST_PLACEBOS} are enough.` };
  }
  if (rank < 0.1) {
    return { state: "maybe",
      headline: `Perhaps: ${does}, but ${so} ${found.number > 1 ? "change" : "changes"} it at least as much`,
      text: `Few placebos do that much, but more than chance allows (rank p = ${rank.toFixed(3)}; below 0.05 is sure).` };
  }
  const text = "A push of this size is enough, whatever it points at."
    + (weaker(condition) ? " (Placebos have the largest strength of the vector, this condition a smaller one.)" : "");
  return { state: "no",
    headline: `Not this vector in particular: ${does}, but ${so} ${found.number > 1 ? "change" : "changes"} it at least as much`, text };
}

/* The metric may stay where it is while other tokens take the place of the likely ones. */
function judgeUnsure(model, condition, what) {
  const moved = larger(model, condition, "kl_from_standard", model.num_layers - 1);
  const isFar = moved && (1 + moved.number) / (1 + moved.total) < SIGNIFICANT;
  return isFar ? { state: "maybe",
    headline: `No sure change of ${what}, but it moves the predictions as a whole further than ${moved.number ? moved.total - moved.number : "any"} of ${count(moved.total, "placebo")}`, text: "" }
    : { state: "no", headline: `No sure change of ${what}`, text: "" };
}

const weaker = (condition) =>
  aboutPlacebos(condition).some((one) => Math.abs(one.strength) > Math.abs(condition.strength));

/* The numbers behind a judgement: name, number, and what it is. */
function verdictFacts(model, condition, metric) {
  const layer = lastPoint(model, metric), get = (name) => column(model, condition.name, metric, name)[layer];
  const change = get("mean_difference"), before = get("mean_standard"), found = larger(model, condition, metric, layer);
  if (!isNumber(change)) return [];
  const moves = ((model.curves[condition.name] || {}).kl_from_standard || {}).mean || [],
    moved = larger(model, condition, "kl_from_standard", moves.length - 1);
  return [
    ["Mean change", `${signed(change)}${unitOf(metric)}`,
      `${fmt(before, 3)} \u2192 ${fmt(before + change, 3)}, ${count(get("n"), "sentence")}`],
    ["95\u00a0% interval", interval(get("ci_low"), get("ci_high")),
      `rises in ${percent(get("share_increased"))} of the sentences`],
    ["p (Holm)", pvalue(get("p_holm")), "of no change"],
    ["Effect size d", signed(get("effect_size"), 2), sizeName(get("effect_size"))],
    found ? ["Placebos as large", `${found.number} of ${found.total}`,
      `rank p = ${((1 + found.number) / (1 + found.total)).toFixed(3)}`] : null,
    isNumber(moves[moves.length - 1])
      ? ["Predictions move by", `${fmt(moves[moves.length - 1], 3)} nats`,
      `KL${moved ? `; ${moved.number} of ${moved.total} placebos as far` : " from standard"}`] : null,
  ].filter(Boolean);
}

/* Where the condition acts most, of all metrics and layers, beyond its placebos. */
function sayLargest(model, condition) {
  let best = null;
  for (const one of Object.keys(model.summary[condition.name])) {
    const at = largest(model, condition.name, one);
    if (at < 0) continue;
    const size = real(column(model, condition.name, one, "effect_size")[at]), other = larger(model, condition, one, at);
    if ((other && other.number) || !(column(model, condition.name, one, "p_holm")[at] < SIGNIFICANT)) continue;
    if (!best || Math.abs(size) > Math.abs(best.size)) best = { metric: one, at, size, other };
  }
  if (!best) return "";
  const change = column(model, condition.name, best.metric, "mean_difference")[best.at];
  return ` Its largest sure effect${best.other ? " beyond all placebos" : ""} is on ${about(best.metric).label}${atPoint(best.metric, best.at)}: `
    + `${signed(change)}${unitOf(best.metric)}, d = ${signed(best.size, 2)}.`;
}

const SIGNS = { yes: "\u2714", maybe: "?", no: "\u2013" };

function verdictItem(model, condition, metric) {
  const found = judge(model, condition, metric), facts = verdictFacts(model, condition, metric);
  return h("li", { class: found.state },
    h("p", { class: "headline" }, h("span", { class: "sign", "aria-hidden": "true" }, SIGNS[found.state]),
    h("span", {}, h("strong", {}, bdi(condition.name)), ` \u00b7 ${found.headline}.`)),
    h("dl", { class: "facts" },
      facts.map(([name, number, what]) =>
        h("div", {}, h("dt", {}, name), h("dd", {}, h("strong", {}, number), h("small", {}, what))))),
    h("p", {}, `${found.text}${sayLargest(model, condition)}`));
}

/* A run that compares nothing: how the curve goes. */
function sayCurve(model) {
  const name = Object.keys(model.curves)[0], metrics = Object.keys(model.curves[name] || {});
  if (!metrics.length) return null;
  const metric = metrics.includes("entropy") ? "entropy" : metrics[0], means = model.curves[name][metric].mean;
  const unit = unitOf(metric), last = lastPoint(model, metric);
  const top = means.reduce((best, value, at) => (isNumber(value) && (best < 0 || value > means[best]) ? at : best), -1);
  if (top < 0) return null;
  const first = means.findIndex(isNumber), share = about(metric).unit === "nats" && isNumber(means[last])
    ? `, ${percent(means[last] / Math.log(model.vocab_size))} of what it would be if all ${fmt(model.vocab_size)} tokens were equally likely` : "";
  return h("li", {}, h("strong", {}, bdi(model.key)),
    `, ${name}: mean ${about(metric).label} is ${fmt(means[first], 3)}${unit} at ${pointName(metric, first)}, `
    + `highest at ${pointName(metric, top)} (${fmt(means[top], 3)}${unit}), and ${fmt(means[last], 3)}${unit} at the last one${share}.`);
}

function verdict(folder) {
  const judged = data.models.filter((model) => acting(model).length), metrics = verdictMetrics(judged);
  const others = data.models.filter((model) => !judged.includes(model) || !metrics.length);
  if (!metrics.length) folder.append(h("p", {},
      "Nothing is compared in this run. It shows how uncertain the models are at every layer, and what they expect."));
  if (others.length) folder.append(h("ul", { class: "lead" }, others.map(sayCurve).filter(Boolean)));
  if (!metrics.length) return () => {};
  const shown = { metric: metrics[0] }, holder = h("div", {}), meaning = h("p", { class: "note" });
  folder.append(h("p", {},
      "Did steering do it, and how surely? A vector is convincing where the change is sure (p < 0.05) and "
    + "placebos, vectors of the same size that point anywhere, do not change as much."),
    h("div", { class: "controls" },
      choice("Judged by", metrics.map((name) => [name, withUnit(name)]), shown.metric,
        (value) => { shown.metric = value; draw(); }), meaning), holder);
  function draw() {
    const metric = shown.metric, forests = [];
    meaning.textContent = sayMeaning(metric);
    holder.replaceChildren(...judged.map((model) => {
      const own = acting(model),
        main = own.filter((one) =>
        Math.abs(one.strength) === Math.max(...own.filter((other) => other.vector === one.vector)
          .map((other) => Math.abs(other.strength))));
      const rest = own.filter((one) => !main.includes(one)), figure = h("div", {});
      const drawable = own.filter((one) =>
        isNumber(column(model, one.name, metric, "mean_difference")[lastPoint(model, metric)]));
      if (drawable.length) forests.push([figure, model, drawable]);
      return h("div", { class: "verdicts" }, h("h3", {}, bdi(model.key)),
        h("ul", { class: "lead sides" }, main.map((one) => verdictItem(model, one, metric))),
        rest.length ? h("details", {}, h("summary", {}, `Weaker strengths (${rest.length})`),
          h("ul", { class: "lead sides" }, rest.map((one) => verdictItem(model, one, metric)))) : null,
        drawable.length
          ? h("figure", {},
          h("figcaption", {}, `Change of ${about(metric).label}${atPoint(metric, lastPoint(model, metric))}`),
          figure, forestKey(model, drawable, metric)) : null);
    }));
    for (const [figure, model, own] of forests) forest(figure, model, own, metric, lastPoint(model, metric));
  }
  draw();
  return (_, isResized) => { if (isResized) draw(); };
}
