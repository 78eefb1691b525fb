/* Charts of lines over layers or numbers, drawn by hand: a library would be larger than all of this program. */

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
    svg.append(s("rect",
        { class: "placebo", x: left, y: top, width: Math.max(0, x(chart.shadeTo - 0.5) - left),
          height: height - top - bottom }));
  }
  for (const tick of scale.ticks) {
    svg.append(s("line",
        { class: tick === 0 && !chart.isLog ? "zero" : "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
      s("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, fmt(tick)));
  }
  const room = Math.max(1, Math.floor((width - left - right) / 34));
  const xTicks = chart.xTicks || chart.xs, step = Math.ceil(xTicks.length / room);
  xTicks.forEach((tick, index) => {
    if (index % step === 0) svg.append(s("text", { x: x(tick), y: height - bottom + 18, "text-anchor": "middle" },
        chart.xText ? chart.xText(tick) : fmt(tick)));
  });
  svg.append(s("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, chart.xName),
    s("text", { x: -(height - bottom + top) / 2, y: 14, transform: "rotate(-90)", "text-anchor": "middle" },
      chart.yName));
  const path = (values) => values.map((value, index) => (fits(value)
    ? `${(chart.isBridged ? values.slice(0, index).some(fits) : index && fits(values[index - 1])) ? "L" : "M"}${x(chart.xs[index]).toFixed(1)},${y(value).toFixed(1)}` : ""))
      .join("");
  for (const one of chart.series) {
    if (!one.low || chart.isWhiskers) continue;
    const kept = chart.xs.map((_, index) => index).filter((index) => fits(one.low[index]) && fits(one.high[index]));
    const there = kept.map((index) => `${x(chart.xs[index]).toFixed(1)},${y(one.high[index]).toFixed(1)}`);
    const back = kept.reverse().map((index) => `${x(chart.xs[index]).toFixed(1)},${y(one.low[index]).toFixed(1)}`);
    if (there.length) {
      svg.append(s("polygon", { points: [...there, ...back].join(" "), class: one.isBand ? "placebo" : null,
        paint: one.isBand ? {} : { fill: one.look.stroke, fillOpacity: Math.min(0.13, 0.4 / chart.series.length) } }));
    }
  }
  for (const one of chart.series) {
    (one.points || []).forEach((own, index) => own.forEach((value) => fits(value) && svg.append(
      s("circle", { cx: x(chart.xs[index]) , cy: y(value), r: 3,
          paint: { fill: "var(--soft)", fillOpacity: 0.45 } }))));
    if (one.isBand || !one.values) continue;
    svg.append(s("path",
        { class: "curve", d: path(one.values), paint: { stroke: one.look.stroke },
          "stroke-dasharray": one.look.dash }));
    one.values.forEach((value, index) => {
      if (!fits(value)) return;
      const [at, up] = [x(chart.xs[index]), y(value)];
      if (chart.isWhiskers && one.low && fits(one.low[index]) && fits(one.high[index])) {
        svg.append(s("line",
            { x1: at, x2: at, y1: y(one.low[index]), y2: y(one.high[index]), "stroke-width": 2,
              paint: { stroke: "var(--ink)" } }));
      }
      if (one.values.filter(fits).length <= 40) svg.append(s("circle", { cx: at, cy: up, r: 3, paint: { fill: one.look.stroke } }));
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
      svg.append(s("text",
          { class: "name", x: end.x + 8, y: end.y + 4 - Math.max(0, over), paint: { fill: end.one.look.stroke } },
          shorten(end.one.name, 20)));
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
    const band = chart.series.filter((one) => one.isBand && isNumber(one.low[index]))
      .map((one) => `${one.name}: ${fmt(one.low[index], 3)} to ${fmt(one.high[index], 3)}`);
    showTip([chart.xLong ? chart.xLong(index) : `${chart.xName} ${fmt(chart.xs[index])}`, ...lines, ...band].join("\n"),
      clientX, clientY);
  }
  function leave() { cursor.setAttribute("visibility", "hidden"); hideTip(); }
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * width;
    const nearest = chart.xs.reduce((best, value, index) =>
      (Math.abs(x(value) - at) < Math.abs(x(chart.xs[best]) - at) ? index : best), 0);
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

const xTickName = (metric) => (tick) => (tick === 0 && about(metric).axis === "layer" ? "emb." : String(tick));

function numbersTable(caption, heads, rows) {
  return h("details", {}, h("summary", {}, "The numbers as a table"),
    scroller(caption, tableOf(heads, rows, { caption })));
}
