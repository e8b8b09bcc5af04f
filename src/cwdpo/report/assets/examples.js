function sortExamples() {
  const section = document.getElementById("examples");
  if (!section) return;
  const [shade, sort, reverse] = ["shade", "sort", "reverse"].map((name) => document.getElementById(`example-${name}`));
  const number = (card, name) => (card.dataset[name] === undefined ? null : Number(card.dataset[name]));
  const show = () => {
    section.classList.toggle("show-change", shade.value === "change");
    section.classList.toggle("show-now", shade.value === "now");
  };
  const order = () => {
    const sign = reverse.checked ? -1 : 1;
    const compare = (one, other) => {
      const [a, b] = [number(one, sort.value), number(other, sort.value)];
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (a - b) || number(one, "place") - number(other, "place");
    };
    for (const box of section.querySelectorAll(".examples")) box.append(...[...box.children].sort(compare));
  };
  shade.addEventListener("change", show);
  sort.addEventListener("change", order);
  reverse.addEventListener("change", order);
  document.getElementById("example-tools").hidden = false;
  show();
  order();
}
sortExamples();
