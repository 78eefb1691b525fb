/* What ran, why to trust it, and the files beside the page. */

function head() {
  const run = data.run, num = data.models[0].num_sentences;
  const others = steered().length, placebos = data.placebos.reduce((sum, one) => sum + one.count, 0);
  const what = STANDARD && others ? "What language models believe at every layer, and what steering changes"
    : others ? "What steered language models believe at every layer" : "What language models believe at every layer";
  const ran = [count(data.models.length, "model"), count(num, "sentence"),
    count(data.conditions.length, "condition") + (placebos ? ` and ${count(placebos, "placebo")}` : "")];
  document.getElementById("top").append(
    h("p", { class: "soft" }, "llm_entropy report"), h("h1", {}, what),
    h("p", { class: "soft wide" }, bdi(`Run ${run.name}`), ` \u00b7 ${ran.join(" \u00b7 ")} \u00b7 `,
      bdi(run.corpus.source), ` \u00b7 ${run.started.slice(0, 10).replaceAll("-", "\u2011")}`),
    h("p", { class: "intro" }, sayWhatWasDone(num)));
}

/* For somebody who has never heard of the program. */
function sayWhatWasDone(num) {
  const placebos = data.placebos.length
    ? " Placebos, vectors of the same size that point anywhere, were added for comparison." : "";
  const kinds = new Set(data.models.map((model) => model.kind)),
    token = kinds.size > 1 ? "the next token, or at one that is masked" : kinds.has("masked") ? "a token that is masked"
    : "the next token";
  return `A language model turns a text into a guess at ${token}, layer by layer. In this run ${data.models.length > 1 ? "each of the models" : "the model"} read ${count(num, "sentence")}, and its guess was read at every layer: how uncertain it is, and what it expects.`
    + (STANDARD && steered().length
      ? ` Then it read the same sentences again while a vector was added to its inner state (\u201csteering\u201d), and the two were compared.${placebos}` : steered().length ? " While it read, a vector was added to its inner state (\u201csteering\u201d)." : "")
    + " The glossary below explains the words.";
}

function whatRan(folder) {
  const run = data.run, corpus = run.corpus;
  const pairs = (own) =>
    h("dl", {}, own.filter(([, value]) => value !== null && value !== undefined && value !== "").map(
    ([name, value]) => [h("dt", {}, name), h("dd", {}, bdi(String(value)))]));
  const lens = { logit: "logit lens: the model's own final norm and head at every layer",
    raw: "raw lens: the head alone, without the final norm",
    tuned: "tuned lens: a trained affine map, then final norm and head" };
  folder.append(
    h("p", {}, "Every layer of each model was read through a lens that turns it into a distribution over the vocabulary. "
      + "The metrics describe these distributions: how uncertain they are (entropy), how far from the final one, where the answer appears."),
    h("div", { class: "cards" },
      data.models.map((model) => h("div", { class: "card" }, h("h3", {}, bdi(model.key)), pairs([
        ["model", model.name],
          ["kind", model.kind === "causal" ? "causal: predicts the next token" : "masked: fills in [MASK]"],
        ["size", `${model.num_blocks} blocks, ${model.heads ? "up to " : ""}${model.num_heads} heads, width ${model.hidden_size}`],
        ["vocabulary", `${fmt(model.vocab_size)} tokens, ln V = ${fmt(Math.log(model.vocab_size))} nats`],
        ["weights", model.dtype], ["revision", model.revision],
        ["read", `${count(model.num_sentences, "sentence")}, ${count(model.num_records, "position")}`]]))),
      h("div", { class: "card" }, h("h3", {}, "Corpus"), pairs([
        ["source", corpus.source], ["sentences", `${fmt(corpus.num_sentences)} of ${fmt(corpus.num_rows)} rows`],
        ["without text", corpus.num_skipped], ["seed", run.seed], ["fingerprint", corpus.fingerprint],
        ["causal models",
          `read at ${({ all: "every token", generated: "every token that they write" })[run.positions] || "the last token"}`],
        ["masked models", `mask: ${run.mask_strategy}`], ["lens", lens[run.lens]],
        ["temperature", run.temperature], ["target", run.use_sampling ? "sampled" : null]])),
      h("div", { class: "card" }, h("h3", {}, "Conditions"), pairs([
        ...data.conditions.map((one) => [one.name, one.role === "standard" ? "the model as it is"
          : `vector ${one.vector}, strength ${fmt(one.strength)}, ${one.operator}`]),
        ...data.placebos.map((one) =>
          [`${one.kind} placebos`,
            `${one.count} of ${one.vector}, strength ${fmt(one.strength)}: vectors of the same size without its meaning`])])),
      h("div", { class: "card" }, h("h3", {}, "Program"), pairs([
        ...Object.entries(run.versions), ["commit", run.git_commit ? run.git_commit.slice(0, 12) : null],
        ["precision", run.precision], ["device", run.machine.device], ["system", run.machine.platform]]))),
    h("h3", {}, "Run it again"));
  const command = run.command, shownCommand = h("pre", { tabindex: 0 }, command);
  const copy = h("button", { type: "button", onclick: () => {
    const fail = () => { getSelection().selectAllChildren(shownCommand); copy.textContent = "Selected: press Ctrl+C"; };
    if (navigator.clipboard) navigator.clipboard.writeText(command).then(() => { copy.textContent = "Copied"; }, fail);
    else fail(); // as in the frame of a notebook
  } }, "Copy");
  folder.append(h("p", { class: "note" }, "In the folder in which the run was started:"),
    h("div", { class: "command" }, shownCommand, copy));
  if (run.config) folder.append(h("details", {}, h("summary", {}, "The whole configuration"),
      h("pre", { tabindex: 0 }, run.config)));
  return () => {};
}

/* What was held against the model's own numbers when it was loaded. */
function proofLines(model) {
  const allowed = (error, most, unit) =>
    `largest error ${fmt(error, 2)} ${unit}${isNumber(most) ? `, ${fmt(most, 2)} allowed` : ""}. `;
  const attention = model.attention === "eager"
    ? "read from the model's own full attention maps, so that there is nothing to compare."
    : model.attention !== "sdpa_and_entropy" ? "no attention entropy was measured."
      : `${isNumber(model.attention_error_nats) ? allowed(model.attention_error_nats, model.attention_allowed_nats, "nats") : ""}Attention entropies are computed beside fused attention; at load they were compared with those of the model's own full attention maps. A model that differs is refused.`;
  return [
    ["Lens", `${allowed(model.lens_error_logits, model.lens_allowed_logits, "logits")}At load, the last layer read through the lens gave the model's own logits. A model whose logits cannot be reproduced is refused.`],
    ["Attention", attention],
    ["Steering", "At load, what is added behind each block showed at the next layer and at none before it. It is undone after every pass, and all conditions run on the same batches."],
    ["Padding", "At load, a padded batch gave every layer what its sentences give one by one."],
  ];
}

/* From the rows of the corpus to the records: what was read, and what was left out. */
function countRows() {
  const corpus = data.run.corpus,
    line = (name, get) =>
    [name, ...data.models.map((model) =>
      { const value = get(model); return isNumber(value) ? value.toLocaleString("en-US") : BLANK; })];
  return [
    line("Rows in the corpus", () => corpus.num_rows),
    line("\u2026 without text, skipped", () => corpus.num_skipped),
    line("Sentences to be read", () => corpus.num_sentences),
    line("\u2026 without a token to read", (model) => model.num_unread),
    line("Sentences read, once each", (model) => model.num_sentences),
    line("\u2026 cut at the longest text that is read", (model) => model.num_cut),
    line("Positions read (records), once each", (model) => model.num_records),
    line("Files they were checked in", (model) => model.num_parts),
  ];
}

function proofs(folder) {
  const heads = ["", ...data.models.map((model) => model.key)];
  folder.append(h("div", { class: "cards" },
      data.models.map((model) => h("div", { class: "card" }, h("h3", {}, bdi(model.key)),
    h("ul", {}, proofLines(model).map(([name, text]) => h("li", {}, h("strong", {}, `${name}: `), text)))))),
    h("h3", {}, "Every sentence exactly once"),
    h("p", {}, "Each file carries a checksum. The merge counts every record by sentence and position, and refuses a run in which one is missing or there twice."),
    scroller("Counts of sentences and records", tableOf(heads, countRows(), { id: "counts" })));
  return () => {};
}

function fileList(folder) {
  const groups = new Map([["run", []]]);
  for (const path of data.files) {
    const parent = path.includes("/") ? path.slice(0, path.lastIndexOf("/")) : "run";
    groups.set(parent, [...(groups.get(parent) || []), path]);
  }
  folder.append(h("p", {},
      "These lie beside this page, in the folder of the run; the links work where the page was not moved away from it."));
  for (const [parent, paths] of groups) {
    if (!paths.length) continue;
    folder.append(h("details", { open: parent === "run" },
        h("summary", {}, parent === "run" ? "The run" : parent, ` (${paths.length})`),
      h("ul", { class: "files" },
        paths.map((path) =>
          h("li", {}, h("a", { href: path.split("/").map(encodeURIComponent).join("/"), rel: "noreferrer" },
              path.slice(path.lastIndexOf("/") + 1)))))));
  }
  return () => {};
}
