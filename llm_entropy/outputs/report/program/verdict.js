/* What the run found: a sentence for each vector, and the table of what conditions change. */

function sayEffect(model, vector) {
  const own = acting(model).filter((one) => one.vector === vector);
  if (!own.length) return null;
  const condition = strongest(own), metrics = Object.keys(model.summary[condition.name]);
  const metric = metrics.includes("entropy") ? "entropy" : metrics[0], layer = numPoints(model, metric) - 1;
  const get = (name) => column(model, condition.name, metric, name)[layer];
  const change = get("mean_difference"), p = get("p_holm"), unit = about(metric).unit;
  if (!isNumber(change)) return null;
  const before = get("mean_standard"), isSure = isNumber(p) && p < SIGNIFICANT;
  const verb = change > 0 ? "raises" : "lowers", what = `${about(metric).label} at the last ${about(metric).axis}`;
  const placebos = larger(model, condition, metric, layer), numbers = `${fmt(before, 3)} to ${fmt(before + change, 3)}${unit ? ` ${unit}` : ""}`;
  const sure = `95 % interval of the difference ${interval(get("ci_low"), get("ci_high"))}; p\u00a0${(p < 0.001 ? "" : "=\u00a0") + pvalue(p)} after Holm's correction`;
  const text = [isSure ? ` ${verb} ${what} from ${numbers} on average (${sure}).`
    : ` shows no sure change of ${what}: ${numbers} on average (${isNumber(p) ? sure : "not tested: steering does not reach it"}).`];
  if (placebos && isSure) {
    text.push(placebos.number === 0 ? ` None of its ${placebos.total} placebos, vectors of the same size without its meaning, changes it as much.`
      : ` But ${placebos.number} of its ${placebos.total} placebos, vectors of the same size without its meaning, change it at least as much: this change does not need the vector's direction.`);
  }
  let best = null;
  for (const one of metrics) {
    const at = largest(model, condition.name, one);
    if (at < 0) continue;
    const size = column(model, condition.name, one, "effect_size")[at], other = larger(model, condition, one, at);
    if ((other && other.number) || !(column(model, condition.name, one, "p_holm")[at] < SIGNIFICANT)) continue;
    if (!best || Math.abs(size) > Math.abs(best.size)) best = { metric: one, at, size };
  }
  if (best) {
    text.push(` Its largest sure effect${placebos ? " beyond all placebos" : ""} is on ${about(best.metric).label}${atPoint(best.metric, best.at)}: `
      + `${signed(column(model, condition.name, best.metric, "mean_difference")[best.at])}${about(best.metric).unit ? ` ${about(best.metric).unit}` : ""}, d = ${signed(best.size, 2)}.`);
  }
  return h("li", {}, h("strong", {}, bdi(model.key)), ": ", h("strong", {}, bdi(condition.name)), text.join(""));
}

function sayCurve(model) {
  const name = Object.keys(model.curves)[0], metrics = Object.keys(model.curves[name] || {});
  if (!metrics.length) return null;
  const metric = metrics.includes("entropy") ? "entropy" : metrics[0], means = model.curves[name][metric].mean;
  const firstAt = about(metric).first, top = means.reduce((best, value, at) => (isNumber(value) && (best < 0 || value > means[best]) ? at : best), -1);
  const unit = about(metric).unit ? ` ${about(metric).unit}` : "";
  return h("li", {}, h("strong", {}, bdi(model.key)), `, ${name}: ${about(metric).label} begins at ${fmt(means[firstAt], 3)}${unit}, is highest at ${pointName(metric, top)} (${fmt(means[top], 3)}), `
    + `and ends at ${fmt(means[means.length - 1], 3)}${unit}${unit === " nats" ? `, ${percent(means[means.length - 1] / Math.log(model.vocab_size))} of ln V` : ""}.`);
}

function verdict(folder) {
  const said = data.models.flatMap((model) => {
    const own = vectors(model).map((vector) => sayEffect(model, vector)).filter(Boolean);
    return own.length ? own : [sayCurve(model)].filter(Boolean);
  });
  folder.append(h("ul", { class: "lead" }, said));
  if (!data.models.some((model) => compared(model).length)) return () => {};
  const shown = { text: "", model: "", condition: "", metric: "", at: "last", by: null, down: false };
  const COLUMNS = [["model", "model", 1], ["condition", "condition", 1], ["metric", "metric", 1], ["layer", "layer", 0],
    ["standard", "standard", 0], ["difference", "difference", 0], ["95 % interval", "interval", 0], ["effect size d", "effect", 0],
    ["p (Holm)", "p", 0], ["sentences up", "up", 0], ["placebos", "placebos", 1]];
  const rows = data.models.flatMap((model) => acting(model).flatMap((condition) => Object.keys(model.summary[condition.name]).flatMap((metric) => {
    const most = largest(model, condition.name, metric), last = numPoints(model, metric) - 1;
    const get = (name, layer) => column(model, condition.name, metric, name)[layer];
    return range(last + 1).map((layer) => ({
      at: [layer === last ? "last" : "", layer === most ? "largest" : ""], isTested: isNumber(get("p_holm", layer)),
      keys: { model: model.key, condition: condition.name, metric: about(metric).label, layer, standard: get("mean_standard", layer),
        difference: get("mean_difference", layer), interval: get("ci_low", layer), effect: real(get("effect_size", layer)),
        p: get("p_holm", layer), up: get("share_increased", layer), placebos: get("placebo_p", layer) },
      name: metric, cells: [bdi, bdi, String, (v) => (isOfText(metric) ? BLANK : String(v)), (v) => fmt(v), (v) => signed(v), () => interval(get("ci_low", layer), get("ci_high", layer)),
        (v) => signed(v, 2), pvalue, percent, () => beside(model, condition, metric, layer)],
      isSure: isNumber(get("p_holm", layer)) && get("p_holm", layer) < SIGNIFICANT,
      isBeyond: (larger(model, condition, metric, layer) || {}).number === 0,
    }));
  })));
  const body = h("tbody", {}), said2 = h("p", { class: "note", "aria-live": "polite" });
  const headCells = COLUMNS.map(([label, key, isText]) => h("th", { scope: "col", class: isText ? "text" : null }, h("button", { type: "button", onclick: () => {
    shown.down = shown.by === key ? !shown.down : false;
    shown.by = key;
    draw();
  } }, label)));
  function draw() {
    const words = shown.text.toLowerCase().split(/\s+/).filter(Boolean);
    let kept = rows.filter((row) => (shown.at === "all" || row.at.includes(shown.at)) && (!shown.model || row.keys.model === shown.model)
      && (!shown.condition || row.keys.condition === shown.condition) && (!shown.metric || row.name === shown.metric)
      && words.every((word) => `${row.keys.model} ${row.keys.condition} ${row.keys.metric}`.toLowerCase().includes(word)));
    if (shown.by) {
      const direction = shown.down ? -1 : 1;
      kept = kept.slice().sort((a, b) => {
        const [one, two] = [a.keys[shown.by], b.keys[shown.by]];
        if (typeof one === "string") return direction * one.localeCompare(two);
        return (isNumber(two) || Math.abs(two) === Infinity) - (isNumber(one) || Math.abs(one) === Infinity) || direction * (one - two) || 0;
      });
    }
    COLUMNS.forEach(([, key], index) => {
      if (shown.by === key) headCells[index].setAttribute("aria-sort", shown.down ? "descending" : "ascending");
      else headCells[index].removeAttribute("aria-sort");
    });
    body.replaceChildren(...kept.slice(0, MOST_ROWS).map((row) => h("tr", {}, COLUMNS.map(([, key, isText], index) => {
      const isGood = (key === "p" && row.isSure) || (key === "placebos" && row.isBeyond);
      return h("td", { class: [isText ? "text" : "", key === "metric" ? "wide" : "", isGood ? "yes" : ""].join(" ").trim() || null }, row.cells[index](row.keys[key]));
    }))));
    said2.textContent = `${count(kept.length, "row")}${kept.length > MOST_ROWS ? `, of which the first ${MOST_ROWS} are shown` : ""}. `
      + "Difference: condition \u2212 standard, mean over the sentences. d: mean / deviation of the differences. p: of no difference, after Holm's correction over layers and conditions. "
      + "Sentences up: share that increases. Placebos: how many vectors of the same size change at least as much. Bold green: p < 0.05; beyond all placebos.";
  }
  const pick = (label, key, names) => choice(label, [["", "all"], ...names], "", (value) => { shown[key] = value; draw(); });
  folder.append(h("h3", {}, "What each condition changes, and how surely"),
    h("div", { class: "controls" },
      h("label", {}, "Filter", h("input", { type: "search", id: "filter", placeholder: "words, as: entropy control", oninput: (event) => { shown.text = event.target.value; draw(); } })),
      data.models.length > 1 ? pick("Model", "model", data.models.map((one) => [one.key, one.key])) : null,
      pick("Condition", "condition", [...new Set(rows.map((row) => row.keys.condition))].map((name) => [name, name])),
      pick("Metric", "metric", [...new Set(rows.map((row) => row.name))].map((name) => [name, metricName(name)])),
      choice("Layer", [["last", "the last"], ["largest", "of the largest effect"], ["all", "every layer"]], "last", (value) => { shown.at = value; draw(); })),
    h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Summary of the conditions" },
      h("table", { id: "summary" }, h("thead", {}, h("tr", {}, headCells)), body)), said2);
  draw();
  return () => {};
}
