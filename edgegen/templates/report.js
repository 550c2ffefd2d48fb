"use strict";

// Every chart stands in the page as its Vega-Lite specification. `ast` reads its expressions
// without eval, which the page's security policy forbids.
for (const place of document.querySelectorAll(".chart")) {
  const spec = JSON.parse(place.querySelector("script").textContent);
  place.drawn = vegaEmbed(place, spec, {
    actions: false, ast: true, defaultStyle: false, mode: "vega-lite", renderer: "svg",
    tooltip: { disableDefaultStyle: true },
  });
}

// A heading is a button: a click, Enter or the space bar sorts by its column, again turns it round.
for (const button of document.querySelectorAll("th > button")) {
  button.addEventListener("click", () => sort(button.parentElement));
}

function sort(head) {
  const body = head.closest("table").tBodies[0];
  const way = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", way);
  const sign = way === "ascending" ? 1 : -1;
  const rows = [...body.rows].map((row) => [row, row.cells[head.cellIndex]]);
  const number = ([, cell]) => "v" in cell.dataset ? Number(cell.dataset.v) : NaN;
  const numeric = rows.some((row) => !Number.isNaN(number(row)));
  rows.sort((a, b) => numeric ? byNumber(number(a), number(b), sign)
    : sign * a[1].textContent.localeCompare(b[1].textContent));
  body.append(...rows.map(([row]) => row));
}

// What has no number stays last, whichever way round.
function byNumber(a, b, sign) {
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
  return sign * (a - b);
}
