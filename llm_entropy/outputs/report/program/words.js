/* The words of a sentence: what each costs, summed over its tokens, at any layer. */

const WORD_METRICS = {
  surprisal: ["Surprisal", "how unexpected the word is: \u2212ln of the probability of all its tokens, in nats."],
  corrected_surprisal: ["Corrected surprisal",
    "surprisal with the end of the word paid for here, and not at the next word (Pimentel and Meister 2024), in nats."],
  entropy_before: ["Entropy before",
    "how uncertain the model was before the word: the entropy of what its first token could have been, in nats."],
};
const hasWords = (model) => Boolean(model.sample && model.sample.words);

function wordValue(model, metric, condition, word, layer) {
  const all = model.sample.words, own = all.metrics[metric], place = own ? own.conditions.indexOf(condition) : -1;
  return place < 0 ? NaN : unpack(own)[(place * all.num_tokens.length + word) * model.num_layers + layer];
}

function words(folder) {
  const shown = { metric: "surprisal", layer: null, other: null };
  const controls = h("div", { class: "controls" }), meaning = h("p", { class: "note" }),
    texts = h("div", { class: "panels" });
  const table = scroller("The words of the sentence");
  folder.append(h("p", {},
      "What each word costs the model, summed over its tokens. Choose a sentence here or in the section above."),
    controls, meaning, texts, table);
  function drawControls(model) {
    const own = model.sample, others = data.conditions.slice(1),
      metrics = Object.keys(WORD_METRICS).filter((name) => own.words.metrics[name]);
    if (!metrics.includes(shown.metric)) shown.metric = metrics[0];
    const at = Math.max(0, own.sentences.findIndex((one) => one.number === state.number)),
      layerName = h("output", {}, layerText(shown.layer));
    const go = (place) => pickSentence(own.sentences[(place + own.sentences.length) % own.sentences.length].number);
    controls.replaceChildren(
      choice("Sentence",
        own.sentences.map((one) => [String(one.number), `${one.number + 1}: ${shorten(textOf(one), 60)}`]),
        String(own.sentences[at].number), (value) => pickSentence(Number(value))),
      h("button", { type: "button", "aria-label": "Sentence before", onclick: () => go(at - 1) }, "\u2190"),
        h("button", { type: "button", "aria-label": "Next sentence", onclick: () => go(at + 1) }, "\u2192"),
      metrics.length
        ? choice("Colour by", metrics.map((name) => [name, WORD_METRICS[name][0]]), shown.metric,
        (value) => { shown.metric = value; drawWords(model); }) : "",
      h("label", {}, h("span", {}, "At ", layerName),
        h("input", { type: "range", id: "word-layer", min: 0, max: model.num_blocks, value: shown.layer,
            oninput: (event) =>
            { shown.layer = Number(event.target.value); layerName.textContent = layerText(shown.layer); drawWords(model); } })),
      others.length
        ? choice(`Beside ${data.conditions[0].name}`, others.map((one) => [one.name, one.name]), shown.other,
        (value) => { shown.other = value; drawWords(model); }) : "");
  }
  function drawWords(model) {
    const own = model.sample, at = Math.max(0, own.sentences.findIndex((one) => one.number === state.number));
    const { first, pieces } = own.words.sentences[at], names = [data.conditions[0].name, shown.other].filter(Boolean);
    const found = pieces.filter(([, word]) => word >= 0), metric = shown.metric,
      metrics = Object.keys(WORD_METRICS).filter((name) => own.words.metrics[name]);
    const all = names.flatMap((name) =>
      found.map(([, word]) => wordValue(model, metric, name, first + word, shown.layer))).filter(isNumber);
    const most = Math.max(...all, 1e-9), low = Math.min(0, ...all);
    const share = (value) => (value - low) / (most - low);
    meaning.replaceChildren(`${WORD_METRICS[metric][0]}: ${WORD_METRICS[metric][1]} `, h("span", { class: "scale" }),
      ` ${fmt(low, 3)} to ${fmt(most, 3)} nats.${all.length < names.length * found.length ? " A word without a number has nothing before it that could predict it." : ""}`);
    texts.replaceChildren(...names.map((name) =>
        h("div", {}, h("h3", {}, bdi(name)),
          roving(h("div",
              { class: "read", dir: "auto", role: "group",
                "aria-label": `Words, ${name}; the arrow keys go from word to word` },
      pieces.map(([text, word]) =>
        (word < 0 ? text
          : tipped(tint(h("span", { class: "word" }, text),
              share(wordValue(model, metric, name, first + word, shown.layer))),
        () => `${text}\n${name}, ${layerText(shown.layer)}\n${metrics.map((one) => `${WORD_METRICS[one][0]} ${fmt(wordValue(model, one, name, first + word, shown.layer))} nats`).join("\n")}`)))), ".word"))));
    const heads = names.flatMap((name) => metrics.map((one) => `${name}: ${WORD_METRICS[one][0].toLowerCase()}`));
    const number = (name, word, one) => wordValue(model, one, name, first + word, shown.layer);
    const caption = `At ${layerText(shown.layer)}, in nats${names.length > 1 ? `; difference: ${names[1]} \u2212 ${names[0]} in ${WORD_METRICS[metric][0].toLowerCase()}` : ""}.`;
    const row = ([text, word]) => [bdi(shorten(text, 40)), String(own.words.num_tokens[first + word]),
      ...names.flatMap((name) => metrics.map((one) => fmt(number(name, word, one)))),
      ...(names.length > 1 ? [signed(number(names[1], word, metric) - number(names[0], word, metric))] : [])];
    table.replaceChildren(tableOf(["word", "tokens", ...heads, ...(names.length > 1 ? ["difference"] : [])],
        found.map(row), { caption, id: "word-table", kind: "wrapped" }));
  }
  function draw(model) {
    folder.hidden = !hasWords(model);
    if (folder.hidden) return;
    const others = data.conditions.slice(1);
    if (shown.layer === null || shown.layer > model.num_blocks) shown.layer = model.num_blocks;
    if (others.length && !shown.other) shown.other = (acting(model).length ? strongest(acting(model)) : others[0]).name;
    drawControls(model);
    drawWords(model);
  }
  state.picked.push(() => draw(state.model));
  return draw;
}
