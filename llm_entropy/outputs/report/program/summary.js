/* The table of what conditions change, to sort and to filter. */

function summaryTable(folder) {
  const shown = { text: "", model: "", condition: "", metric: "", at: "last", by: null, down: false };
  const COLUMNS = [["model", "model", 1], ["condition", "condition", 1], ["metric", "metric", 1], ["layer", "layer", 0],
    ["standard", "standard", 0], ["difference", "difference", 0], ["95 % interval", "interval", 0],
      ["effect size d", "effect", 0],
    ["p (Holm)", "p", 0], ["sentences up", "up", 0], ["placebos as large", "placebos", 0]];
  const rows = data.models.flatMap((model) => acting(model)
    .flatMap((condition) => Object.keys(model.summary[condition.name]).flatMap((metric) => {
    const most = largest(model, condition.name, metric), last = lastPoint(model, metric);
    const get = (name, layer) => column(model, condition.name, metric, name)[layer];
    return pointsOf(model, metric).map((layer) => ({
      at: [layer === last ? "last" : "", layer === most ? "largest" : ""], isTested: isNumber(get("p_holm", layer)),
      keys: { model: model.key, condition: condition.name,
        metric: about(metric).label + (about(metric).unit ? ` (${about(metric).unit})` : ""), layer,
        standard: get("mean_standard", layer),
        difference: get("mean_difference", layer), interval: get("ci_low", layer),
          effect: real(get("effect_size", layer)),
        p: get("p_holm", layer), up: get("share_increased", layer), placebos: get("placebo_p", layer) },
      name: metric,
        cells: [bdi, bdi, String, (v) => (isOfText(metric) ? BLANK : String(v)), (v) => fmt(v), (v) => signed(v),
        () => interval(get("ci_low", layer), get("ci_high", layer)),
        (v) => signed(v, 2), pvalue, percent, () => beside(model, condition, metric, layer)],
      isSure: isNumber(get("p_holm", layer)) && get("p_holm", layer) < SIGNIFICANT,
      isBeyond: (larger(model, condition, metric, layer) || {}).number === 0,
    }));
  })));
  const body = h("tbody", {}), note = h("p", { class: "note", "aria-live": "polite" });
  const headCells = COLUMNS.map(([label, key, isText]) =>
    h("th", { scope: "col", class: isText ? "text" : null }, h("button", { type: "button", onclick: () => {
    shown.down = shown.by === key ? !shown.down : false;
    shown.by = key;
    draw();
  } }, label)));
  function draw() {
    const isFound = matcher(shown.text);
    let kept = rows.filter((row) => (shown.at === "all" || row.at.includes(shown.at))
      && (!shown.model || row.keys.model === shown.model)
      && (!shown.condition || row.keys.condition === shown.condition) && (!shown.metric || row.name === shown.metric)
      && isFound(`${row.keys.model} ${row.keys.condition} ${row.keys.metric}`));
    if (shown.by) {
      const direction = shown.down ? -1 : 1;
      kept = kept.slice().sort((a, b) => {
        const [one, two] = [a.keys[shown.by], b.keys[shown.by]];
        if (typeof one === "string") return direction * one.localeCompare(two);
        return (isNumber(two) || Math.abs(two) === Infinity) - (isNumber(one) || Math.abs(one) === Infinity)
          || direction * (one - two) || 0;
      });
    }
    COLUMNS.forEach(([, key], index) => {
      if (shown.by === key) headCells[index].setAttribute("aria-sort", shown.down ? "descending" : "ascending");
      else headCells[index].removeAttribute("aria-sort");
    });
    body.replaceChildren(...kept.slice(0, MOST_ROWS).map((row) => h("tr", {}, COLUMNS.map(([, key, isText], index) => {
      const isGood = (key === "p" && row.isSure) || (key === "placebos" && row.isBeyond);
      return h("td",
        { class: [isText ? "text" : "", key === "metric" ? "wide" : "", isGood ? "yes" : ""].join(" ").trim() || null },
        row.cells[index](row.keys[key]));
    }))));
    note.textContent = `${count(kept.length, "row")}${kept.length > MOST_ROWS ? `, of which the first ${MOST_ROWS} are shown` : ""}. `
      + "Standard: mean over the sentences without steering, in the unit of the metric. Difference: condition \u2212 standard. d: mean / deviation of the differences. "
      + "p: of no difference, after Holm's correction over layers and conditions. Sentences up: share that increases. "
      + "Placebos as large: how many vectors of the same size change it at least as much. Bold green: p < 0.05; no placebo does as much.";
  }
  const pick = (label, key, names) =>
    choice(label, [["", "all"], ...names], "", (value) => { shown[key] = value; draw(); });
  folder.append(h("p", {},
      "What each condition changes, and how surely: a row for each metric. Click a heading to sort."),
    h("div", { class: "controls" },
      h("label", {}, "Filter",
        h("input", { type: "search", id: "filter", placeholder: "words, as: entropy control",
            oninput: (event) => { shown.text = event.target.value; draw(); } })),
      data.models.length > 1 ? pick("Model", "model", data.models.map((one) => [one.key, one.key])) : null,
      pick("Condition", "condition", [...new Set(rows.map((row) => row.keys.condition))].map((name) => [name, name])),
      pick("Metric", "metric", [...new Set(rows.map((row) => row.name))].map((name) => [name, metricName(name)])),
      choice("Layer", [["last", "the last"], ["largest", "of the largest effect"], ["all", "every layer"]], "last",
        (value) => { shown.at = value; draw(); })),
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Summary of the conditions" },
      h("table", { id: "summary" }, h("thead", {}, h("tr", {}, headCells)), body)), note);
  draw();
  return () => {};
}
