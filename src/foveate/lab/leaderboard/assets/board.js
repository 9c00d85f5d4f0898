"use strict";
// Sorts by a column, and shows the rows that are chosen. Without this script all rows are there, in their first order.
(() => {
  const board = document.querySelector("#board"), body = board.tBodies[0], rows = [...body.rows];
  const filters = document.querySelector("#filters"), selects = [...filters.querySelectorAll("select")];
  const heads = [...board.tHead.rows[0].cells];

  const show = () => {
    let shown = 0;
    for (const row of rows) {
      // What has no budget (the stock model, a method without a dial) belongs to every cost and budget.
      const fits = ({ name, value }) => !value || row.dataset[name].split(" ").includes(value) ||
        (["by", "budget"].includes(name) && !row.dataset[name]);
      row.hidden = !selects.every(fits);
      shown += !row.hidden;
    }
    document.querySelector("#shown").textContent = `${shown} of ${rows.length} rows`;
  };

  const order = (column, down) => {
    const value = (row) => row.cells[column].dataset.sort;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined); // empty cells last, either way
      const apart = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -apart : apart;
    };
    body.append(...[...rows].sort(compare));
  };

  for (const [column, head] of heads.entries()) {
    if (!rows.some((row) => row.cells[column].dataset.sort !== undefined)) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const words = rows.some((row) => isNaN(row.cells[column].dataset.sort ?? 0)), was = head.getAttribute("aria-sort");
      const down = was ? was === "ascending" : !words && column > 0; // numbers begin with the largest, ranks with the first
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      order(column, down);
    });
  }
  filters.addEventListener("change", show);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.hidden = false;
  show();
})();
