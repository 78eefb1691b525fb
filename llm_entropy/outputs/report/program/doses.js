/* One vector at several strengths, and how strong each condition is. */

function doseSteps(model, vector, metric, layer) {
  const own = acting(model).filter((one) => one.vector === vector),
    before = own.length ? column(model, own[0].name, metric, "mean_standard")[layer] : null;
  const get = (condition, metric, name, at) => column(model, condition.name, metric, name)[at], last = model.num_blocks;
  const isSame = (one) => aboutPlacebos(one).some((about) => about.strength === one.strength);
  return [{ strength: 0, mean: before, points: [], kl: 0 }, ...own.map((one) => ({
    strength: one.strength, mean: before + get(one, metric, "mean_difference", layer),
    low: before + get(one, metric, "ci_low", layer), high: before + get(one, metric, "ci_high", layer),
    points: isSame(one) ? placebosOf(model, one, metric).map((values) => before + values[layer]) : [],
    kl: get(one, "kl_from_standard", "mean_difference", last), klLow: get(one, "kl_from_standard", "ci_low", last),
      klHigh: get(one, "kl_from_standard", "ci_high", last),
    klPoints: isSame(one) ? placebosOf(model, one, "kl_from_standard").map((values) => values[last]) : [],
  }))].sort((a, b) => a.strength - b.strength);
}

/* The slope in words, and how well a straight line describes the means. */
function saySlope(model, vector, metric, layer, steps) {
  const found = model.doses[vector][metric], get = (name) => found[name][layer], unit = unitOf(metric);
  if (!isNumber(get("slope"))) return "";
  const means = steps.map((step) => step.mean).filter(isNumber), spread = Math.max(...means) - Math.min(...means),
    isBent = get("residual") > 0.15 * spread;
  return `${metricName(metric)}${atPoint(metric, layer)} changes by ${signed(get("slope"))}${unit} per unit of strength (95\u00a0% interval ${interval(get("slope_ci_low"), get("slope_ci_high"))}); `
    + `it falls with the strength in ${percent(get("share_negative"))} of the sentences. `
    + (isNumber(get("spearman"))
      ? `Rank correlation of strength and mean: ${signed(get("spearman"), 2)}. The means miss the straight line by ${fmt(get("residual"), 3)}${unit}${isBent ? ": the response is bent, and the slope says little of it." : "."}` : "");
}

function strengthTable(model) {
  const own = compared(model).filter((one) => model.strengths[one.name]),
    dose = (one) => (model.strengths[one.name].relative_dose || []).map((value) => (isNumber(value) ? value : NaN));
  const most = (one) => { const found = dose(one).filter(isNumber); return found.length ? Math.max(...found) : NaN; };
  const rows = own.map((one) => [bdi(one.name), fmt(one.strength),
    isNumber(most(one)) ? `${fmt(most(one), 3)}${most(one) > 0 ? ` at block ${dose(one).indexOf(most(one))}` : ""}`
      : BLANK,
    fmt(model.strengths[one.name].kl_mean, 3), fmt(model.strengths[one.name].kl_p95, 3)]);
  return [h("h3", {}, "How strong is each condition?"),
    h("p", { class: "note" },
      "Relative dose: length of what is added at a block / mean length of the state that it is added to; 0.1 is a light push, 1 is as much as was there. KL: how far the predictions move from the standard run's at the last layer, in nats, over all positions."),
    scroller("How strong each condition is",
      tableOf(["condition", "strength", "largest relative dose", "KL, mean", "KL, 95th percentile"], rows,
        { id: "strengths" }))];
}

function doses(folder) {
  const shown = { vector: null, metric: null, layer: null };
  const controls = h("div", { class: "controls" }), slope = h("p", {}), left = h("div", {}), middle = h("div", {}),
    table = h("div", {}), push = h("div", {}), key = h("div", { class: "keys" });
  const response = h("div", {},
    h("p", {}, "The same vector at several strengths; the standard run is strength 0. Vertical lines are 95\u00a0% intervals of the difference from it, grey dots the placebos, which have the largest strength."),
    controls, slope,
      h("div", { class: "panels" }, h("figure", {}, h("figcaption", {}, "The metric"), left),
      h("figure", {}, h("figcaption", {}, "How far the predictions move at the last layer"), middle)));
  const added = h("figure", {}, h("figcaption", {}, "Relative dose, block by block"), key, push);
  folder.append(response, table, added);
  function drawResponse(model, names) {
    if (!names.includes(shown.vector)) shown.vector = names[0];
    const metrics = Object.keys(model.doses[shown.vector]);
    if (!metrics.includes(shown.metric)) shown.metric = metrics.includes("entropy") ? "entropy" : metrics[0];
    const metric = shown.metric, points = pointsOf(model, metric),
      layer = points.includes(shown.layer) ? shown.layer : lastPoint(model, metric);
    controls.replaceChildren(
      names.length > 1
        ? choice("Vector", names.map((name) => [name, name]), shown.vector,
        (value) => { shown.vector = value; draw(model); }) : "",
      choice("Metric", metrics.map((name) => [name, withUnit(name)]), metric,
        (value) => { shown.metric = value; draw(model); }),
      choice("Layer", points.map((at) => [String(at), pointName(metric, at)]), String(layer),
        (value) => { shown.layer = Number(value); draw(model); }));
    const own = acting(model).filter((one) => one.vector === shown.vector),
      steps = doseSteps(model, shown.vector, metric, layer);
    slope.textContent = saySlope(model, shown.vector, metric, layer, steps);
    const look = styleOf(own.length ? strongest(own).name : ""), all = (name) => steps.map((step) => step[name]);
    const chart = { xs: all("strength"), xName: "Strength", isBare: true, height: 270, isWhiskers: true,
      lowName: "95 %" };
    lineChart(left,
      { ...chart, label: `${withUnit(metric)} by strength`, yName: withUnit(metric),
        isLog: about(metric).scale === "logarithmic",
      series: [{ name: "mean", look, values: all("mean"), low: all("low"), high: all("high"),
          points: all("points") }] });
    lineChart(middle,
      { ...chart, label: "KL from standard by strength", yName: "KL from standard (nats)", withZero: true,
      series: [{ name: "KL from standard", look, values: all("kl"), low: all("klLow"), high: all("klHigh"),
          points: steps.map((step) => step.klPoints || []) }] });
  }
  function draw(model) {
    const names = Object.keys(model.doses),
      strong = acting(model).filter((one) => (model.strengths[one.name] || {}).relative_dose);
    folder.hidden = !names.length && !Object.keys(model.strengths).length;
    if (folder.hidden) return;
    response.hidden = !names.length;
    if (names.length) drawResponse(model, names);
    table.replaceChildren(...strengthTable(model));
    added.hidden = !strong.length;
    if (!strong.length) return;
    key.replaceChildren(...strong.map((one) => h("span", {}, swatch(styleOf(one.name)), " ", bdi(one.name))));
    lineChart(push,
      { label: "Relative dose by block", xs: range(model.num_blocks), xName: "Block", yName: "Relative dose",
        withZero: true, height: 220, isBare: true,
      series: strong.map((one) =>
        ({ name: one.name, look: styleOf(one.name), values: model.strengths[one.name].relative_dose })) });
  }
  return draw;
}
