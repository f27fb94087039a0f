// Tables are sorted by the column whose head is clicked; without a script they stay as they are.
for (const head of document.querySelectorAll("th.sorts")) {
  head.addEventListener("click", () => {
    const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
    const down = head.getAttribute("aria-sort") !== "descending";
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = row => {
      const cell = row.cells[column];
      return cell && cell.dataset.v !== undefined ? Number(cell.dataset.v) : cell ? cell.textContent : "";
    };
    const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    const rows = [...body.rows].filter(row => !row.querySelector(".reason"));
    rows.sort((a, b) => (down ? -1 : 1) * order(value(a), value(b)));
    body.prepend(...rows);
  });
}
