/* The tip: shown to eyes, read out to ears. */

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
