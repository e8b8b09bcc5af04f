"use strict";
function sortTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const key = (row, column) => {
      const cell = row.cells[column];
      if (column === 0) return cell.textContent.trim();
      return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
    };
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
        const rows = [...body.rows].map((row) => [key(row, column), row]);
        rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b)));
        body.append(...rows.map(([, row]) => row));
      });
    });
  }
}
sortTables();
function readCharts() {
  const short = (value) => String(Number(value.toPrecision(3)));
  for (const svg of document.querySelectorAll(".chart[data-frame]")) {
    const readout = svg.parentElement.querySelector(".readout");
    if (!readout) continue;
    const [x0, x1, y0, y1, left, right, top, bottom] = svg.dataset.frame.split(" ").map(Number);
    let lines, places, guide, at;
    // from the drawn curves back to numbers: the page stays as small as its pictures
    const prepare = () => {
      const byName = new Map();
      for (const path of svg.querySelectorAll("path.line")) {
        const name = path.querySelector("title")?.textContent ?? "";
        const points = [...path.getAttribute("d").matchAll(/[ML]([-\d.]+) ([-\d.]+)/g)].map((m) => [+m[1], +m[2]]);
        const known = byName.get(name) ?? { points: [] };
        known.points.push(...points);
        byName.set(name, known);
      }
      lines = [...byName];
      places = [...new Set(lines.flatMap(([, line]) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
      guide = svg.querySelector("path").cloneNode(false);
      guide.removeAttribute("d");
      guide.setAttribute("class", "guide");
      svg.append(guide);
    };
    const show = (place) => {
      if (!lines) prepare();
      if (!places.length) return;
      at = places.reduce((best, x, i) => (Math.abs(x - place) < Math.abs(places[best] - place) ? i : best), 0);
      const x = places[at];
      guide.setAttribute("d", `M${x} ${top}V${bottom}`);
      const step = Math.round(x0 + ((x - left) / (right - left)) * (x1 - x0));
      const said = lines.map(([name, line]) => {
        const near = line.points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
        if (Math.abs(near[0] - x) > (right - left) / 20) return `${name} -`;
        return `${name} ${short(y0 + ((bottom - near[1]) / (bottom - top)) * (y1 - y0))}`;
      });
      readout.textContent = `Step ${step}: ${said.join(", ")}`;
      readout.hidden = false;
    };
    const hide = () => {
      if (guide) guide.removeAttribute("d");
      readout.hidden = true;
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      show(((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width);
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("focus", () => show(right));
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (move === undefined || !lines) return;
      event.preventDefault();
      show(places[Math.max(0, Math.min(places.length - 1, at + move))]);
    });
  }
}
readCharts();
