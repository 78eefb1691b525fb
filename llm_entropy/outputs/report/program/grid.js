/* The lens grid of a sentence: a row for each layer, a column for each position. */

function lensGrid(view, name, record, choose) {
  const { model, metric, layer, label } = view, records = recordsUnder(view, name),
    isChosen = (one) => one === record && records.length > 1;
  const cell = (one, at) => {
    const best = topAt(model, name, one, at), value = valueOf(model, metric, name, one, at);
    const made = h("td", { onclick: () => choose(one) }, bdi(seen(best.token)), " ", probability(best.probability),
      h("small", {}, fmt(value, 3)));
    const words = (own) => `${seen(own.token)} ${probability(own.probability)}`;
    return tipped(tint(made, view.share(value), view.isDiverging), () => [
      `${capital(layerText(at))}, token ${label(one, name)}`, `${metricName(metric)}: ${fmt(value)}`,
      ...(hasTops(model) ? [`most likely: ${words(best)}`, "tracked:"] : []),
      ...trackedAt(model, name, one, at).map(words),
    ].join("\n"));
  };
  const table = h("table", { class: "lens" },
    h("thead", {},
      h("tr", {}, h("th", { scope: "col" }, "Layer"),
        records.map((one) =>
          h("th", { scope: "col", class: isChosen(one) ? "chosen" : null,
              title: `position ${model.sample.positions[one]}` }, bdi(label(one, name)))))),
    h("tbody", {},
      range(model.num_layers).reverse()
      .map((at) => h("tr", {},
          h("th", { scope: "row", class: at === layer ? "chosen" : null }, at ? String(at) : "emb."),
          records.map((one) => cell(one, at))))));
  return h("div",
    { class: "scroll", role: "region", "aria-label": `Lens, ${name}; the arrow keys go from cell to cell` },
    roving(table, "td"));
}

/* Bring the column of the chosen token into sight. */
function showChosen(folder) {
  for (const head of folder.querySelectorAll(".lens thead th.chosen")) {
    const holder = head.closest(".scroll");
    const end = head.offsetLeft + head.offsetWidth, isLeft = head.offsetLeft < holder.scrollLeft + 60;
    if (isLeft || end > holder.scrollLeft
      + holder.clientWidth) holder.scrollLeft = head.offsetLeft - holder.clientWidth / 2;
  }
}
