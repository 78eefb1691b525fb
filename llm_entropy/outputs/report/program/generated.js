/* What models write. */

const isWritten = (model) => Boolean(model.sample && Object.keys(model.sample.written).length);

function generated(folder) {
  const shown = { text: "" };
  const search = h("input",
    { type: "search", class: "search", id: "search-texts", placeholder: "search the sentences and texts",
      "aria-label": "Search the sentences and texts",
      oninput: () => { shown.text = search.value; drawTexts(state.model); } });
  const found = h("p", { class: "note", "aria-live": "polite" }),
    texts = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Generated texts" }),
    counted = h("div", {});
  folder.append(h("p", {}, "What the model writes behind each sentence, under every condition."), search, found, texts,
    counted);
  function drawTexts(model) {
    const own = data.conditions.filter((one) => model.sample.written[one.name]), isFound = matcher(shown.text);
    const rows = model.sample.sentences.map((sentence, place) =>
      [textOf(sentence), ...own.map((one) => model.sample.written[one.name][place])])
      .filter((row) => isFound(row.join(" ")));
    found.textContent = `${count(rows.length, "sentence")}${shown.text.trim() ? " found" : rows.length < model.num_sentences ? ` of ${fmt(model.num_sentences)}, drawn by the seed` : ""}; all texts are in the CSV files, whole.`;
    texts.replaceChildren(h("table", { class: "texts" },
        h("thead", {},
          h("tr", {}, ["sentence", ...own.map((one) => one.name)]
            .map((name) => h("th", { class: "text", scope: "col" }, bdi(name))))),
      h("tbody", {},
        rows.map((row) =>
          h("tr", {}, row.map((text, index) =>
              h(index ? "td" : "th", { class: "text", dir: "auto", scope: index ? null : "row" },
                text || "\u2205")))))));
  }
  function drawCounts(model) {
    const own = compared(model),
      metrics = Object.keys(data.metrics)
      .filter((name) => own.some((one) => column(model, one.name, name, "mean_difference").length)
      && (isOfText(name) || name === "standard_surprisal"));
    const kl = (one) => (((model.curves[one.name] || {}).kl_from_standard || {}).mean || []).slice(-1)[0];
    const get = (one, metric, name) => column(model, one.name, metric, name).slice(-1)[0];
    const cell = (one, metric) =>
      `${fmt(get(one, metric, "mean_standard") + get(one, metric, "mean_difference"), 3)} (${interval(get(one, metric, "ci_low"), get(one, metric, "ci_high"))})`;
    const rows = metrics.map((metric) =>
      [withUnit(metric), fmt(get(own[0], metric, "mean_standard"), 3), ...own.map((one) => cell(one, metric))]);
    rows.push(["KL from standard (nats)", "0", ...own.map((one) => fmt(kl(one), 3))]);
    counted.replaceChildren(...(metrics.length ? [h("h3", {}, "What steering does to the texts"),
      h("p", { class: "note" },
        "Means over the sentences, and in brackets the 95 % interval of the difference from standard. Surprisal and KL are those of the last layer."),
      scroller("What steering does to the texts",
        tableOf(["metric", "standard", ...own.map((one) => one.name)], rows, { id: "text-metrics" }))] : []));
  }
  return function draw(model) {
    folder.hidden = !isWritten(model);
    if (folder.hidden) return;
    drawTexts(model);
    drawCounts(model);
  };
}
