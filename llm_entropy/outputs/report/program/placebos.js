/* Conditions beside their placebos. */

function placebos(folder) {
  const shown = { metric: null, layer: null };
  const controls = h("div", { class: "controls" }), holder = h("div", {}), numbers = h("div", {});
  folder.append(h("p", {}, "Would any vector have done it? Each grey dot is a placebo: a vector of the same size, without the meaning. A condition outside of its placebos does something that its direction is needed for."),
    controls, h("figure", {}, holder), numbers);
  return function draw(model) {
    const own = acting(model).filter((one) => Object.keys(model.placebos[one.vector] || {}).length);
    folder.hidden = !own.length;
    if (!own.length) return;
    const metrics = Object.keys(model.placebos[own[0].vector]);
    if (!metrics.includes(shown.metric)) shown.metric = metrics.includes("entropy") ? "entropy" : metrics[0];
    const metric = shown.metric, points = numPoints(model, metric);
    const layer = shown.layer === null || shown.layer >= points ? points - 1 : shown.layer;
    controls.replaceChildren(
      choice("Metric", metrics.map((name) => [name, withUnit(name)]), metric, (value) => { shown.metric = value; draw(model); }),
      choice("Layer", range(points).map((at) => [String(at), pointName(metric, at)]), String(layer), (value) => { shown.layer = Number(value); draw(model); }));
    const get = (one, name) => column(model, one.name, metric, name)[layer];
    const dots = (one) => placebosOf(model, one, metric).map((values) => values[layer]).filter(isNumber);
    const width = Math.max(300, Math.min(holder.clientWidth || 700, 1180)), left = width > 520 ? 150 : 96, right = width > 520 ? 130 : 12, row = 40, height = row * own.length + 54;
    const scale = scaleOf(own.flatMap((one) => [get(one, "mean_difference"), get(one, "ci_low"), get(one, "ci_high"), ...dots(one)]), false, true);
    const x = (value) => left + scale.at(value) * (width - left - right);
    const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Difference in ${about(metric).label} of each condition beside its placebos; the table below has the numbers` });
    for (const tick of scale.ticks) {
      svg.append(s("line", { class: tick === 0 ? "zero" : "grid", x1: x(tick), x2: x(tick), y1: 4, y2: height - 46 }), s("text", { x: x(tick), y: height - 28, "text-anchor": "middle" }, fmt(tick)));
    }
    svg.append(s("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, `Mean difference in ${about(metric).label}${about(metric).unit ? ` (${about(metric).unit})` : ""}`));
    own.forEach((one, index) => {
      const y = row * index + row / 2, look = styleOf(one.name), at = get(one, "mean_difference");
      svg.append(s("text", { class: "name", x: left - 10, y: y + 4, "text-anchor": "end" }, shorten(one.name, width > 520 ? 20 : 13)));
      dots(one).forEach((value, number) => svg.append(s("circle", { cx: x(value), cy: y + ((number * 7) % 5 - 2) * 3, r: 3.2, paint: { fill: "var(--soft)", fillOpacity: 0.45 } })));
      if (isNumber(get(one, "ci_low"))) svg.append(s("line", { x1: x(get(one, "ci_low")), x2: x(get(one, "ci_high")), y1: y, y2: y, "stroke-width": 3, paint: { stroke: look.stroke } }));
      if (isNumber(at)) svg.append(tipped(s("path", { d: `M${x(at)},${y - 8}l7,8l-7,8l-7,-8z`, paint: { fill: look.stroke, stroke: "var(--paper)" } }), () => `${one.name}: ${signed(at)} (95 % ${interval(get(one, "ci_low"), get(one, "ci_high"))})\n${beside(model, one, metric, layer)} placebos`));
      if (width > 520) svg.append(s("text", { x: width - right + 10, y: y + 4 }, beside(model, one, metric, layer)));
    });
    holder.replaceChildren(svg);
    numbers.replaceChildren(numbersTable(metricName(metric) + atPoint(metric, layer), ["condition", "difference", "95 % interval", "least placebo", "largest placebo", "placebos"],
      own.map((one) => [one.name, signed(get(one, "mean_difference")), interval(get(one, "ci_low"), get(one, "ci_high")), signed(Math.min(...dots(one))), signed(Math.max(...dots(one))), beside(model, one, metric, layer)])));
  };
}
