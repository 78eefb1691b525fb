/* Effect sizes by metric and layer. */

const oneDigit = (value) =>
  (!isNumber(value) ? signed(value) : Math.abs(value) < 0.05 ? "0" : dash(`${value > 0 ? "+" : ""}${value.toFixed(1)}`)
  .replace(/0\./, "."));

const isNarrow = (model) => model.num_layers > 14;

/* The effect size at a layer: coloured where no placebo does as much. */
function impactCell(model, condition, metric, layer, isReached) {
  const at = { layer, block: layer - 1, text: layer - model.num_layers + 1 }[about(metric).axis];
  const get = (name) => column(model, condition.name, metric, name)[at], size = real(get("effect_size")),
    p = get("p_holm");
  if (at < 0 || size === null || size === undefined) return h("td", { class: "untouched" }, BLANK);
  const others = larger(model, condition, metric, at), isWithin = Boolean(others && others.number);
  const kinds = [!isReached ? "untouched" : isWithin ? "within" : "", isNumber(p) && p < SIGNIFICANT ? "sure" : ""];
  const cell = h("td", { class: kinds.join(" ").trim() || null }, isNarrow(model) ? oneDigit(size) : signed(size, 2));
  if (isReached && !isWithin) tint(cell, Math.abs(size) === Infinity ? Math.sign(size) : size / 1.5, true);
  return tipped(cell, () => [
    `${metricName(metric)}, ${pointName(metric, at)}`,
    `difference ${signed(get("mean_difference"))} (95 % ${interval(get("ci_low"), get("ci_high"))})`,
    `d ${signed(size)}, p ${pvalue(p)}`,
    others ? `placebos: ${placeboWords(model, condition, metric, at)}` : "",
    isReached ? "" : "steering does not reach this layer",
  ].filter(Boolean).join("\n"));
}

function impact(folder) {
  const shown = { condition: null };
  const controls = h("div", { class: "controls" }),
    holder = h("div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Effect sizes by metric and layer" });
  folder.append(h("p", {},
      "Where does a condition act? Each cell is the effect size d: the mean difference by the deviation of the differences between sentences."), controls, holder,
    h("div", { class: "keys" },
      h("span", {}, h("span", { class: "scale both" }), " falls \u2026 rises, up to |d| = 1.5"),
      h("span", {}, "\u2022 p < 0.05 after Holm's correction"),
      h("span", {}, h("span", { class: "within" }), " a placebo changes it at least as much"),
      h("span", {}, "grey: steering does not reach the layer"), h("span", {}, BLANK, " no such layer, or no attention there")));
  return function draw(model) {
    const own = acting(model);
    folder.hidden = !own.length;
    if (!own.length) return;
    if (!own.some((one) => one.name === shown.condition)) shown.condition = strongest(own).name;
    const condition = own.find((one) => one.name === shown.condition),
      metrics = Object.keys(model.summary[condition.name])
      .filter((name) => column(model, condition.name, name, "p_holm").length && !isOfText(name));
    controls.replaceChildren(choice("Condition", own.map((one) => [one.name, one.name]), condition.name,
        (value) => { shown.condition = value; draw(model); }));
    const untouched = model.untouched[condition.name] || 0;
    const heads = range(model.num_layers).map((layer) => h("th", { scope: "col" }, layer ? String(layer) : "emb."));
    const row = (metric) => h("tr", {}, h("th", { class: "text", scope: "row" }, metricName(metric)),
      range(model.num_layers).map((layer) => impactCell(model, condition, metric, layer, layer >= untouched)));
    holder.replaceChildren(roving(h("table", { class: isNarrow(model) ? "impact narrow" : "impact" },
      h("thead", {}, h("tr", {}, h("th", { class: "text", scope: "col" }, "Metric"), heads)),
      h("tbody", {}, metrics.map(row))), "td"));
    holder.scrollLeft = holder.scrollWidth; // the last layers say most
  };
}
