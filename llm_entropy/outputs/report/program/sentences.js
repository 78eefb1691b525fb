/* Sentence by sentence: a list to search, tokens coloured by a metric, the lens grid, and how the answer emerges. */

/* What is shown of a sentence: its records, how they are called, and how deep their colours are. */
function viewOf(model, sentence, names, metric, layer) {
  const records = recordsOf(sentence), isLog = about(metric).scale === "logarithmic",
    flat = (value) => (isLog ? Math.log(value) : value);
  const all = names.flatMap((name) =>
    records.flatMap((record) => range(model.num_layers).map((at) => valueOf(model, metric, name, record, at))))
    .filter(isNumber);
  const low = Math.min(...all), high = Math.max(...all), isDiverging = least(metric) < 0,
    most = Math.max(Math.abs(low), Math.abs(high)) || 1;
  const texts = new Map(sentence.pieces.filter(([text, token]) => token >= 0 && text)
    .map(([text, token]) => [sentence.first + token, text]));
  const token = (record, name) => texts.get(record) || model.sample.names[model.sample.tokens[record]]
    || writtenToken(model, name, record, records);
  const label = (record, name) =>
    { const text = token(record, name); return text ? seen(text) : `position ${model.sample.positions[record]}`; };
  const share = (value) =>
    (isDiverging ? value / most : high > low ? (flat(value) - flat(low)) / (flat(high) - flat(low)) : 0.5);
  const ends = !all.length ? null : isDiverging ? [-most, most] : [Math.abs(low) < 1e-4 * high ? 0 : low, high];
  return { model, sentence, names, metric, layer, records, ends, isDiverging, share, token, label };
}

/* What a model writes differs between conditions: a token of it is what was the target one position before. */
function writtenToken(model, name, record, records) {
  const own = model.sample.conditions[name];
  return own && isWritten(model) && records.includes(record - 1) ? model.sample.names[own.targets[record - 1]] : "";
}

/* The records of a condition; a text that a model has written may have ended before. */
const recordsUnder = (view, name) =>
  view.records.filter((record) => !isWritten(view.model)
  || view.model.sample.names[view.model.sample.conditions[name].targets[record]]);

/* The text under a condition, its tokens coloured by the metric; the arrow keys choose one. */
function tokenText(view, name, record, choose) {
  const { model, sentence, metric, layer, names, label, records } = view;
  const atLayer = (one) =>
    names.map((own) => `${own}: ${metricName(metric)} ${fmt(valueOf(model, metric, own, one, layer))}`).join("\n");
  const kept = new Set(recordsUnder(view, name));
  const chips = sentence.pieces.filter(([text, token]) => token < 0 || text || kept.has(sentence.first + token))
    .map(([text, token]) => {
    if (token < 0) return text;
    const one = sentence.first + token,
      chip = h("span",
      { class: one === record && records.length > 1 ? "token chosen" : "token", onclick: () => choose(one) },
      text || (isWritten(model) && view.token(one, name)) || "\u00b7");
    return tipped(tint(chip, view.share(valueOf(model, metric, name, one, layer)), view.isDiverging),
      () => `${label(one, name)}\n${atLayer(one)}`);
  });
  return roving(h("div",
      { class: "read", dir: "auto", role: "group",
        "aria-label": `Text, ${name}; the arrow keys go from token to token, Enter chooses one` }, chips), ".token");
}

/* How probable the last layer's most likely tokens are at every layer. */
function emergence(view, record) {
  const { model, names } = view, holders = names.map(() => h("div", {}));
  const panel = (name, place) =>
    h("figure", {},
    h("figcaption", {}, bdi(name), ": target ",
      bdi(seen(model.sample.names[model.sample.conditions[name].targets[record]]))), holders[place],
    h("div", { class: "keys" },
      trackedAt(model, name, record, model.num_blocks)
      .map((own, at) =>
        h("span", {}, swatch(trackLook(at)), " ", bdi(seen(own.token)), ` ${probability(own.probability)}`))));
  const draw = () => names.forEach((name, place) => {
    const tracked = range(model.num_layers).map((at) => trackedAt(model, name, record, at));
    lineChart(holders[place],
      { label: `Probability of tracked tokens over depth, ${name}`, xs: range(model.num_layers), xName: "Layer",
        xText: (tick) => (tick ? String(tick) : "emb."), xLong: (index) => capital(layerText(index)),
        yName: "Probability", withZero: true, height: 220, yText: probability, isBare: true,
      series: tracked[0]
        .map((own, at) =>
        ({ name: seen(own.token), look: trackLook(at), values: tracked.map((one) => one[at].probability) })) });
  });
  return [h("div", { class: "panels" }, names.map(panel)), draw];
}

function tokenNumbers(view, record, isOpen) {
  const { model, names, layer } = view;
  const row = (metric) => {
    const values = names.map((name) => valueOf(model, metric, name, record, layer));
    return [withUnit(metric), ...values.map((value) => fmt(value)),
      ...(names.length > 1 ? [signed(values[1] - values[0])] : [])];
  };
  const heads = [`At ${layerText(layer)}`, ...names, ...(names.length > 1 ? ["difference"] : [])];
  return h("details", { open: isOpen }, h("summary", {}, "All metrics of this token"),
    h("div", { class: "scroll" }, tableOf(heads, Object.keys(model.sample.metrics).map(row))));
}

/* Draw a sentence anew; what was scrolled, opened or had the focus stays so. */
function drawSentence(folder, view, record, choose) {
  const { metric, ends, names, records, sentence, label } = view, key = String(sentence.number),
    isSame = folder.dataset.number === key;
  const scrolled = () => [...folder.querySelectorAll(".panels .scroll, .read")],
    focusable = () => [...folder.querySelectorAll(".lens td, .token")];
  const places = isSame ? scrolled().map((one) => [one.scrollLeft, one.scrollTop]) : [],
    focus = isSame ? focusable().indexOf(document.activeElement) : -1;
  const [panels, drawCharts] = emergence(view, record), unit = about(metric).unit,
    isOpen = folder.querySelector("details[open]") !== null;
  folder.dataset.number = key;
  folder.replaceChildren(
    h("p", { class: "note" }, `${metricName(metric)}: `,
      h("span", { class: view.isDiverging ? "scale both" : "scale" }),
      ends ? ` ${fmt(ends[0], 3)} to ${fmt(ends[1], 3)}${unit ? ` ${unit}` : ""}` : " no numbers",
      `. ${capital(MEANINGS[metric] || "")} Text: at the layer chosen above. Grid: `,
      hasTops(view.model) ? "the most likely token of each layer, with its probability, and the metric."
        : "of the tokens that the last layer ranks highest, the most probable at each layer, with its probability, and the metric; with analysis.lens_tokens: true it shows the most likely token of each layer.",
      sentence.left
        ? ` The first ${count(records.length, "position")} are shown; ${fmt(sentence.left)} more are in the Parquet file.` : ""),
    h("div", { class: "panels" },
      names.map((name) =>
        h("div", {}, h("h3", {}, bdi(name)), tokenText(view, name, record, choose),
          lensGrid(view, name, record, choose)))),
    h("h3", {}, "How the answer emerges at ", bdi(label(record, names[0]))), panels,
      tokenNumbers(view, record, isOpen));
  scrolled().forEach((one, place) => { if (places[place]) [one.scrollLeft, one.scrollTop] = places[place]; });
  if (focus >= 0) focusable()[focus].focus({ preventScroll: true });
  drawCharts();
}

function sentences(folder) {
  const shown = { metric: null, layer: null, other: null, record: null, text: "", order: "corpus" };
  const intro = h("p", {}), controls = h("div", { class: "controls" }),
    list = h("ul", { class: "list", role: "listbox", tabindex: 0, id: "sentences", "aria-label": "Sentences" });
  const found = h("p", { class: "note", "aria-live": "polite" }), detail = h("div", { id: "sentence" });
  const search = h("input",
    { type: "search", class: "search", id: "search", placeholder: "search the sentences",
      "aria-label": "Search the sentences", oninput: () => { shown.text = search.value; drawList(state.model); } });
  folder.append(intro, controls, h("div", { class: "sentences" }, h("div", {}, search, found, list), detail));
  list.addEventListener("keydown", (event) => {
    const items = [...list.children], at = items.findIndex((item) => item.getAttribute("aria-selected") === "true");
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 }[event.key];
    if (to === undefined || !items.length) return;
    event.preventDefault();
    pickSentence(Number(items[Math.max(0, Math.min(items.length - 1, to))].dataset.number));
  });
  state.picked.push(() => {
    shown.record = null;
    for (const item of list.children) {
      const isIt = Number(item.dataset.number) === state.number;
      item.setAttribute("aria-selected", String(isIt));
      if (!isIt) continue;
      list.setAttribute("aria-activedescendant", item.id);
      const top = item.offsetTop - list.offsetTop;
      if (top < list.scrollTop || top + item.offsetHeight > list.scrollTop
        + list.clientHeight) list.scrollTop = top - 40;
    }
    drawDetail(state.model);
  });
  function sides() {
    const first = data.conditions[0].name;
    return shown.other && shown.other !== first ? [first, shown.other] : [first];
  }
  function change(model, sentence) {
    const own = model.sample.metrics[shown.metric].conditions, [one, two] = sides();
    if (!own.includes(two)) return NaN;
    return meanOf(model, sentence, shown.metric, two,
      shown.layer) - (own.includes(one) ? meanOf(model, sentence, shown.metric, one, shown.layer) : 0);
  }
  function drawList(model) {
    const isFound = matcher(shown.text), names = sides();
    let kept = model.sample.sentences.filter((sentence) => isFound(textOf(sentence)));
    if (shown.order === "change" && names.length > 1) {
      const by = new Map(kept.map((sentence) => [sentence, Math.abs(change(model, sentence))])),
        size = (one) => (isNumber(by.get(one)) ? by.get(one) : -1);
      kept = kept.slice().sort((a, b) => size(b) - size(a));
    }
    if (!kept.some((sentence) => sentence.number === state.number)) state.number = kept.length ? kept[0].number : null;
    found.textContent = `${count(kept.length, "sentence")}${shown.text.trim() ? " found" : ""}`;
    list.replaceChildren(...kept.map((sentence) => {
      const numbers = names.map((name) => meanOf(model, sentence, shown.metric, name, shown.layer)).filter(isNumber)
        .map((value) => fmt(value, 3)).join(" \u2192 ");
      return h("li",
        { role: "option", id: `s${sentence.number}`, "data-number": sentence.number,
          "aria-selected": String(sentence.number === state.number), onclick: () => pickSentence(sentence.number) },
        h("div", { dir: "auto" }, shorten(textOf(sentence), 160)),
          h("small", {}, `no. ${sentence.number + 1}${numbers ? ` \u00b7 ${numbers}` : ""}`));
    }));
    drawDetail(model);
  }
  function drawDetail(model) {
    const sentence = model.sample.sentences.find((one) => one.number === state.number);
    if (!sentence) { detail.replaceChildren(h("p", { class: "note" }, "No sentence holds these words.")); return; }
    const view = viewOf(model, sentence, sides(), shown.metric, shown.layer);
    if (!view.records.includes(shown.record)) shown.record = recordsUnder(view, view.names[0]).pop() ?? view.records[0];
    drawSentence(detail, view, shown.record, (record) => {
      shown.record = record;
      drawDetail(model);
      showChosen(detail);
    });
  }
  return function draw(model) {
    folder.hidden = !model.sample;
    if (!model.sample) return;
    const metrics = Object.keys(model.sample.metrics), num = model.sample.sentences.length,
      others = data.conditions.slice(1);
    if (!metrics.includes(shown.metric)) shown.metric = metrics.includes("entropy") ? "entropy" : metrics[0];
    if (shown.layer === null || shown.layer > model.num_blocks) shown.layer = model.num_blocks;
    if (others.length && !shown.other) shown.other = (acting(model).length ? strongest(acting(model)) : others[0]).name;
    intro.textContent = num === model.num_sentences ? `All ${count(num, "sentence")} of ${model.key}, token by token.`
      : `A sample of ${count(num, "sentence")} of ${fmt(model.num_sentences)} of ${model.key}, drawn by the seed; all of them are in the CSV and Parquet files.`;
    const layerName = h("output", {}, layerText(shown.layer));
    controls.replaceChildren(
      choice("Colour by", metrics.map((name) => [name, withUnit(name)]), shown.metric,
        (value) => { shown.metric = value; drawList(model); }),
      h("label", {}, h("span", {}, "At ", layerName),
        h("input", { type: "range", id: "layer", min: 0, max: model.num_blocks, value: shown.layer,
            oninput: (event) =>
            { shown.layer = Number(event.target.value); layerName.textContent = layerText(shown.layer); drawList(model); } })),
      others.length
        ? choice(`Beside ${data.conditions[0].name}`, others.map((one) => [one.name, one.name]), shown.other,
        (value) => { shown.other = value; drawList(model); }) : "",
      others.length
        ? choice("Order", [["corpus", "as in the corpus"], ["change", "largest change first"]], shown.order,
        (value) => { shown.order = value; drawList(model); }) : "");
    drawList(model);
  };
}
