/* One vector at several strengths. */

function doses(folder) {
  const shown = { vector: null, metric: null, layer: null };
  const controls = h("div", { class: "controls" }), slope = h("p", {}), left = h("div", {}), right = h("div", {});
  folder.append(h("p", {}, "The same vector at several strengths; the standard run is strength 0. Vertical lines are 95 % intervals of the difference from it, grey dots the placebos."),
    controls, slope, h("div", { class: "panels" }, h("figure", {}, h("figcaption", {}, "The metric"), left), h("figure", {}, h("figcaption", {}, "How far the whole distribution moves at the last layer"), right)));
  return function draw(model) {
    const names = Object.keys(model.doses);
    folder.hidden = !names.length;
    if (!names.length) return;
    if (!names.includes(shown.vector)) shown.vector = names[0];
    const metrics = Object.keys(model.doses[shown.vector]);
    if (!metrics.includes(shown.metric)) shown.metric = metrics.includes("entropy") ? "entropy" : metrics[0];
    const metric = shown.metric, points = numPoints(model, metric);
    const layer = shown.layer === null || shown.layer >= points ? points - 1 : shown.layer;
    controls.replaceChildren(
      names.length > 1 ? choice("Vector", names.map((name) => [name, name]), shown.vector, (value) => { shown.vector = value; draw(model); }) : "",
      choice("Metric", metrics.map((name) => [name, withUnit(name)]), metric, (value) => { shown.metric = value; draw(model); }),
      choice("Layer", range(points).map((at) => [String(at), pointName(metric, at)]), String(layer), (value) => { shown.layer = Number(value); draw(model); }));
    const own = acting(model).filter((one) => one.vector === shown.vector);
    const before = own.length ? column(model, own[0].name, metric, "mean_standard")[layer] : null;
    const get = (condition, name) => column(model, condition.name, metric, name)[layer];
    const steps = [{ strength: 0, mean: before, points: [] }, ...own.map((one) => ({ strength: one.strength, mean: before + get(one, "mean_difference"),
      low: before + get(one, "ci_low"), high: before + get(one, "ci_high"), kl: (((model.curves[one.name] || {}).kl_from_standard || {}).mean || []).slice(-1)[0],
      points: aboutPlacebos(one).some((about) => about.strength === one.strength) ? placebosOf(model, one, metric).map((values) => before + values[layer]) : [] }))].sort((a, b) => a.strength - b.strength);
    steps.find((step) => step.strength === 0).kl = 0;
    const found = model.doses[shown.vector][metric];
    const isKnown = isNumber(found.slope[layer]);
    slope.textContent = isKnown ? `${metricName(metric)}${atPoint(metric, layer)} changes by ${signed(found.slope[layer])}${about(metric).unit ? ` ${about(metric).unit}` : ""} per unit of strength (95 % ${interval(found.slope_ci_low[layer], found.slope_ci_high[layer])}); in ${percent(found.share_negative[layer])} of the sentences it falls.` : "";
    const xs = steps.map((step) => step.strength), look = styleOf(own.length ? strongest(own).name : "");
    const chart = { xs, xName: "Strength", isBare: true, height: 270 };
    lineChart(left, { ...chart, label: `${withUnit(metric)} by strength`, yName: withUnit(metric), isWhiskers: true, lowName: "95 %", isLog: about(metric).scale === "logarithmic",
      series: [{ name: "mean", look, values: steps.map((step) => step.mean), low: steps.map((step) => step.low), high: steps.map((step) => step.high), points: steps.map((step) => step.points) }] });
    lineChart(right, { ...chart, label: "KL from standard by strength", yName: "KL from standard (nats)", withZero: true, series: [{ name: "KL from standard", look, values: steps.map((step) => step.kl) }] });
  };
}
