"use strict";
{
  const box = document.getElementById("cards");
  const bar = document.getElementById("sorting");
  const cards = [...box.children];
  const number = (card, name) => (card.dataset[name] === undefined ? null : Number(card.dataset[name]));
  const has = (name) => cards.some((card) => number(card, name) !== null);
  const by = (name, sign) => (a, b) => {
    const [one, other] = [number(a, name), number(b, name)];
    if (one === null || other === null) return (one === null) - (other === null);
    return sign * (one - other);
  };
  const place = by("place", 1);
  const orders = [
    ["As in the file", true, place],
    ["Hardest first", has("lbar"), by("lbar", -1)],
    ["Easiest first", has("lbar"), by("lbar", 1)],
    ["Largest w_c first", has("weight"), by("weight", -1)],
    ["Most alike first (CHES)", has("ches"), by("ches", -1)],
    ["By kind", true, (a, b) => a.dataset.kind.localeCompare(b.dataset.kind)],
  ];
  for (const [label, possible, compare] of orders) {
    if (!possible) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.setAttribute("aria-pressed", String(compare === place));
    button.addEventListener("click", () => {
      for (const other of bar.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
      box.append(...[...cards].sort((a, b) => compare(a, b) || place(a, b)));
    });
    bar.append(button);
  }
  bar.hidden = false;
}
