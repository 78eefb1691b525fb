/* Sentence by sentence: a list to search, tokens coloured by a metric, the lens grid, and how the answer emerges. */

function sentences(folder) {
  const shown = { metric: null, layer: null, other: null, number: null, record: null, text: "", order: "corpus" };
  const intro = h("p", {}), controls = h("div", { class: "controls" }), list = h("ul", { class: "list", role: "listbox", tabindex: 0, id: "sentences", "aria-label": "Sentences" });
  const found = h("p", { class: "note", "aria-live": "polite" }), detail = h("div", { id: "sentence" });
  const search = h("input", { type: "search", class: "search", id: "search", placeholder: "search the sentences", "aria-label": "Search the sentences", oninput: () => { shown.text = search.value; drawList(state.model); } });
  const left = h("div", {}, search, found, list);
  folder.append(intro, controls, h("div", { class: "sentences" }, left, detail));
  list.addEventListener("keydown", (event) => {
    const items = [...list.children], at = items.findIndex((item) => item.getAttribute("aria-selected") === "true");
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 }[event.key];
    if (to === undefined || !items.length) return;
    event.preventDefault();
    pick(Number(items[Math.max(0, Math.min(items.length - 1, to))].dataset.number));
  });
  function pick(number) {
    shown.number = number;
    shown.record = null;
    for (const item of list.children) {
      const isIt = Number(item.dataset.number) === number;
      item.setAttribute("aria-selected", String(isIt));
      if (isIt) {
        list.setAttribute("aria-activedescendant", item.id);
        const top = item.offsetTop - list.offsetTop;
        if (top < list.scrollTop || top + item.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top - 40;
      }
    }
    drawDetail(state.model);
  }
  function sides(model) {
    const first = data.conditions[0].name;
    return shown.other && shown.other !== first ? [first, shown.other] : [first];
  }
  function drawList(model) {
    const words = shown.text.toLowerCase().split(/\s+/).filter(Boolean), sample = model.sample, [one, two] = sides(model);
    const change = (sentence) => {
      const own = sample.metrics[shown.metric].conditions;
      if (!own.includes(two)) return NaN;
      return meanOf(model, sentence, shown.metric, two, shown.layer) - (own.includes(one) ? meanOf(model, sentence, shown.metric, one, shown.layer) : 0);
    };
    let kept = sample.sentences.filter((sentence) => { const text = textOf(sentence).toLowerCase(); return words.every((word) => text.includes(word)); });
    if (shown.order === "change" && two) {
      const by = new Map(kept.map((sentence) => [sentence, Math.abs(change(sentence))]));
      kept = kept.slice().sort((a, b) => (isNumber(by.get(b)) ? by.get(b) : -1) - (isNumber(by.get(a)) ? by.get(a) : -1));
    }
    if (!kept.some((sentence) => sentence.number === shown.number)) shown.number = kept.length ? kept[0].number : null;
    found.textContent = `${count(kept.length, "sentence")}${words.length ? " found" : ""}`;
    list.replaceChildren(...kept.map((sentence) => {
      const numbers = [one, two].filter(Boolean).map((name) => meanOf(model, sentence, shown.metric, name, shown.layer)).filter(isNumber).map((value) => fmt(value, 3)).join(" \u2192 ");
      return h("li", { role: "option", id: `s${sentence.number}`, "data-number": sentence.number, "aria-selected": String(sentence.number === shown.number), onclick: () => pick(sentence.number) },
        h("div", { dir: "auto" }, shorten(textOf(sentence), 160)), h("small", {}, `no. ${sentence.number + 1}${numbers ? ` \u00b7 ${numbers}` : ""}`));
    }));
    drawDetail(model);
  }
  function drawDetail(model) {
    const sentence = model.sample.sentences.find((one) => one.number === shown.number);
    if (!sentence) { detail.replaceChildren(h("p", { class: "note" }, "No sentence holds these words.")); return; }
    const records = recordsOf(sentence), names = sides(model), metric = shown.metric, layer = shown.layer;
    if (!records.includes(shown.record)) shown.record = records[records.length - 1];
    const isLog = about(metric).scale === "logarithmic", flat = (value) => (isLog ? Math.log(value) : value);
    const all = names.flatMap((name) => records.flatMap((record) => range(model.num_layers).map((at) => valueOf(model, metric, name, record, at)))).filter(isNumber);
    const low = Math.min(...all), high = Math.max(...all), bounded = about(metric).bounds[0] < 0;
    const words = new Map(sentence.pieces.filter(([text, token]) => token >= 0 && text).map(([text, token]) => [sentence.first + token, text]));
    const label = (record) => { const text = words.get(record) || model.sample.names[model.sample.tokens[record]]; return text ? seen(text) : `position ${model.sample.positions[record]}`; };
    const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
    const share = (value) => (bounded ? value / most : high > low ? (flat(value) - flat(low)) / (flat(high) - flat(low)) : 0.5);
    const choose = (record, side = -1) => () => {
      shown.record = record;
      drawDetail(model);
      for (const head of detail.querySelectorAll(".lens thead th.chosen")) {
        const holder = head.closest(".scroll");
        if (head.offsetLeft < holder.scrollLeft + 60 || head.offsetLeft + head.offsetWidth > holder.scrollLeft + holder.clientWidth) holder.scrollLeft = head.offsetLeft - holder.clientWidth / 2;
      }
      if (side >= 0) detail.querySelectorAll(".read")[side].focus();
    };
    const walk = (side) => (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], next = records[records.indexOf(shown.record) + (step || 0)];
      if (!step || next === undefined) return;
      event.preventDefault();
      choose(next, side)();
    };
    const atLayer = (record) => `${names.map((name) => `${name}: ${metricName(metric)} ${fmt(valueOf(model, metric, name, record, layer))}`).join("\n")}`;
    const column = (name, side) => {
      const read = h("div", { class: "read", dir: "auto", tabindex: 0, role: "group", onkeydown: walk(side), "aria-label": `Text, ${name}; the arrow keys choose a token` });
      for (const [text, token] of sentence.pieces) {
        if (token < 0) { read.append(text); continue; }
        const record = sentence.first + token, value = valueOf(model, metric, name, record, layer);
        const chip = h("span", { class: record === shown.record && records.length > 1 ? "token chosen" : "token", onclick: choose(record) }, text || "\u00b7");
        read.append(tipped(tint(chip, share(value), bounded), () => `${label(record)}\n${atLayer(record)}`));
      }
      const grid = h("table", { class: "lens" },
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Layer"), records.map((record) => h("th", { scope: "col", class: record === shown.record && records.length > 1 ? "chosen" : null, title: `position ${model.sample.positions[record]}` }, bdi(label(record)))))),
        h("tbody", {}, range(model.num_layers).reverse().map((at) => h("tr", {}, h("th", { scope: "row", class: at === layer ? "chosen" : null }, at ? String(at) : "emb."), records.map((record) => {
          const best = trackedAt(model, name, record, at).reduce((a, b) => (b.probability > a.probability ? b : a)), value = valueOf(model, metric, name, record, at);
          const cell = h("td", { onclick: choose(record) }, bdi(seen(best.token)), " ", probability(best.probability), h("small", {}, fmt(value, 3)));
          return tipped(tint(cell, share(value), bounded), () => [`${at ? `Layer ${at}` : "Embeddings"}, token ${label(record)}`, `${metricName(metric)}: ${fmt(value)}`,
            ...trackedAt(model, name, record, at).map((own) => `${seen(own.token)} ${probability(own.probability)}`)].join("\n"));
        })))));
      return h("div", {}, h("h3", {}, bdi(name)), read, h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Lens, ${name}` }, grid));
    };
    const record = shown.record, charts = names.map((name) => [name, h("div", {})]);
    const shownMetrics = Object.keys(model.sample.metrics), isSame = detail.dataset.number === String(sentence.number);
    const places = isSame ? [...detail.querySelectorAll(".panels .scroll, .read")].map((one) => [one.scrollLeft, one.scrollTop]) : [];
    const isOpen = detail.querySelector("details[open]") !== null;
    detail.dataset.number = sentence.number;
    detail.replaceChildren(
      h("p", { class: "note" }, `${metricName(metric)}: `, h("span", { class: bounded ? "scale both" : "scale" }), bounded ? ` ${fmt(-most, 3)} to ${fmt(most, 3)}` : ` ${fmt(Math.abs(low) < 1e-4 * high ? 0 : low, 3)} to ${fmt(high, 3)}`, about(metric).unit ? ` ${about(metric).unit}` : "",
        ". Text: at the layer chosen above. Grid: of the tokens that the last layer ranks highest, the most probable at each layer, with its probability, and the metric.",
        sentence.left ? ` The first ${count(records.length, "position")} are shown; ${fmt(sentence.left)} more are in the Parquet file.` : ""),
      h("div", { class: "panels" }, names.map(column)),
      h("h3", {}, "How the answer emerges at ", bdi(label(record))),
      h("div", { class: "panels" }, charts.map(([name, holder]) => h("figure", {}, h("figcaption", {}, bdi(name), `: target `, bdi(seen(model.sample.names[model.sample.conditions[name].targets[record]]))), holder,
        h("div", { class: "keys" }, trackedAt(model, name, record, model.num_blocks).map((own, place) => h("span", {}, swatch(trackLook(place)), " ", bdi(seen(own.token)), ` ${probability(own.probability)}`)))))),
      h("details", { open: isOpen }, h("summary", {}, "All metrics of this token"), h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { class: "text", scope: "col" }, `At layer ${layer}`), names.map((name) => h("th", { scope: "col" }, bdi(name))), names.length > 1 ? h("th", { scope: "col" }, "difference") : null)),
        h("tbody", {}, shownMetrics.map((one) => { const values = names.map((name) => valueOf(model, one, name, record, layer)); return h("tr", {}, h("th", { class: "text", scope: "row" }, withUnit(one)), values.map((value) => h("td", {}, fmt(value))), names.length > 1 ? h("td", {}, signed(values[1] - values[0])) : null); }))))));
    [...detail.querySelectorAll(".panels .scroll, .read")].forEach((one, place) => { if (places[place]) [one.scrollLeft, one.scrollTop] = places[place]; });
    charts.forEach(([name, holder]) => {
      const tracked = range(model.num_layers).map((at) => trackedAt(model, name, record, at));
      lineChart(holder, { label: `Probability of tracked tokens over depth, ${name}`, xs: range(model.num_layers), xName: "Layer", xText: (tick) => (tick ? String(tick) : "emb."), xLong: (index) => (index ? `Layer ${index}` : "Embeddings"), yName: "Probability", withZero: true, height: 220, yText: probability, isBare: true,
        series: tracked[0].map((own, place) => ({ name: seen(own.token), look: trackLook(place), values: tracked.map((at) => at[place].probability) })) });
    });
  }
  return function draw(model) {
    folder.hidden = !model.sample;
    if (!model.sample) return;
    const metrics = Object.keys(model.sample.metrics), num = model.sample.sentences.length, others = data.conditions.slice(1);
    if (!metrics.includes(shown.metric)) shown.metric = metrics.includes("entropy") ? "entropy" : metrics[0];
    if (shown.layer === null || shown.layer > model.num_blocks) shown.layer = model.num_blocks;
    if (others.length && !shown.other) shown.other = (acting(model).length ? strongest(acting(model)) : others[0]).name;
    intro.textContent = num === model.num_sentences ? `All ${count(num, "sentence")} of ${model.key}, token by token.`
      : `A sample of ${count(num, "sentence")} of ${fmt(model.num_sentences)} of ${model.key}, drawn by the seed; all of them are in the CSV and Parquet files.`;
    const layerName = h("output", {}, shown.layer ? String(shown.layer) : "embeddings");
    controls.replaceChildren(
      choice("Colour by", metrics.map((name) => [name, withUnit(name)]), shown.metric, (value) => { shown.metric = value; drawList(model); }),
      h("label", {}, h("span", {}, "At layer ", layerName), h("input", { type: "range", id: "layer", min: 0, max: model.num_blocks, value: shown.layer, oninput: (event) => { shown.layer = Number(event.target.value); layerName.textContent = shown.layer ? String(shown.layer) : "embeddings"; drawList(model); } })),
      others.length ? choice(`Beside ${data.conditions[0].name}`, others.map((one) => [one.name, one.name]), shown.other, (value) => { shown.other = value; drawList(model); }) : "",
      others.length ? choice("Order", [["corpus", "as in the corpus"], ["change", "largest change first"]], shown.order, (value) => { shown.order = value; drawList(model); }) : "");
    drawList(model);
  };
}
