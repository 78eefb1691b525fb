/* Every metric over depth. */

function curves(folder) {
  const shown = { metric: null, how: "means", isShare: false,
    off: new Set(steered().filter((one) => one.strength === 0).map((one) => one.name)) };
  const controls = h("div", { class: "controls" }), toggles = h("fieldset", {}), holder = h("div", { class: "chart" });
  const caption = h("figcaption", {}), numbers = h("div", {}), meaning = h("p", { class: "note" });
  folder.append(controls, meaning, toggles, h("figure", {}, caption, holder), numbers);
  return function draw(model) {
    const metrics = Object.keys(data.metrics)
      .filter((name) => data.conditions.some((one) => (model.curves[one.name] || {})[name]));
    if (!metrics.includes(shown.metric)) shown.metric = metrics.includes("entropy") ? "entropy" : metrics[0];
    const metric = shown.metric,
      canDiffer = compared(model).some((one) => column(model, one.name, metric, "mean_difference").length
      && (model.curves[STANDARD.name] || {})[metric]);
    if (!canDiffer) shown.how = "means";
    const isShare = shown.isShare && about(metric).unit === "nats", unit = isShare ? Math.log(model.vocab_size) : 1;
    const isDifference = shown.how === "difference";
    const own = data.conditions.filter((one) =>
      (isDifference ? column(model, one.name, metric, "mean_difference").length
        : (model.curves[one.name] || {})[metric]));
    const scaled = (values) => values.map((value) => (isNumber(value) ? value / unit : null));
    const series = own.filter((one) => !shown.off.has(one.name)).map((one) => {
      if (isDifference) {
        return { name: one.name, look: styleOf(one.name),
          values: scaled(column(model, one.name, metric, "mean_difference")),
          low: scaled(column(model, one.name, metric, "ci_low")),
            high: scaled(column(model, one.name, metric, "ci_high")) };
      }
      const { mean, half } = model.curves[one.name][metric];
      return { name: one.name, look: styleOf(one.name), values: scaled(mean),
        low: scaled(mean.map((value, at) => (isNumber(half[at]) ? Math.max(value - half[at], least(metric)) : null))),
        high: scaled(mean.map((value, at) => (isNumber(half[at]) ? value + half[at] : null))), half: scaled(half) };
    });
    const placebos = isDifference ? [...new Set(own.filter((one) => !shown.off.has(one.name)).map((one) => one.vector))]
      .flatMap((vector) => (model.placebos[vector] || {})[metric] || []) : [];
    if (placebos.length) {
      const ends = (pick) => range(numPoints(model, metric))
        .map((layer) =>
        { const found = placebos.map((one) => one[layer])
          .filter(isNumber); return found.length ? pick(...found) / unit : null; });
      series.unshift({ name: `range of ${count(placebos.length, "placebo")}`, isBand: true, low: ends(Math.min),
          high: ends(Math.max), values: [] });
    }
    controls.replaceChildren(
      choice("Metric", metrics.map((name) => [name, withUnit(name)]), metric,
        (value) => { shown.metric = value; draw(model); }),
      canDiffer ? choice("Show", [["means", "means"], ["difference", "difference from standard"]], shown.how,
        (value) => { shown.how = value; draw(model); }) : "",
      about(metric).unit === "nats"
        ? h("label", { class: "row" },
        h("input", { type: "checkbox", checked: shown.isShare,
            onchange: (event) => { shown.isShare = event.target.checked; draw(model); } }), "as a share of ln V") : "");
    toggles.replaceChildren(h("legend", {}, "Conditions"),
      ...own.map((one) =>
        h("label", {}, h("input", { type: "checkbox", checked: !shown.off.has(one.name), onchange: (event) => {
      if (event.target.checked) shown.off.delete(one.name); else shown.off.add(one.name);
      draw(model);
    } }), swatch(styleOf(one.name)), bdi(one.name))));
    meaning.textContent = sayMeaning(metric);
    const name = isDifference ? `Difference in ${about(metric).label}` : metricName(metric);
    const yName = name + (isShare ? " / ln V" : about(metric).unit ? ` (${about(metric).unit})` : "");
    const untouched = isDifference
      ? Math.min(...own.filter((one) => !shown.off.has(one.name)).map((one) => model.untouched[one.name] || 0)) : 0;
    caption.textContent = isDifference
      ? `${model.key}: mean difference from the standard run by depth, with 95 % intervals${placebos.length ? "; grey: the range of the placebos" : ""}. Beyond the grey, no placebo does as much.${untouched > 0 ? " Shaded at the left: layers that steering does not reach." : ""}`
      : `${model.key}: means over ${count(model.num_sentences, "sentence")} by depth; shaded: 95\u00a0% intervals of the mean. Point at a layer, or press the arrow keys.`;
    lineChart(holder,
      { label: `${yName} over depth, ${series.map((one) => one.name).join(", ")}; the table below has the numbers`,
        xs: range(numPoints(model, metric)), xName: capital(about(metric).axis), xText: xTickName(metric),
      xLong: (index) => capital(pointName(metric, index)), yName, series,
        isBridged: isBridged(model, metric), isLog: about(metric).scale === "logarithmic" && !isDifference,
        withZero: isDifference || least(metric) === 0 && about(metric).unit === "nats", lowName: "95 %",
        shadeTo: isFinite(untouched) ? untouched : 0 });
    const lines = series.filter((one) => !one.isBand);
    numbers.replaceChildren(numbersTable(yName, [capital(about(metric).axis), ...lines.map((one) => one.name)],
      range(numPoints(model, metric))
        .map((layer) =>
        [String(layer),
          ...lines.map((one) => fmt(one.values[layer])
            + (one.half ? ` \u00b1 ${fmt(one.half[layer], 3)}` : isNumber(one.low[layer])
              ? ` (${interval(one.low[layer], one.high[layer])})` : ""))])));
  };
}
