{
  const status = document.getElementById("follow");
  let version = status.dataset.version;
  const part = (name) => status.querySelector(`.${name}`);
  const say = (text, lost) => {
    part("state").textContent = text;
    status.classList.toggle("lost", lost);
  };
  const spell = (seconds) => {
    if (seconds < 90) return `${Math.round(seconds)} s`;
    if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
    return `${(seconds / 3600).toFixed(1)} h`;
  };
  // what was seen of each run: the rate is over at most the last twenty updates of its stage
  const seen = new Map();
  let heard = null;
  const measure = () => {
    const cards = [...document.querySelectorAll(".card[data-progress]")];
    const now = Date.now() / 1000;
    heard = cards.length ? now - Math.min(...cards.map((card) => Number(card.dataset.age))) : null;
    part("progress").textContent = cards
      .map((card) => {
        const { progress, stage, step, total, age } = card.dataset;
        const key = `${card.querySelector("h3").textContent.trim()} ${stage}`;
        const at = now - Number(age);
        const past = (seen.get(key) || []).filter((one) => one.step < Number(step)).slice(-19);
        seen.set(key, [...past, { step: Number(step), at }]);
        const rate = past.length && at > past[0].at ? (step - past[0].step) / (at - past[0].at) : 0;
        const speed = rate >= 1 ? `${rate.toFixed(1)} steps/s` : `${(1 / rate).toFixed(1)} s/step`;
        const left = rate && total ? `, ${spell((total - step) / rate)} left` : "";
        const name = cards.length > 1 ? `${card.querySelector("h3").textContent.trim()}: ` : "";
        return name + progress + (rate ? `, ${speed}${left}` : "");
      })
      .join("; ");
  };
  const tick = () => {
    part("fresh").textContent = heard === null ? "" : `Last line ${spell(Math.max(0, Date.now() / 1000 - heard))} ago.`;
  };
  const ask = async (address) => {
    const answer = await fetch(address, { cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    return answer.text();
  };
  const columns = (table) => [...table.tHead.rows[0].cells];
  const named = (all, key) => new Map([...all].map((one) => [key(one), one]));
  // by section and place in it: a table that is new must not take another's order
  const placed = (selector) =>
    new Map(
      [...document.querySelectorAll("section[id]")].flatMap((part) =>
        [...part.querySelectorAll(selector)].map((one, i) => [`${part.id} ${i}`, one]),
      ),
    );
  const details = () => named(document.querySelectorAll("details[data-key]"), (one) => one.dataset.key);
  const fields = () => named(document.querySelectorAll("select[id], input[id]"), (one) => one.id);
  // the section in view, and where it lies: what grows above it must not push it away
  const anchor = () => {
    const parts = [...document.querySelectorAll("section[id]")];
    const part = parts.find((one) => one.getBoundingClientRect().bottom > 0);
    return part && { id: part.id, top: part.getBoundingClientRect().top };
  };
  const keep = () => {
    const place = anchor();
    const sorted = new Map();
    for (const [key, table] of placed("table.sortable")) {
      const head = columns(table).find((one) => one.hasAttribute("aria-sort"));
      if (head) sorted.set(key, { column: head.textContent, way: head.getAttribute("aria-sort") });
    }
    const aside = new Map([...placed(".scroll")].map(([key, box]) => [key, box.scrollLeft]));
    const open = new Map([...details()].map(([key, one]) => [key, one.open]));
    const chosen = new Map([...fields()].map(([key, one]) => [key, one.type === "checkbox" ? one.checked : one.value]));
    const down = window.scrollY;
    const focus = document.activeElement && document.activeElement.id;
    return () => {
      for (const [key, one] of fields()) {
        if (!chosen.has(key)) continue;
        if (one.type === "checkbox") one.checked = chosen.get(key);
        else one.value = chosen.get(key);
      }
      for (const [key, one] of details()) if (open.has(key)) one.open = open.get(key);
      sortTables();
      readCharts();
      sortExamples();
      for (const [key, table] of placed("table.sortable")) {
        const was = sorted.get(key);
        const button = was && columns(table).find((head) => head.textContent === was.column)?.firstChild;
        if (!button) continue;
        button.click();
        if (was.way === "descending") button.click();
      }
      for (const [key, box] of placed(".scroll")) box.scrollLeft = aside.get(key) || 0;
      const part = place && document.getElementById(place.id);
      if (down === 0 || !part) window.scrollTo(0, down);
      else window.scrollBy(0, part.getBoundingClientRect().top - place.top);
      if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
    };
  };
  const look = async () => {
    try {
      if ((await ask("version")) !== version) {
        const page = new DOMParser().parseFromString(await ask("./"), "text/html");
        const restore = keep();
        for (const name of ["header", "main"]) document.querySelector(name).replaceWith(page.querySelector(name));
        document.title = page.title;
        restore();
        version = page.getElementById("follow").dataset.version;
        say("Live.", false);
        measure();
        tick();
      } else if (status.classList.contains("lost")) say("Live.", false);
    } catch {
      say("No longer updated: cwdpo report has ended, or cannot be reached.", true);
    }
    setTimeout(look, 1500);
  };
  measure();
  tick();
  setInterval(tick, 1000);
  setTimeout(look, 1500);
}
