
// A click on a column's head sorts by it; a second one the other way.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => {
      const cell = row.cells[head.cellIndex];
      return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
    };
    const order = (a, b) => {
      if (typeof a === typeof b) {
        return (down ? -1 : 1) * (typeof a === "number" ? a - b : a.localeCompare(b));
      }
      return typeof a === "number" ? -1 : 1; // what is not known comes last
    };
    const rows = [...body.rows].map((row) => [key(row), row]);
    rows.sort((a, b) => order(a[0], b[0]));
    body.append(...rows.map((pair) => pair[1]));
  });
}
