/* Groups of sentences, such as the conditions of an experiment. */

function groups(folder) {
  const shown = { metric: null, condition: null };
  const controls = h("div", { class: "controls" }), key = h("div", { class: "keys" }), caption = h("figcaption", {}),
    holder = h("div", {}), numbers = h("div", {});
  folder.append(h("p", {},
      "Do the groups of the corpus differ? Means of each group by depth; shaded: 95\u00a0% intervals of the mean. How sure the differences between groups are stands in the file of group differences."),
    controls, h("figure", {}, caption, key, holder), numbers);
  return function draw(model) {
    const conditions = Object.keys(model.groups);
    folder.hidden = !conditions.length;
    if (folder.hidden) return;
    if (!conditions.includes(shown.condition)) shown.condition = conditions[0];
    const own = model.groups[shown.condition], labels = Object.keys(own), metrics = Object.keys(own[labels[0]]);
    if (!metrics.includes(shown.metric)) shown.metric = metrics.includes("entropy") ? "entropy" : metrics[0];
    const metric = shown.metric, of = (label) => own[label][metric];
    controls.replaceChildren(
      choice("Metric", metrics.map((name) => [name, withUnit(name)]), metric,
        (value) => { shown.metric = value; draw(model); }),
      conditions.length > 1
        ? choice("Condition", conditions.map((name) => [name, name]), shown.condition,
        (value) => { shown.condition = value; draw(model); }) : "");
    key.replaceChildren(...labels.map((label, place) =>
        h("span", {}, swatch(trackLook(place)), " ", bdi(label), ` (${count(Math.max(...of(label).n), "sentence")})`)));
    caption.textContent = `${model.key}, ${shown.condition}: ${withUnit(metric)} by group`;
    const points = range(numPoints(model, metric)),
      end = (label, sign) =>
      of(label).mean.map((value, at) => (isNumber(of(label).half[at]) ? value + sign * of(label).half[at] : null));
    lineChart(holder,
      { label: `${withUnit(metric)} by group over depth; the table below has the numbers`, xs: points,
        xName: capital(about(metric).axis), xText: xTickName(metric),
        xLong: (index) => capital(pointName(metric, index)), isBridged: isBridged(model, metric),
      yName: withUnit(metric), isLog: about(metric).scale === "logarithmic", lowName: "95 %", isBare: true,
      series: labels.map((label, place) =>
        ({ name: label, look: trackLook(place), values: of(label).mean, low: end(label, -1), high: end(label, 1) })) });
    numbers.replaceChildren(numbersTable(withUnit(metric), [capital(about(metric).axis), ...labels],
        points.map((at) =>
          [String(at), ...labels.map((label) => `${fmt(of(label).mean[at])} \u00b1 ${fmt(of(label).half[at], 3)}`)])));
  };
}
