// A click on a column's head sorts the rows by it, smallest first; another click turns them round.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const order = row.cells[column].dataset.order;
    return order === undefined ? NaN : Number(order);
  };
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("th"), column = heads.indexOf(head);
    if (column < 1) return;
    const sign = head.ariaSort === "ascending" ? -1 : 1;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.ariaSort = sign > 0 ? "ascending" : "descending";
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
      return sign * (x - y);
    });
    body.append(...rows);
  });
}
