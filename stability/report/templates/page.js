"use strict";
// Optional script: the page works without it. It adds sorting and filtering of tables, and enlargement of figures.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const key = (row) => row.cells[index].dataset.value ?? "";
      const numeric = head.classList.contains("number");
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (numeric ? Number(x) - Number(y) : x.localeCompare(y));
      };
      body.append(...rows.sort(order));
    });
  });
  const filter = document.createElement("input");
  filter.type = "search";
  filter.className = "filter";
  filter.placeholder = "Filter rows, for example: " + rows[0].cells[0].textContent.trim();
  filter.setAttribute("aria-label", "Filter the rows of this table");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  table.parentElement.before(filter);
}

const dialog = document.createElement("dialog");
let home = null;
document.body.append(dialog);
dialog.addEventListener("click", () => dialog.close());
// Move the plot instead of copying it: two copies would have the same ids.
dialog.addEventListener("close", () => home.prepend(dialog.firstElementChild));
for (const plot of document.querySelectorAll("figure .plot")) {
  const enlarge = () => {
    if (dialog.open) return;
    home = plot.parentElement;
    dialog.setAttribute("aria-label", plot.dataset.title);
    dialog.append(plot);
    dialog.showModal();
  };
  const button = document.createElement("button");
  button.type = "button";
  button.className = "data";
  button.textContent = "Enlarge";
  button.addEventListener("click", enlarge);
  plot.addEventListener("click", enlarge);
  plot.parentElement.parentElement.querySelector("figcaption").append(" ", button);
}
