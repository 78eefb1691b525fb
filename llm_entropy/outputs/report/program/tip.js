/* The tip: shown to eyes, read out to ears. What has one shows it under the pointer and where the keyboard is. */

const tip = document.getElementById("tip"), tips = new WeakMap(), mouse = { x: -1, y: -1 };
addEventListener("pointermove", (event) => { [mouse.x, mouse.y] = [event.clientX, event.clientY]; }, { passive: true });
function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 6))}px`;
  tip.style.top = `${y + box.height + 22 > innerHeight ? Math.max(4, y - box.height - 12) : y + 14}px`;
}
const hideTip = () => { tip.hidden = true; };
function tipped(element, text) {
  tips.set(element, text);
  element.addEventListener("pointerenter", (event) => {
    // What the page moves under a mouse that rests is not pointed at: the keyboard may be somewhere else.
    if (event.pointerType !== "mouse" || event.clientX !== mouse.x || event.clientY !== mouse.y) showTip(text(),
      event.clientX, event.clientY);
  });
  element.addEventListener("pointerleave", hideTip);
  return element;
}
function tipAt(element) {
  const box = element.getBoundingClientRect();
  if (tips.has(element)) showTip(tips.get(element)(), box.left + box.width / 2, box.bottom);
}
addEventListener("scroll", hideTip, { passive: true });
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

/* Let the arrow keys go from cell to cell of a table, or from word to word: one of them at a time takes the focus. */
function roving(holder, cells) {
  const all = [...holder.querySelectorAll(cells)], rows = [...new Set(all.map((cell) => cell.parentElement))];
  let open = all[0];
  all.forEach((cell) => { cell.tabIndex = cell === open ? 0 : -1; });
  holder.addEventListener("focusin", ({ target }) => {
    if (!all.includes(target)) return;
    open.tabIndex = -1;
    open = target;
    open.tabIndex = 0;
    tipAt(open);
  });
  holder.addEventListener("focusout", hideTip);
  holder.addEventListener("keydown", (event) => {
    const at = all.indexOf(event.target);
    if (at < 0) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      event.target.click();
      return;
    }
    const row = rows.indexOf(event.target.parentElement), own = all.filter((cell) => cell.parentElement === rows[row]);
    const place = own.indexOf(event.target),
      near = (other) => other && all.filter((cell) => cell.parentElement === other)[place];
    const to = { ArrowRight: own[place + 1], ArrowLeft: own[place - 1], Home: own[0], End: own[own.length - 1],
      ArrowDown: rows.length > 1 ? near(rows[row + 1]) : undefined,
        ArrowUp: rows.length > 1 ? near(rows[row - 1]) : undefined }[event.key];
    if (!to) return;
    event.preventDefault();
    to.focus();
  });
  return holder;
}
