/* The sections of the page, the bar above them, and the first drawing. */

/* A section is shown where its data is there: a row for each. */
const SECTIONS = [
  ["verdict", "Findings", "What it found", verdict, true],
  ["changes", "All changes", "All changes in numbers", summaryTable, data.models.some((model) => acting(model).length)],
  ["curves", "Curves", "Curves over depth", curves, true],
  ["impact", "Layers", "Layer impact", impact, data.models.some((model) => acting(model).length)],
  ["placebos", "Placebos", "Beside placebos", placebos,
    data.models.some((model) => Object.keys(model.placebos).length)],
  ["doses", "Doses", "Doses", doses, data.models.some((model) => Object.keys(model.strengths).length)],
  ["answers", "Answers", "Answers", answers, data.models.some((model) => Object.keys(model.answers).length)],
  ["groups", "Groups", "Groups", groups, data.models.some((model) => Object.keys(model.groups).length)],
  ["generated", "Texts", "Generated text", generated, data.models.some(isWritten)],
  ["text", "Sentences", "Sentence by sentence", sentences, data.models.some((model) => model.sample)],
  ["words", "Words", "Words", words, data.models.some(hasWords)],
  ["glossary", "Glossary", "What the words and numbers mean", glossary, true],
  ["what", "What ran", "What ran", whatRan, true],
  ["proofs", "Proofs", "Why to trust it", proofs, true],
  ["files", "Files", "Files", fileList, data.files.length],
];

function bar(draw) {
  const theme = h("button", { type: "button", id: "theme", "aria-label": "Dark or light" }, "\u25d0");
  const wanted = matchMedia("(prefers-color-scheme: dark)");
  const use = (name) =>
    { document.documentElement.dataset.theme = name; theme.setAttribute("aria-pressed", String(name === "dark")); };
  let isChosen = false, before = "light";
  use(wanted.matches ? "dark" : "light");
  wanted.addEventListener("change", () => { if (!isChosen) use(wanted.matches ? "dark" : "light"); });
  theme.addEventListener("click",
    () => { isChosen = true; use(document.documentElement.dataset.theme === "dark" ? "light" : "dark"); });
  addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; use("light"); });
  addEventListener("afterprint", () => use(before));
  const model = h("select",
    { id: "model", "aria-label": "Model",
      onchange: () => { state.model = data.models.find((one) => one.key === model.value); draw(); } },
    data.models.map((one) => h("option", { value: one.key }, one.key)));
  return h("div", { class: "bar" },
    h("div", {}, h("nav", { "aria-label": "Sections" },
        SECTIONS.filter((one) => one[4]).map(([id, short]) => h("a", { href: `#${id}` }, short))),
    data.models.length > 1 ? model : null, theme));
}

/* Mark the section that is in sight. */
function follow(nav) {
  const links = new Map([...nav.querySelectorAll("a")].map((link) => [link.hash.slice(1), link])), visible = new Set();
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) visible[entry.isIntersecting ? "add" : "delete"](entry.target.id);
    const first = [...links.keys()].find((id) => visible.has(id));
    for (const [id, link] of links) {
      if (id !== first) link.removeAttribute("aria-current");
      else if (!link.hasAttribute("aria-current")) {
        link.setAttribute("aria-current", "location");
        nav.scrollLeft = link.offsetLeft - nav.offsetLeft - nav.clientWidth / 2;
      }
    }
  }, { rootMargin: "-20% 0px -60% 0px" });
  for (const id of links.keys()) watch.observe(document.getElementById(id));
}

const main = document.getElementById("main"), drawn = [];
const draw = (isResized = false) => drawn.forEach((one) => one(state.model, isResized));
head();
main.before(bar(draw));
for (const [id, , title, make, isThere] of SECTIONS) {
  if (!isThere) continue;
  const folder = h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title));
  main.append(folder);
  drawn.push(make(folder));
}
draw();
follow(document.querySelector(".bar nav"));
let width = innerWidth, waiting = 0;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  clearTimeout(waiting);
  waiting = setTimeout(draw, 150, true);
});
