/* Right and wrong answers. */

function answers(folder) {
  const intro = h("p", {}), keys = h("div", { class: "keys" }), numbers = h("div", {});
  const figures = [["accuracy", "Accuracy: share of sentences that prefer the right answer", "Accuracy"],
    ["preference", "Preference: surprisal of the wrong answer \u2212 that of the right one", "Preference (nats)"]]
    .map(([key, caption, yName]) => ({ key, caption, yName, holder: h("div", {}) }));
  folder.append(intro, keys,
    h("div", { class: "panels" }, figures.map((one) => h("figure", {}, h("figcaption", {}, one.caption), one.holder))),
    numbers);
  return function draw(model) {
    const own = data.conditions.filter((one) => model.answers[one.name]);
    folder.hidden = !own.length;
    if (!own.length) return;
    intro.textContent = `${count(model.answers[own[0].name].count, "sentence")} of ${model.key} with a right and a wrong answer. An answer's surprisal is read at every layer; the right one is preferred where its surprisal is the lower one. Shaded: 95 % intervals.`;
    keys.replaceChildren(...own.map((one) => h("span", {}, swatch(styleOf(one.name)), " ", bdi(one.name))));
    for (const { key, caption, yName, holder } of figures) {
      lineChart(holder,
        { label: `${caption}, over depth; the table below has the numbers`, xs: range(model.num_layers), xName: "Layer",
          xText: (tick) => (tick ? String(tick) : "emb."), xLong: (index) => (index ? `Layer ${index}` : "Embeddings"),
        yName, withZero: true, isBare: true, height: 270, lowName: "95 %", series: own.map((one) => {
          const { mean, low, high } = model.answers[one.name][key];
          return { name: one.name, look: styleOf(one.name), values: mean, low, high };
        }) });
    }
    const cell = ({ mean, low, high }, layer) => fmt(mean[layer], 3)
      + (isNumber(low[layer]) ? ` (${fmt(low[layer], 3)} to ${fmt(high[layer], 3)})` : "");
    numbers.replaceChildren(numbersTable("Mean (95 % interval); and how many sentences prefer the right answer from that layer on, up to the last one", ["Layer", ...own.flatMap((one) => [`${one.name}: accuracy`, "preference", "from here on"])],
      range(model.num_layers)
        .map((layer) =>
        [String(layer),
          ...own.flatMap((one) =>
            { const found = model.answers[one.name]; return [cell(found.accuracy, layer), cell(found.preference, layer),
                String(found.preferred_from[layer])]; })])));
  };
}
