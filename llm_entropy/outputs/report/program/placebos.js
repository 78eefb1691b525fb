/* Conditions beside their placebos. */

const dotsOf = (model, condition, metric, layer) => placebosOf(model, condition, metric).map((values) => values[layer])
  .filter(isNumber);

function forestKey(model, own, metric) {
  const hasDots = own.some((one) => placebosOf(model, one, metric).length);
  const mark = (...shapes) => s("svg", { class: "swatch", viewBox: "0 0 28 10", "aria-hidden": "true" }, shapes);
  return h("div", { class: "keys" },
    h("span", {},
      mark(s("line", { x1: 2, x2: 26, y1: 5, y2: 5, "stroke-width": 2.5, paint: { stroke: "var(--ink)" } }),
        s("path", { d: "M14,1l4,4l-4,4l-4,-4z", paint: { fill: "var(--ink)" } })),
      " mean over the sentences, 95 % interval"),
    hasDots ? h("span", {},
      mark(s("circle", { cx: 14, cy: 5, r: 3.2, paint: { fill: "var(--soft)", fillOpacity: 0.45 } })), " a placebo")
      : null);
}

/* A row for each condition: its mean difference with interval, and a dot for each of its placebos. */
function forest(holder, model, own, metric, layer) {
  const get = (one, name) => column(model, one.name, metric, name)[layer],
    dots = (one) => dotsOf(model, one, metric, layer);
  const width = Math.max(300, Math.min(holder.clientWidth || 700, 1180)), isWide = width > 620;
  const left = isWide ? 150 : 104, right = isWide ? 150 : 14, row = 40, height = row * own.length + 54;
  const scale = scaleOf(own.flatMap((one) =>
      [get(one, "mean_difference"), get(one, "ci_low"), get(one, "ci_high"), ...dots(one)]), false, true);
  const x = (value) => left + scale.at(value) * (width - left - right);
  const unit = about(metric).unit,
    said = (one) =>
    `${one.name} ${signed(get(one, "mean_difference"))} (95 % ${interval(get(one, "ci_low"), get(one, "ci_high"))})`;
  const svg = s("svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `Difference in ${about(metric).label} of each condition beside its placebos: ${own.map(said).join("; ")}` });
  const most = Math.floor((width - left - right) / 46),
    step = Math.max(1, Math.ceil(scale.ticks.length / Math.max(2, most)));
  scale.ticks.forEach((tick, index) => {
    svg.append(s("line", { class: tick === 0 ? "zero" : "grid", x1: x(tick), x2: x(tick), y1: 4, y2: height - 46 }));
    if (index % step === 0) svg.append(s("text", { x: x(tick), y: height - 28, "text-anchor": "middle" }, fmt(tick)));
  });
  svg.append(s("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" },
      isWide ? `Mean difference in ${about(metric).label}${unit ? ` (${unit})` : ""}`
      : `Mean difference${unit ? ` (${unit})` : ""}`));
  own.forEach((one, index) => {
    const y = row * index + row / 2, look = styleOf(one.name), at = get(one, "mean_difference");
    svg.append(s("text", { class: "name", x: left - 10, y: y + 4, "text-anchor": "end" },
        shorten(one.name, isWide ? 20 : 13)));
    dots(one).forEach((value, number) =>
      svg.append(s("circle",
          { cx: x(value), cy: y + ((number * 7) % 5 - 2) * 3, r: 3.2,
            paint: { fill: "var(--soft)", fillOpacity: 0.45 } })));
    if (isNumber(get(one, "ci_low"))) svg.append(s("line",
        { x1: x(get(one, "ci_low")), x2: x(get(one, "ci_high")), y1: y, y2: y, "stroke-width": 3,
          paint: { stroke: look.stroke } }));
    if (isNumber(at)) svg.append(tipped(s("path",
          { d: `M${x(at)},${y - 8}l7,8l-7,8l-7,-8z`, paint: { fill: look.stroke, stroke: "var(--paper)" } }),
        () => `${said(one)}\nplacebos: ${placeboWords(model, one, metric, layer)}`));
    if (isWide) svg.append(s("text", { x: width - right + 10, y: y + 4 }, placeboWords(model, one, metric, layer)));
  });
  holder.replaceChildren(svg);
}

function placebos(folder) {
  const shown = { metric: null, layer: null };
  const controls = h("div", { class: "controls" }), holder = h("div", {}), key = h("div", {}), numbers = h("div", {}),
    meaning = h("p", { class: "note" });
  folder.append(h("p", {},
      "Would any vector have done it? Each grey dot is a placebo: a vector of the same size, without the meaning. A condition outside of its placebos does something that its direction is needed for. Placebos have the largest strength of their vector."),
    controls, meaning, h("figure", {}, holder, key), numbers);
  return function draw(model) {
    const own = acting(model).filter((one) => Object.keys(model.placebos[one.vector] || {}).length);
    folder.hidden = !own.length;
    if (!own.length) return;
    const metrics = Object.keys(model.placebos[own[0].vector]);
    if (!metrics.includes(shown.metric)) shown.metric = metrics.includes("entropy") ? "entropy" : metrics[0];
    const metric = shown.metric, points = pointsOf(model, metric);
    const layer = points.includes(shown.layer) ? shown.layer : lastPoint(model, metric);
    controls.replaceChildren(
      choice("Metric", metrics.map((name) => [name, withUnit(name)]), metric,
        (value) => { shown.metric = value; draw(model); }),
      choice("Layer", points.map((at) => [String(at), pointName(metric, at)]), String(layer),
        (value) => { shown.layer = Number(value); draw(model); }));
    meaning.textContent = sayMeaning(metric);
    forest(holder, model, own, metric, layer);
    key.replaceChildren(forestKey(model, own, metric));
    const get = (one, name) => column(model, one.name, metric, name)[layer];
    const end = (one, pick) =>
      { const found = dotsOf(model, one, metric, layer); return found.length ? signed(pick(...found)) : BLANK; };
    numbers.replaceChildren(numbersTable(metricName(metric) + atPoint(metric, layer),
        ["condition", "difference", "95 % interval", "least placebo", "largest placebo", "placebos that do as much"],
      own.map((one) =>
        [one.name, signed(get(one, "mean_difference")), interval(get(one, "ci_low"), get(one, "ci_high")),
          end(one, Math.min), end(one, Math.max), beside(model, one, metric, layer)])));
  };
}
