
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const state = { model: data.models[0] };
  const STANDARD = data.conditions.find((one) => one.role === "standard");
  const BLANK = "\u2013", MINUS = "\u2212", SIGNIFICANT = 0.05, MOST_ROWS = 400;

  /* ---- elements: text goes in as text, never as markup ---- */

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name === "paint") Object.assign(element.style, value);
      else element.setAttribute(name, value === true ? "" : String(value));
    }
    element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  }
  const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const s = (tag, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  const bdi = (text) => h("bdi", {}, text);

  function choice(label, options, value, change) {
    const box = h("select", { onchange: () => change(box.value) });
    for (const [name, text] of options) box.append(h("option", { value: name }, text));
    box.value = value;
    return h("label", {}, label, box);
  }

  /* ---- numbers ---- */

  const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
  const real = (value) => (value === "inf" ? Infinity : value === "-inf" ? -Infinity : value);
  const dash = (text) => text.replace("-", MINUS);

  function fmt(value, digits = 4) {
    value = real(value);
    if (value === null || value === undefined || Number.isNaN(value)) return BLANK;
    if (!Number.isFinite(value)) return value > 0 ? "\u221e" : MINUS + "\u221e";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6 || size < 1e-4) return dash(value.toExponential(1).replace("e+", "e"));
    if (size >= 1000) return dash(Math.round(value).toLocaleString("en-US"));
    return dash(String(Number(value.toPrecision(digits))));
  }
  const signed = (value, digits = 3) => (real(value) > 0 ? "+" : "") + fmt(value, digits);
  const interval = (low, high) => (isNumber(low) && isNumber(high) ? `${signed(low)} to ${signed(high)}` : BLANK);
  const pvalue = (p) => (!isNumber(p) ? "not tested" : p < 0.001 ? "<\u00a00.001" : p.toFixed(3));
  const percent = (value) => (isNumber(value) ? `${Math.round(100 * value)} %` : BLANK);
  const count = (number, what) => `${number.toLocaleString("en-US")} ${what}${number === 1 ? "" : "s"}`;
  function probability(value) {
    if (!isNumber(value)) return BLANK;
    return value >= 0.9995 ? "100 %" : value < 0.00001 ? "< 0.001 %" : `${Number((100 * value).toPrecision(value < 0.1 ? 2 : 3))} %`;
  }

  /* ---- what the data says ---- */

  const about = (metric) => data.metrics[metric];
  const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
  const metricName = (metric) => capital(about(metric).label);
  const withUnit = (metric) => metricName(metric) + (about(metric).unit ? ` (${about(metric).unit})` : "");
  const numPoints = (model, metric) => ({ layer: model.num_layers, block: model.num_blocks, text: 1 })[about(metric).axis];
  const isOfText = (metric) => about(metric).axis === "text";
  const pointName = (metric, index) =>
    isOfText(metric) ? "the whole text" : about(metric).axis === "block" ? `block ${index}` : index === 0 ? "layer 0 (embeddings)" : `layer ${index}`;
  const atPoint = (metric, index) => (isOfText(metric) ? "" : ` at ${pointName(metric, index)}`);
  const steered = () => data.conditions.filter((one) => one.role !== "standard");
  const compared = (model) => steered().filter((one) => model.summary[one.name]);
  const acting = (model) => compared(model).filter((one) => one.strength !== 0);
  const column = (model, condition, metric, name) =>
    ((model.summary[condition] || {})[metric] || {})[name] || [];
  const placebosOf = (model, condition, metric) =>
    ((model.placebos[condition.vector] || {})[metric] || []);
  const aboutPlacebos = (condition) => data.placebos.filter((one) => one.vector === condition.vector);
  const strongest = (own) => own.reduce((best, one) =>
    Math.abs(one.strength) > Math.abs(best.strength) || (one.strength === -best.strength && one.strength > 0) ? one : best);
  const vectors = (model) => [...new Set(compared(model).map((one) => one.vector))];
  function larger(model, condition, metric, layer) {
    const total = placebosOf(model, condition, metric).length;
    const p = column(model, condition.name, metric, "placebo_p")[layer];
    return total && isNumber(p) ? { total, number: Math.round(p * (1 + total)) - 1 } : null;
  }
  function beside(model, condition, metric, layer) {
    const found = larger(model, condition, metric, layer);
    if (!found) return BLANK;
    return found.number === 0 ? `beyond all ${found.total}` : `within (${found.number} of ${found.total})`;
  }
  function largest(model, condition, metric) {
    const sizes = column(model, condition, metric, "effect_size").map(real);
    const tested = column(model, condition, metric, "p_holm");
    let best = -1;
    sizes.forEach((size, layer) => {
      if (isNumber(size) && isNumber(tested[layer]) && (best < 0 || Math.abs(size) > Math.abs(sizes[best]))) best = layer;
    });
    return best;
  }
  const styleOf = (name) => {
    const index = Math.max(0, data.conditions.findIndex((one) => one.name === name));
    return { stroke: `var(--c${index % 8})`, dash: ["", "8 4", "2 3", "10 3 2 3"][index % 4] };
  };
  const trackLook = (place) => ({ stroke: `var(--c${(place + 1) % 8})`, dash: ["", "8 4", "2 3", "10 3 2 3"][place % 4] });
  const swatch = (look) => s("svg", { class: "swatch", viewBox: "0 0 28 10", "aria-hidden": "true" },
    s("line", { x1: 0, x2: 28, y1: 5, y2: 5, "stroke-width": 2.5, paint: { stroke: look.stroke }, "stroke-dasharray": look.dash }));

  /* ---- the tip: shown to eyes, read out to ears ---- */

  const tip = document.getElementById("tip");
  function showTip(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 6))}px`;
    tip.style.top = `${y + box.height + 22 > innerHeight ? Math.max(4, y - box.height - 12) : y + 14}px`;
  }
  const hideTip = () => { tip.hidden = true; };
  function tipped(element, text) {
    element.addEventListener("pointerenter", (event) => showTip(text(), event.clientX, event.clientY));
    element.addEventListener("pointerleave", hideTip);
    return element;
  }
  addEventListener("scroll", hideTip, { passive: true });
  addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

  /* ---- charts ---- */

  function ticks(low, high, most) {
    const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= raw * 0.999);
    const found = [];
    for (let tick = Math.ceil(low / step - 1e-9); tick * step <= high + step * 1e-9; tick++) found.push(tick * step);
    return found;
  }
  function decades(low, high) {
    const found = [], first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
    const step = Math.max(1, Math.ceil((last - first) / 6));
    for (let power = first; power <= last; power++) {
      for (const one of last - first <= 1 ? [1, 2, 5] : [1]) {
        const tick = one * 10 ** power;
        if ((power - first) % step === 0 && tick >= low && tick <= high) found.push(tick);
      }
    }
    return found;
  }
  function scaleOf(values, isLog, withZero) {
    let own = values.filter((value) => isNumber(value) && (!isLog || value > 0));
    if (!own.length) own = isLog ? [1, 10] : [0, 1];
    let low = Math.min(...own), high = Math.max(...own);
    if (isLog) {
      if (high / low < 1.2) { low /= 1.2; high *= 1.2; }
      const a = Math.log(low), b = Math.log(high);
      return { low, high, ticks: decades(low * 0.95, high * 1.05), at: (value) => (Math.log(value) - a) / (b - a) };
    }
    if (withZero) { low = Math.min(low, 0); high = Math.max(high, 0); }
    if (high - low < 1e-4 * Math.max(Math.abs(high), 1e-3)) {
      const half = Math.max(Math.abs(high) * 0.05, 0.05);
      low -= half; high += half;
    }
    const room = (high - low) * 0.05;
    if (low !== 0 || withZero) low -= low === 0 ? 0 : room;
    if (high !== 0) high += room;
    return { low, high, ticks: ticks(low, high, 5), at: (value) => (value - low) / (high - low) };
  }

  /* Lines over numbers or layers. about: label (of the chart), xs, xName, xTicks, yName, isLog, withZero, height,
     series: [{name, look, values, low, high, points, isBand}]; a band alone is drawn behind everything. */
  function lineChart(holder, chart) {
    const width = Math.max(300, Math.min(holder.clientWidth || 700, 1180)), height = chart.height || 330;
    const isNamed = chart.series.filter((one) => !one.isBand).length <= 9 && width > 520 && !chart.isBare;
    const names = chart.series.map((one) => one.name.length);
    const right = isNamed ? Math.min(150, 14 + 7 * Math.max(...names)) : 12, left = 58, top = 12, bottom = 44;
    const all = chart.series.flatMap((one) => [one.values, one.low, one.high, ...(one.points || [])].flat());
    const scale = scaleOf(all, chart.isLog, chart.withZero);
    const [first, last] = [Math.min(...chart.xs), Math.max(...chart.xs)];
    const x = (value) => left + (last === first ? 0.5 : (value - first) / (last - first)) * (width - left - right);
    const y = (value) => height - bottom - scale.at(value) * (height - top - bottom);
    const fits = (value) => isNumber(value) && (!chart.isLog || value > 0);
    const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": chart.label });
    if (chart.shadeTo > 0) {
      svg.append(s("rect", { class: "placebo", x: left, y: top, width: Math.max(0, x(chart.shadeTo - 0.5) - left), height: height - top - bottom }));
    }
    for (const tick of scale.ticks) {
      svg.append(s("line", { class: tick === 0 && !chart.isLog ? "zero" : "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
        s("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, fmt(tick)));
    }
    const room = Math.max(1, Math.floor((width - left - right) / 34));
    const xTicks = chart.xTicks || chart.xs, step = Math.ceil(xTicks.length / room);
    xTicks.forEach((tick, index) => {
      if (index % step === 0) svg.append(s("text", { x: x(tick), y: height - bottom + 18, "text-anchor": "middle" }, chart.xText ? chart.xText(tick) : fmt(tick)));
    });
    svg.append(s("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, chart.xName),
      s("text", { x: -(height - bottom + top) / 2, y: 14, transform: "rotate(-90)", "text-anchor": "middle" }, chart.yName));
    const path = (values) => values.map((value, index) => (fits(value)
      ? `${index && fits(values[index - 1]) ? "L" : "M"}${x(chart.xs[index]).toFixed(1)},${y(value).toFixed(1)}` : "")).join("");
    for (const one of chart.series) {
      if (!one.low || chart.isWhiskers) continue;
      const kept = chart.xs.map((_, index) => index).filter((index) => fits(one.low[index]) && fits(one.high[index]));
      const there = kept.map((index) => `${x(chart.xs[index]).toFixed(1)},${y(one.high[index]).toFixed(1)}`);
      const back = kept.reverse().map((index) => `${x(chart.xs[index]).toFixed(1)},${y(one.low[index]).toFixed(1)}`);
      if (there.length) {
        svg.append(s("polygon", { points: [...there, ...back].join(" "), class: one.isBand ? "placebo" : null,
          paint: one.isBand ? {} : { fill: one.look.stroke, fillOpacity: 0.13 } }));
      }
    }
    for (const one of chart.series) {
      (one.points || []).forEach((own, index) => own.forEach((value) => fits(value) && svg.append(
        s("circle", { cx: x(chart.xs[index]) , cy: y(value), r: 3, paint: { fill: "var(--soft)", fillOpacity: 0.45 } }))));
      if (one.isBand || !one.values) continue;
      svg.append(s("path", { class: "curve", d: path(one.values), paint: { stroke: one.look.stroke }, "stroke-dasharray": one.look.dash }));
      one.values.forEach((value, index) => {
        if (!fits(value)) return;
        const [at, up] = [x(chart.xs[index]), y(value)];
        if (chart.isWhiskers && one.low && fits(one.low[index]) && fits(one.high[index])) {
          svg.append(s("line", { x1: at, x2: at, y1: y(one.low[index]), y2: y(one.high[index]), "stroke-width": 2, paint: { stroke: "var(--ink)" } }));
        }
        if (chart.xs.length <= 40) svg.append(s("circle", { cx: at, cy: up, r: 3, paint: { fill: one.look.stroke } }));
      });
    }
    if (isNamed) {
      const ends = chart.series.filter((one) => !one.isBand && one.values).map((one) => {
        const index = one.values.reduce((found, value, place) => (fits(value) ? place : found), -1);
        return index < 0 ? null : { one, x: x(chart.xs[index]), y: y(one.values[index]) };
      }).filter(Boolean).sort((a, b) => a.y - b.y);
      ends.forEach((end, index) => { if (index) end.y = Math.max(end.y, ends[index - 1].y + 13); });
      const over = ends.length ? ends[ends.length - 1].y - (height - bottom) : 0;
      for (const end of ends) {
        svg.append(s("text", { class: "name", x: end.x + 8, y: end.y + 4 - Math.max(0, over), paint: { fill: end.one.look.stroke } }, shorten(end.one.name, 20)));
      }
    }
    const cursor = s("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
    svg.append(cursor);
    let here = -1;
    function point(index, clientX, clientY) {
      here = index;
      const at = x(chart.xs[index]);
      cursor.setAttribute("x1", at);
      cursor.setAttribute("x2", at);
      cursor.setAttribute("visibility", "visible");
      const lines = chart.series.filter((one) => !one.isBand && one.values && isNumber(one.values[index])).map((one) =>
        `${one.name}: ${(chart.yText || fmt)(one.values[index])}${one.low && isNumber(one.low[index]) && chart.lowName ? ` (${chart.lowName} ${fmt(one.low[index], 3)} to ${fmt(one.high[index], 3)})` : ""}`);
      const band = chart.series.filter((one) => one.isBand && isNumber(one.low[index])).map((one) => `${one.name}: ${fmt(one.low[index], 3)} to ${fmt(one.high[index], 3)}`);
      showTip([chart.xLong ? chart.xLong(index) : `${chart.xName} ${fmt(chart.xs[index])}`, ...lines, ...band].join("\n"), clientX, clientY);
    }
    function leave() { cursor.setAttribute("visibility", "hidden"); hideTip(); }
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * width;
      const nearest = chart.xs.reduce((best, value, index) => (Math.abs(x(value) - at) < Math.abs(x(chart.xs[best]) - at) ? index : best), 0);
      point(nearest, event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: -1 };
      if (!(event.key in steps)) return;
      event.preventDefault();
      const next = Math.max(0, Math.min(chart.xs.length - 1, here < 0 ? 0 : here + steps[event.key]));
      const box = svg.getBoundingClientRect();
      point(next, box.left + (x(chart.xs[next]) / width) * box.width, box.top + 20);
    });
    holder.replaceChildren(svg);
  }
  const shorten = (text, most) => ([...text].length > most ? [...text].slice(0, most - 1).join("") + "\u2026" : text);
  const range = (number) => [...Array(number).keys()];
  const xTickName = (metric) => (tick) => (tick === 0 && about(metric).axis === "layer" ? "emb." : String(tick));

  function numbersTable(caption, heads, rows) {
    return h("details", {}, h("summary", {}, "The numbers as a table"), h("div", { class: "scroll" },
      h("table", {}, h("caption", { class: "note" }, caption),
        h("thead", {}, h("tr", {}, heads.map((head, index) => h("th", { scope: "col", class: index ? null : "text" }, head)))),
        h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, index) => h(index ? "td" : "th", { class: index ? null : "text", scope: index ? null : "row" }, cell))))))));
  }

  /* ---- sections: each is given its folder on the page, and returns what draws it anew for a model ---- */

  function head() {
    const run = data.run, num = data.models[0].num_sentences;
    const others = steered().length, placebos = data.placebos.reduce((sum, one) => sum + one.count, 0);
    const what = STANDARD && others ? "What language models believe at every layer, and what steering changes"
      : others ? "What steered language models believe at every layer" : "What language models believe at every layer";
    const ran = [count(data.models.length, "model"), count(num, "sentence"),
      count(data.conditions.length, "condition") + (placebos ? ` and ${count(placebos, "placebo")}` : "")];
    document.getElementById("top").append(
      h("p", { class: "soft" }, "llm_entropy report"), h("h1", {}, what),
      h("p", { class: "soft" }, bdi(`Run ${run.name}`), ` \u00b7 ${ran.join(" \u00b7 ")} \u00b7 `, bdi(run.corpus.source), ` \u00b7 ${run.started.slice(0, 10)}`));
  }

  function whatRan(folder) {
    const run = data.run, corpus = run.corpus;
    const pairs = (own) => h("dl", {}, own.filter(([, value]) => value !== null && value !== undefined && value !== "").map(
      ([name, value]) => [h("dt", {}, name), h("dd", {}, bdi(String(value)))]));
    const lens = { logit: "logit lens: the model's own final norm and head at every layer", raw: "raw lens: the head alone, without the final norm", tuned: "tuned lens: a trained affine map, then final norm and head" };
    folder.append(
      h("p", {}, "Every layer of each model was read through a lens that turns it into a distribution over the vocabulary. "
        + "The metrics below describe these distributions: how uncertain they are (entropy), how far from the final one, where the answer appears."),
      h("div", { class: "cards" },
        data.models.map((model) => h("div", { class: "card" }, h("h3", {}, bdi(model.key)), pairs([
          ["model", model.name], ["kind", model.kind === "causal" ? "causal: predicts the next token" : "masked: fills in [MASK]"],
          ["size", `${model.num_blocks} blocks, ${model.num_heads} heads, width ${model.hidden_size}`],
          ["vocabulary", `${fmt(model.vocab_size)} tokens, ln V = ${fmt(Math.log(model.vocab_size))} nats`],
          ["weights", model.dtype], ["revision", model.revision],
          ["read", `${count(model.num_sentences, "sentence")}, ${count(model.num_records, "position")}`]]))),
        h("div", { class: "card" }, h("h3", {}, "Corpus"), pairs([
          ["source", corpus.source], ["sentences", `${fmt(corpus.num_sentences)} of ${fmt(corpus.num_rows)} rows`],
          ["without text", corpus.num_skipped], ["seed", run.seed], ["fingerprint", corpus.fingerprint],
          ["causal models", `read at ${({ all: "every token", generated: "every token that they write" })[run.positions] || "the last token"}`],
          ["masked models", `mask: ${run.mask_strategy}`], ["lens", lens[run.lens]],
          ["temperature", run.temperature], ["target", run.use_sampling ? "sampled" : null]])),
        h("div", { class: "card" }, h("h3", {}, "Conditions"), pairs([
          ...data.conditions.map((one) => [one.name, one.role === "standard" ? "the model as it is"
            : `vector ${one.vector}, strength ${fmt(one.strength)}, ${one.operator}`]),
          ...data.placebos.map((one) => [`${one.kind} placebos`, `${one.count} of ${one.vector}, strength ${fmt(one.strength)}: vectors of the same size without its meaning`])])),
        h("div", { class: "card" }, h("h3", {}, "Program"), pairs([
          ...Object.entries(run.versions), ["commit", run.git_commit ? run.git_commit.slice(0, 12) : null],
          ["precision", run.precision], ["device", run.machine.device], ["system", run.machine.platform]]))),
      h("h3", {}, "Run it again"));
    const command = run.command;
    const copy = h("button", { type: "button", onclick: () => {
      navigator.clipboard.writeText(command).then(() => { copy.textContent = "Copied"; }, () => { copy.textContent = "Select it, please"; });
    } }, "Copy");
    folder.append(h("p", { class: "note" }, "In the folder in which the run was started:"),
      h("div", { class: "command" }, h("pre", { tabindex: 0 }, command), copy));
    if (run.config) folder.append(h("details", {}, h("summary", {}, "The whole configuration"), h("pre", { tabindex: 0 }, run.config)));
    return () => {};
  }

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

  function curves(folder) {
    const shown = { metric: null, how: "means", isShare: false, off: new Set(steered().filter((one) => one.strength === 0).map((one) => one.name)) };
    const controls = h("div", { class: "controls" }), toggles = h("fieldset", {}), holder = h("div", { class: "chart" });
    const caption = h("figcaption", {}), numbers = h("div", {});
    folder.append(controls, toggles, h("figure", {}, caption, holder), numbers);
    return function draw(model) {
      const metrics = Object.keys(data.metrics).filter((name) => data.conditions.some((one) => (model.curves[one.name] || {})[name]));
      if (!metrics.includes(shown.metric)) shown.metric = metrics.includes("entropy") ? "entropy" : metrics[0];
      const metric = shown.metric, canDiffer = compared(model).some((one) => column(model, one.name, metric, "mean_difference").length && (model.curves[STANDARD.name] || {})[metric]);
      if (!canDiffer) shown.how = "means";
      const isShare = shown.isShare && about(metric).unit === "nats", unit = isShare ? Math.log(model.vocab_size) : 1;
      const isDifference = shown.how === "difference";
      const own = data.conditions.filter((one) => (isDifference ? column(model, one.name, metric, "mean_difference").length : (model.curves[one.name] || {})[metric]));
      const scaled = (values) => values.map((value) => (isNumber(value) ? value / unit : null));
      const series = own.filter((one) => !shown.off.has(one.name)).map((one) => {
        if (isDifference) {
          return { name: one.name, look: styleOf(one.name), values: scaled(column(model, one.name, metric, "mean_difference")),
            low: scaled(column(model, one.name, metric, "ci_low")), high: scaled(column(model, one.name, metric, "ci_high")) };
        }
        const { mean, deviation } = model.curves[one.name][metric];
        return { name: one.name, look: styleOf(one.name), values: scaled(mean), deviation: scaled(deviation) };
      });
      const placebos = isDifference ? [...new Set(own.filter((one) => !shown.off.has(one.name)).map((one) => one.vector))].flatMap((vector) => (model.placebos[vector] || {})[metric] || []) : [];
      if (placebos.length) {
        const ends = (pick) => range(numPoints(model, metric)).map((layer) => { const found = placebos.map((one) => one[layer]).filter(isNumber); return found.length ? pick(...found) / unit : null; });
        series.unshift({ name: `range of ${count(placebos.length, "placebo")}`, isBand: true, low: ends(Math.min), high: ends(Math.max), values: [] });
      }
      controls.replaceChildren(
        choice("Metric", metrics.map((name) => [name, withUnit(name)]), metric, (value) => { shown.metric = value; draw(model); }),
        canDiffer ? choice("Show", [["means", "means"], ["difference", "difference from standard"]], shown.how, (value) => { shown.how = value; draw(model); }) : "",
        about(metric).unit === "nats" ? h("label", { class: "row" }, h("input", { type: "checkbox", checked: shown.isShare, onchange: (event) => { shown.isShare = event.target.checked; draw(model); } }), "as a share of ln V") : "");
      toggles.replaceChildren(h("legend", {}, "Conditions"), ...own.map((one) => h("label", {}, h("input", { type: "checkbox", checked: !shown.off.has(one.name), onchange: (event) => {
        if (event.target.checked) shown.off.delete(one.name); else shown.off.add(one.name);
        draw(model);
      } }), swatch(styleOf(one.name)), bdi(one.name))));
      const name = isDifference ? `Difference in ${about(metric).label}` : metricName(metric);
      const yName = name + (isShare ? " / ln V" : about(metric).unit ? ` (${about(metric).unit})` : "");
      const untouched = isDifference ? Math.min(...own.filter((one) => !shown.off.has(one.name)).map((one) => model.untouched[one.name] || 0)) : 0;
      caption.textContent = isDifference ? `${model.key}: mean difference from the standard run by depth, with 95 % intervals${placebos.length ? "; grey: the range of the placebos" : ""}. Beyond the grey, no placebo does as much.${untouched > 0 ? " Shaded at the left: layers that steering does not reach." : ""}`
        : `${model.key}: means over ${count(model.num_sentences, "sentence")} by depth. Point at a layer, or press the arrow keys.`;
      lineChart(holder, { label: `${yName} over depth, ${series.map((one) => one.name).join(", ")}; the table below has the numbers`, xs: range(numPoints(model, metric)), xName: capital(about(metric).axis), xText: xTickName(metric),
        xLong: (index) => capital(pointName(metric, index)), yName, series, isLog: about(metric).scale === "logarithmic" && !isDifference, withZero: isDifference || about(metric).bounds[0] === 0 && about(metric).unit === "nats", lowName: isDifference ? "95 %" : null, shadeTo: isFinite(untouched) ? untouched : 0 });
      const lines = series.filter((one) => !one.isBand);
      numbers.replaceChildren(numbersTable(yName, [capital(about(metric).axis), ...lines.map((one) => one.name)],
        range(numPoints(model, metric)).map((layer) => [String(layer), ...lines.map((one) => fmt(one.values[layer]) + (one.deviation ? ` \u00b1 ${fmt(one.deviation[layer], 3)}` : isNumber(one.low[layer]) ? ` (${interval(one.low[layer], one.high[layer])})` : ""))])));
    };
  }

  function doses(folder) {
    const shown = { vector: null, metric: null, layer: null };
    const controls = h("div", { class: "controls" }), slope = h("p", {}), left = h("div", {}), right = h("div", {});
    folder.append(h("p", {}, "The same vector at several strengths; the standard run is strength 0. Vertical lines are 95 % intervals of the difference from it, grey dots the placebos."),
      controls, slope, h("div", { class: "panels" }, h("figure", {}, h("figcaption", {}, "The metric"), left), h("figure", {}, h("figcaption", {}, "How far the whole distribution moves at the last layer"), right)));
    return function draw(model) {
      const names = Object.keys(model.doses);
      folder.hidden = !names.length;
      if (!names.length) return;
      if (!names.includes(shown.vector)) shown.vector = names[0];
      const metrics = Object.keys(model.doses[shown.vector]);
      if (!metrics.includes(shown.metric)) shown.metric = metrics.includes("entropy") ? "entropy" : metrics[0];
      const metric = shown.metric, points = numPoints(model, metric);
      const layer = shown.layer === null || shown.layer >= points ? points - 1 : shown.layer;
      controls.replaceChildren(
        names.length > 1 ? choice("Vector", names.map((name) => [name, name]), shown.vector, (value) => { shown.vector = value; draw(model); }) : "",
        choice("Metric", metrics.map((name) => [name, withUnit(name)]), metric, (value) => { shown.metric = value; draw(model); }),
        choice("Layer", range(points).map((at) => [String(at), pointName(metric, at)]), String(layer), (value) => { shown.layer = Number(value); draw(model); }));
      const own = acting(model).filter((one) => one.vector === shown.vector);
      const before = own.length ? column(model, own[0].name, metric, "mean_standard")[layer] : null;
      const get = (condition, name) => column(model, condition.name, metric, name)[layer];
      const steps = [{ strength: 0, mean: before, points: [] }, ...own.map((one) => ({ strength: one.strength, mean: before + get(one, "mean_difference"),
        low: before + get(one, "ci_low"), high: before + get(one, "ci_high"), kl: (((model.curves[one.name] || {}).kl_from_standard || {}).mean || []).slice(-1)[0],
        points: aboutPlacebos(one).some((about) => about.strength === one.strength) ? placebosOf(model, one, metric).map((values) => before + values[layer]) : [] }))].sort((a, b) => a.strength - b.strength);
      steps.find((step) => step.strength === 0).kl = 0;
      const found = model.doses[shown.vector][metric];
      const isKnown = isNumber(found.slope[layer]);
      slope.textContent = isKnown ? `${metricName(metric)}${atPoint(metric, layer)} changes by ${signed(found.slope[layer])}${about(metric).unit ? ` ${about(metric).unit}` : ""} per unit of strength (95 % ${interval(found.slope_ci_low[layer], found.slope_ci_high[layer])}); in ${percent(found.share_negative[layer])} of the sentences it falls.` : "";
      const xs = steps.map((step) => step.strength), look = styleOf(own.length ? strongest(own).name : "");
      const chart = { xs, xName: "Strength", isBare: true, height: 270 };
      lineChart(left, { ...chart, label: `${withUnit(metric)} by strength`, yName: withUnit(metric), isWhiskers: true, lowName: "95 %", isLog: about(metric).scale === "logarithmic",
        series: [{ name: "mean", look, values: steps.map((step) => step.mean), low: steps.map((step) => step.low), high: steps.map((step) => step.high), points: steps.map((step) => step.points) }] });
      lineChart(right, { ...chart, label: "KL from standard by strength", yName: "KL from standard (nats)", withZero: true, series: [{ name: "KL from standard", look, values: steps.map((step) => step.kl) }] });
    };
  }

  function placebos(folder) {
    const shown = { metric: null, layer: null };
    const controls = h("div", { class: "controls" }), holder = h("div", {}), numbers = h("div", {});
    folder.append(h("p", {}, "Would any vector have done it? Each grey dot is a placebo: a vector of the same size, without the meaning. A condition outside of its placebos does something that its direction is needed for."),
      controls, h("figure", {}, holder), numbers);
    return function draw(model) {
      const own = acting(model).filter((one) => Object.keys(model.placebos[one.vector] || {}).length);
      folder.hidden = !own.length;
      if (!own.length) return;
      const metrics = Object.keys(model.placebos[own[0].vector]);
      if (!metrics.includes(shown.metric)) shown.metric = metrics.includes("entropy") ? "entropy" : metrics[0];
      const metric = shown.metric, points = numPoints(model, metric);
      const layer = shown.layer === null || shown.layer >= points ? points - 1 : shown.layer;
      controls.replaceChildren(
        choice("Metric", metrics.map((name) => [name, withUnit(name)]), metric, (value) => { shown.metric = value; draw(model); }),
        choice("Layer", range(points).map((at) => [String(at), pointName(metric, at)]), String(layer), (value) => { shown.layer = Number(value); draw(model); }));
      const get = (one, name) => column(model, one.name, metric, name)[layer];
      const dots = (one) => placebosOf(model, one, metric).map((values) => values[layer]).filter(isNumber);
      const width = Math.max(300, Math.min(holder.clientWidth || 700, 1180)), left = width > 520 ? 150 : 96, right = width > 520 ? 130 : 12, row = 40, height = row * own.length + 54;
      const scale = scaleOf(own.flatMap((one) => [get(one, "mean_difference"), get(one, "ci_low"), get(one, "ci_high"), ...dots(one)]), false, true);
      const x = (value) => left + scale.at(value) * (width - left - right);
      const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Difference in ${about(metric).label} of each condition beside its placebos; the table below has the numbers` });
      for (const tick of scale.ticks) {
        svg.append(s("line", { class: tick === 0 ? "zero" : "grid", x1: x(tick), x2: x(tick), y1: 4, y2: height - 46 }), s("text", { x: x(tick), y: height - 28, "text-anchor": "middle" }, fmt(tick)));
      }
      svg.append(s("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, `Mean difference in ${about(metric).label}${about(metric).unit ? ` (${about(metric).unit})` : ""}`));
      own.forEach((one, index) => {
        const y = row * index + row / 2, look = styleOf(one.name), at = get(one, "mean_difference");
        svg.append(s("text", { class: "name", x: left - 10, y: y + 4, "text-anchor": "end" }, shorten(one.name, width > 520 ? 20 : 13)));
        dots(one).forEach((value, number) => svg.append(s("circle", { cx: x(value), cy: y + ((number * 7) % 5 - 2) * 3, r: 3.2, paint: { fill: "var(--soft)", fillOpacity: 0.45 } })));
        if (isNumber(get(one, "ci_low"))) svg.append(s("line", { x1: x(get(one, "ci_low")), x2: x(get(one, "ci_high")), y1: y, y2: y, "stroke-width": 3, paint: { stroke: look.stroke } }));
        if (isNumber(at)) svg.append(tipped(s("path", { d: `M${x(at)},${y - 8}l7,8l-7,8l-7,-8z`, paint: { fill: look.stroke, stroke: "var(--paper)" } }), () => `${one.name}: ${signed(at)} (95 % ${interval(get(one, "ci_low"), get(one, "ci_high"))})\n${beside(model, one, metric, layer)} placebos`));
        if (width > 520) svg.append(s("text", { x: width - right + 10, y: y + 4 }, beside(model, one, metric, layer)));
      });
      holder.replaceChildren(svg);
      numbers.replaceChildren(numbersTable(metricName(metric) + atPoint(metric, layer), ["condition", "difference", "95 % interval", "least placebo", "largest placebo", "placebos"],
        own.map((one) => [one.name, signed(get(one, "mean_difference")), interval(get(one, "ci_low"), get(one, "ci_high")), signed(Math.min(...dots(one))), signed(Math.max(...dots(one))), beside(model, one, metric, layer)])));
    };
  }

  function tint(element, share, isDiverging) {
    const size = Math.min(1, Math.abs(share));
    if (!isNumber(size)) return element;
    const colour = isDiverging ? (share > 0 ? "--more" : "--less") : "--heat";
    element.style.backgroundColor = `rgba(var(${colour}), ${(0.9 * size).toFixed(3)})`;
    if (size > 0.74) element.classList.add("strong");
    return element;
  }

  function impact(folder) {
    const shown = { condition: null };
    const controls = h("div", { class: "controls" }), holder = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Effect sizes by metric and layer" });
    folder.append(h("p", {}, "Where does a condition act? Each cell is the effect size d: the mean difference by the deviation of the differences between sentences."), controls, holder,
      h("div", { class: "keys" }, h("span", {}, h("span", { class: "scale both" }), " falls \u2026 rises, up to |d| = 1.5"), h("span", {}, "\u2022 p < 0.05 after Holm's correction"), h("span", {}, h("span", { class: "within" }), " a placebo changes it at least as much"), h("span", {}, "grey: steering does not reach the layer"), h("span", {}, BLANK, " no such layer")));
    return function draw(model) {
      const own = acting(model);
      folder.hidden = !own.length;
      if (!own.length) return;
      if (!own.some((one) => one.name === shown.condition)) shown.condition = strongest(own).name;
      const condition = own.find((one) => one.name === shown.condition), metrics = Object.keys(model.summary[condition.name]).filter((name) => column(model, condition.name, name, "p_holm").length && !isOfText(name));
      controls.replaceChildren(choice("Condition", own.map((one) => [one.name, one.name]), condition.name, (value) => { shown.condition = value; draw(model); }));
      const untouched = model.untouched[condition.name] || 0;
      holder.replaceChildren(h("table", { class: "impact" }, h("thead", {}, h("tr", {}, h("th", { class: "text", scope: "col" }, "Metric"), range(model.num_layers).map((layer) => h("th", { scope: "col" }, layer ? String(layer) : "emb.")))),
        h("tbody", {}, metrics.map((metric) => h("tr", {}, h("th", { class: "text", scope: "row" }, metricName(metric)), range(model.num_layers).map((layer) => {
          const at = { layer, block: layer - 1, text: layer - model.num_layers + 1 }[about(metric).axis], get = (name) => column(model, condition.name, metric, name)[at];
          const size = real(get("effect_size")), p = get("p_holm");
          if (at < 0 || size === null || size === undefined) return h("td", { class: "untouched" }, BLANK);
          const within = larger(model, condition, metric, at), isReached = layer >= untouched;
          const cell = h("td", { class: !isReached ? "untouched" : within && within.number ? "within" : null }, signed(size, 2) + (isNumber(p) && p < SIGNIFICANT ? " \u2022" : ""));
          if (isReached && !(within && within.number)) tint(cell, size === Infinity ? 1 : size === -Infinity ? -1 : size / 1.5, true);
          return tipped(cell, () => `${metricName(metric)}, ${pointName(metric, at)}\ndifference ${signed(get("mean_difference"))} (95 % ${interval(get("ci_low"), get("ci_high"))})\nd ${signed(size)}, p ${pvalue(p)}${within ? `\n${beside(model, condition, metric, at)} placebos` : ""}${!isReached ? "\nsteering does not reach this layer" : ""}`);
        }))))));
    };
  }

  /* ---- sentence by sentence ---- */

  function unpack(own) {
    if (!own.array) {
      const text = atob(own.codes), bytes = new Uint8Array(text.length);
      for (let index = 0; index < text.length; index++) bytes[index] = text.charCodeAt(index);
      const view = new DataView(bytes.buffer), array = new Float64Array(bytes.length / 2), isLog = own.scale === "logarithmic";
      const low = isLog ? Math.log(own.low) : own.low, high = isLog ? Math.log(own.high) : own.high;
      for (let index = 0; index < array.length; index++) {
        const code = view.getUint16(2 * index, true), value = low + (code / 65534) * (high - low);
        array[index] = code === 65535 ? NaN : isLog ? Math.exp(value) : value;
      }
      own.array = array;
    }
    return own.array;
  }
  function valueOf(model, metric, condition, record, layer) {
    const own = model.sample.metrics[metric], place = own.conditions.indexOf(condition), width = numPoints(model, metric);
    const at = about(metric).axis === "block" ? layer - 1 : layer;
    return place < 0 || at < 0 ? NaN : unpack(own)[(place * model.sample.tokens.length + record) * width + at];
  }
  function trackedAt(model, condition, record, layer) {
    const own = model.sample.conditions[condition], tokens = own.tracked[record], probabilities = unpack(own.probabilities);
    return tokens.map((token, place) => ({ token: model.sample.names[token], probability: probabilities[(record * tokens.length + place) * model.num_layers + layer] }));
  }
  /* What a layer itself would say; where the run has not recorded it, the best of the tokens that are tracked. */
  function topAt(model, condition, record, layer) {
    const own = model.sample.conditions[condition];
    if (!own.lens_tokens) return trackedAt(model, condition, record, layer).reduce((a, b) => (b.probability > a.probability ? b : a));
    if (!own.lens_tokens.array) {
      const bytes = Uint8Array.from(atob(own.lens_tokens.codes), (letter) => letter.charCodeAt(0)), view = new DataView(bytes.buffer), size = own.lens_tokens.size;
      own.lens_tokens.array = range(bytes.length / size).map((index) => (size === 2 ? view.getUint16(2 * index, true) : view.getUint32(4 * index, true)));
    }
    const at = record * model.num_layers + layer;
    return { token: model.sample.names[own.lens_tokens.array[at]], probability: unpack(own.lens_probabilities)[at] };
  }
  const hasTops = (model) => Boolean(model.sample.conditions[data.conditions[0].name].lens_tokens);
  const seen = (token) => token === null ? "\u2026" : token.replace(/^ /, "\u2423").replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5") || "\u2205";
  const textOf = (sentence) => sentence.pieces.map(([text]) => text).join("");
  const recordsOf = (sentence) => sentence.pieces.filter(([, token]) => token >= 0).map(([, token]) => sentence.first + token);
  const meanOf = (model, sentence, metric, condition, layer) => {
    const values = recordsOf(sentence).map((record) => valueOf(model, metric, condition, record, layer)).filter(isNumber);
    return values.length ? values.reduce((a, b) => a + b, 0) / values.length : NaN;
  };

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
            const best = topAt(model, name, record, at), value = valueOf(model, metric, name, record, at);
            const cell = h("td", { onclick: choose(record) }, bdi(seen(best.token)), " ", probability(best.probability), h("small", {}, fmt(value, 3)));
            return tipped(tint(cell, share(value), bounded), () => [`${at ? `Layer ${at}` : "Embeddings"}, token ${label(record)}`, `${metricName(metric)}: ${fmt(value)}`,
              ...(hasTops(model) ? [`most likely: ${seen(best.token)} ${probability(best.probability)}`, "tracked:"] : []), ...trackedAt(model, name, record, at).map((own) => `${seen(own.token)} ${probability(own.probability)}`)].join("\n"));
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
          ". Text: at the layer chosen above. Grid: ", hasTops(model) ? "the most likely token of each layer, with its probability, and the metric."
            : "of the tokens that the last layer ranks highest, the most probable at each layer, with its probability, and the metric; with analysis.lens_tokens: true it shows the most likely token of each layer.",
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

  /* ---- answers, and what models write ---- */

  function answers(folder) {
    const intro = h("p", {}), keys = h("div", { class: "keys" }), numbers = h("div", {});
    const figures = [["accuracy", "Accuracy: share of sentences that prefer the right answer", "Accuracy"], ["preference", "Preference: surprisal of the wrong answer \u2212 that of the right one", "Preference (nats)"]]
      .map(([key, caption, yName]) => ({ key, caption, yName, holder: h("div", {}) }));
    folder.append(intro, keys, h("div", { class: "panels" }, figures.map((one) => h("figure", {}, h("figcaption", {}, one.caption), one.holder))), numbers);
    return function draw(model) {
      const own = data.conditions.filter((one) => model.answers[one.name]);
      folder.hidden = !own.length;
      if (!own.length) return;
      intro.textContent = `${count(model.answers[own[0].name].count, "sentence")} of ${model.key} with a right and a wrong answer. An answer's surprisal is read at every layer; the right one is preferred where its surprisal is the lower one. Shaded: 95 % intervals.`;
      keys.replaceChildren(...own.map((one) => h("span", {}, swatch(styleOf(one.name)), " ", bdi(one.name))));
      for (const { key, caption, yName, holder } of figures) {
        lineChart(holder, { label: `${caption}, over depth; the table below has the numbers`, xs: range(model.num_layers), xName: "Layer", xText: (tick) => (tick ? String(tick) : "emb."), xLong: (index) => (index ? `Layer ${index}` : "Embeddings"),
          yName, withZero: true, isBare: true, height: 270, lowName: "95 %", series: own.map((one) => {
            const { mean, low, high } = model.answers[one.name][key];
            return { name: one.name, look: styleOf(one.name), values: mean, low, high };
          }) });
      }
      const cell = ({ mean, low, high }, layer) => fmt(mean[layer], 3) + (isNumber(low[layer]) ? ` (${fmt(low[layer], 3)} to ${fmt(high[layer], 3)})` : "");
      numbers.replaceChildren(numbersTable("Mean (95 % interval); and how many sentences prefer the right answer from that layer on, up to the last one", ["Layer", ...own.flatMap((one) => [`${one.name}: accuracy`, "preference", "from here on"])],
        range(model.num_layers).map((layer) => [String(layer), ...own.flatMap((one) => { const found = model.answers[one.name]; return [cell(found.accuracy, layer), cell(found.preference, layer), String(found.preferred_from[layer])]; })])));
    };
  }

  const isWritten = (model) => Boolean(model.sample && Object.keys(model.sample.written).length);

  function generated(folder) {
    const shown = { text: "" };
    const search = h("input", { type: "search", class: "search", id: "search-texts", placeholder: "search the sentences and texts", "aria-label": "Search the sentences and texts", oninput: () => { shown.text = search.value; drawTexts(state.model); } });
    const found = h("p", { class: "note", "aria-live": "polite" }), texts = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Generated texts" }), counted = h("div", {});
    folder.append(h("p", {}, "What the model writes behind each sentence, under every condition."), search, found, texts, counted);
    function drawTexts(model) {
      const own = data.conditions.filter((one) => model.sample.written[one.name]), words = shown.text.toLowerCase().split(/\s+/).filter(Boolean);
      const rows = model.sample.sentences.map((sentence, place) => [textOf(sentence), ...own.map((one) => model.sample.written[one.name][place])])
        .filter((row) => { const text = row.join(" ").toLowerCase(); return words.every((word) => text.includes(word)); });
      found.textContent = `${count(rows.length, "sentence")}${words.length ? " found" : rows.length < model.num_sentences ? ` of ${fmt(model.num_sentences)}, drawn by the seed` : ""}; all texts are in the CSV files, whole.`;
      texts.replaceChildren(h("table", { class: "texts" }, h("thead", {}, h("tr", {}, ["sentence", ...own.map((one) => one.name)].map((name) => h("th", { class: "text", scope: "col" }, bdi(name))))),
        h("tbody", {}, rows.map((row) => h("tr", {}, row.map((text, index) => h(index ? "td" : "th", { class: "text", dir: "auto", scope: index ? null : "row" }, text || "\u2205")))))));
    }
    function drawCounts(model) {
      const own = compared(model), metrics = Object.keys(data.metrics).filter((name) => own.some((one) => column(model, one.name, name, "mean_difference").length)
        && (isOfText(name) || name === "standard_surprisal"));
      const kl = (one) => (((model.curves[one.name] || {}).kl_from_standard || {}).mean || []).slice(-1)[0];
      const get = (one, metric, name) => column(model, one.name, metric, name).slice(-1)[0];
      const cell = (one, metric) => `${fmt(get(one, metric, "mean_standard") + get(one, metric, "mean_difference"), 3)} (${interval(get(one, metric, "ci_low"), get(one, metric, "ci_high"))})`;
      counted.replaceChildren(...(metrics.length ? [h("h3", {}, "What steering does to the texts"), h("p", { class: "note" }, "Means over the sentences, and in brackets the 95 % interval of the difference from standard. Surprisal and KL are those of the last layer."),
        h("div", { class: "scroll" }, h("table", { id: "text-metrics" }, h("thead", {}, h("tr", {}, h("th", { class: "text", scope: "col" }, "metric"), h("th", { scope: "col" }, "standard"), own.map((one) => h("th", { scope: "col" }, bdi(one.name))))),
          h("tbody", {}, metrics.map((metric) => h("tr", {}, h("th", { class: "text", scope: "row" }, withUnit(metric)), h("td", {}, fmt(get(own[0], metric, "mean_standard"), 3)), own.map((one) => h("td", {}, cell(one, metric))))),
            h("tr", {}, h("th", { class: "text", scope: "row" }, "KL from standard (nats)"), h("td", {}, "0"), own.map((one) => h("td", {}, fmt(kl(one), 3)))))))] : []));
    }
    return function draw(model) {
      folder.hidden = !isWritten(model);
      if (folder.hidden) return;
      drawTexts(model);
      drawCounts(model);
    };
  }

  function proofs(folder) {
    folder.append(h("div", { class: "cards" }, data.models.map((model) => {
      const attention = model.attention === "eager" ? "The model attends with full maps; attention entropies are read from them."
        : model.attention === "sdpa_and_entropy" ? "Attention entropies are computed beside fused attention. At load they were compared with those of the model's own full attention maps; a model that differs is refused." : "No attention entropy was measured.";
      return h("div", { class: "card" }, h("h3", {}, bdi(model.key)), h("ul", {},
        h("li", {}, h("strong", {}, "Lens: "), `at load the last layer gave the model's own logits, to within ${fmt(model.lens_error_logits, 2)}. A model whose logits cannot be reproduced is refused.`),
        h("li", {}, h("strong", {}, "Attention: "), attention),
        h("li", {}, h("strong", {}, "Exactly once: "), `${count(model.num_sentences, "sentence")} with ${count(model.num_records, "record")} in ${count(model.num_parts, "checked part")}. The merge counts every record by sentence and position, and refuses one that is missing or there twice.`),
        h("li", {}, h("strong", {}, "Left out: "), model.num_unread || model.num_cut || data.run.corpus.num_skipped
          ? `${count(data.run.corpus.num_skipped, "row")} without text, ${count(model.num_unread, "sentence")} without a token to read, ${count(model.num_cut, "sentence")} cut at ${fmt(model.max_length)} tokens.` : "nothing: no row without text, no sentence cut.")));
    })));
    folder.append(h("p", { class: "note" }, "Steering is undone after every pass, and all conditions run on the same batches. Below the first steered block nothing changes, bit for bit."));
    return () => {};
  }

  function fileList(folder) {
    const groups = new Map();
    for (const path of data.files) {
      const parent = path.includes("/") ? path.slice(0, path.lastIndexOf("/")) : "run";
      groups.set(parent, [...(groups.get(parent) || []), path]);
    }
    folder.append(h("p", {}, "These lie beside this page, in the folder of the run; the links work where the page was not moved away from it."));
    for (const [parent, paths] of groups) {
      folder.append(h("details", { open: parent === "run" }, h("summary", {}, parent === "run" ? "The run" : parent, ` (${paths.length})`),
        h("ul", { class: "files" }, paths.map((path) => h("li", {}, h("a", { href: path.split("/").map(encodeURIComponent).join("/"), rel: "noreferrer" }, path.slice(path.lastIndexOf("/") + 1)))))));
    }
    return () => {};
  }

  /* A section is shown where its data is there: a row for each. */
  const SECTIONS = [
    ["verdict", "Findings", "What it found", verdict, true],
    ["curves", "Curves", "Curves over depth", curves, true],
    ["impact", "Layers", "Layer impact", impact, data.models.some((model) => acting(model).length)],
    ["placebos", "Placebos", "Beside placebos", placebos, data.models.some((model) => Object.keys(model.placebos).length)],
    ["doses", "Doses", "Doses", doses, data.models.some((model) => Object.keys(model.doses).length)],
    ["answers", "Answers", "Answers", answers, data.models.some((model) => Object.keys(model.answers).length)],
    ["generated", "Texts", "Generated text", generated, data.models.some(isWritten)],
    ["text", "Sentences", "Sentence by sentence", sentences, data.models.some((model) => model.sample)],
    ["what", "What ran", "What ran", whatRan, true],
    ["proofs", "Proofs", "Why to trust it", proofs, true],
    ["files", "Files", "Files", fileList, data.files.length],
  ];

  function bar(draw) {
    const theme = h("button", { type: "button", id: "theme", "aria-label": "Dark or light" }, "\u25d0");
    const wanted = matchMedia("(prefers-color-scheme: dark)");
    const use = (name) => { document.documentElement.dataset.theme = name; theme.setAttribute("aria-pressed", String(name === "dark")); };
    let isChosen = false, before = "light";
    use(wanted.matches ? "dark" : "light");
    wanted.addEventListener("change", () => { if (!isChosen) use(wanted.matches ? "dark" : "light"); });
    theme.addEventListener("click", () => { isChosen = true; use(document.documentElement.dataset.theme === "dark" ? "light" : "dark"); });
    addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; use("light"); });
    addEventListener("afterprint", () => use(before));
    const model = h("select", { id: "model", "aria-label": "Model", onchange: () => { state.model = data.models.find((one) => one.key === model.value); draw(); } },
      data.models.map((one) => h("option", { value: one.key }, one.key)));
    return h("div", { class: "bar" }, h("div", {}, h("nav", { "aria-label": "Sections" }, SECTIONS.filter((one) => one[4]).map(([id, short]) => h("a", { href: `#${id}` }, short))),
      data.models.length > 1 ? model : null, theme));
  }

  const main = document.getElementById("main"), drawn = [];
  const draw = () => drawn.forEach((one) => one(state.model));
  head();
  main.before(bar(draw));
  for (const [id, , title, make, isThere] of SECTIONS) {
    if (!isThere) continue;
    const folder = h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title));
    main.append(folder);
    drawn.push(make(folder));
  }
  draw();
  let width = innerWidth, waiting = 0;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(draw, 150);
  });
})();
