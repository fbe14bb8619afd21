"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const format = new Intl.NumberFormat("en");

  // Columns of a finding and of a file, as html.py writes them.
  const [SEVERITY, PATH, LINE, COLUMN, RULE, MESSAGE, TOOL, NEW] = [0, 1, 2, 3, 4, 5, 6, 7];
  const [F_PATH, F_LINES, F_FUNCTIONS, F_COMPLEXITY, F_WORST, F_ERRORS, F_WARNINGS, F_NOTES] = [0, 1, 2, 3, 4, 5, 6, 7];
  const BANDS = [5, 10, 20, 30, 50];

  function element(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // Text with `code`: the only markup a message can have, made without parsing HTML.
  function prose(text) {
    const node = document.createDocumentFragment();
    text.split(/`([^`]+)`/).forEach((part, index) => node.append(index % 2 ? element("code", "", part) : part));
    return node;
  }

  function path(text) {
    const node = element("span", "path");
    text.split("/").forEach((part, index) => {
      if (index) node.append("/", document.createElement("wbr"));
      node.append(part);
    });
    return node;
  }

  // A table that shows one page of its rows, so that 100,000 of them cost nothing.
  class PagedTable {
    constructor(name, columns, renderRow, pageSize) {
      this.table = byId(name);
      this.pager = byId(`${name}-pager`);
      this.columns = columns;
      this.renderRow = renderRow;
      this.pageSize = pageSize;
      this.page = 0;
      this.rows = [];
      this.sortedBy = null;
      this.descending = false;
      this.head();
    }

    head() {
      const row = element("tr");
      this.columns.forEach((column) => {
        const cell = element("th", column.className);
        cell.scope = "col";
        if (column.key) {
          const button = element("button", "", column.title);
          button.type = "button";
          button.addEventListener("click", () => this.sort(column, this.sortedBy === column ? !this.descending : Boolean(column.descending)));
          cell.append(button);
        } else {
          cell.textContent = column.title;
        }
        column.cell = cell;
        row.append(cell);
      });
      this.table.tHead.replaceChildren(row);
    }

    show(rows) {
      this.rows = rows;
      this.page = 0;
      this.order();
      this.draw();
    }

    sort(column, descending) {
      this.sortedBy = column;
      this.descending = descending;
      this.columns.forEach((other) => other.cell.removeAttribute("aria-sort"));
      column.cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
      this.page = 0;
      this.order();
      this.draw();
    }

    order() {
      const { key } = this.sortedBy;
      const sign = this.descending ? -1 : 1;
      this.rows = [...this.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        return x < y ? -sign : x > y ? sign : 0;
      });
    }

    draw(pageSize = this.pageSize) {
      const start = this.page * this.pageSize;
      const shown = this.rows.slice(start, start + pageSize);
      this.table.tBodies[0].replaceChildren(...shown.map(this.renderRow));
      this.controls(start, shown.length);
    }

    controls(start, count) {
      if (this.rows.length <= count) return this.pager.replaceChildren();
      const step = (label, by, possible) => {
        const button = element("button", "ghost", label);
        button.type = "button";
        button.disabled = !possible;
        button.addEventListener("click", () => {
          this.page += by;
          this.draw();
        });
        return button;
      };
      const range = `${format.format(start + 1)} – ${format.format(start + count)} of ${format.format(this.rows.length)}`;
      this.pager.replaceChildren(
        element("span", "", range),
        step("Previous", -1, this.page > 0),
        step("Next", 1, start + count < this.rows.length),
      );
    }
  }

  // ---------------------------------------------------------------- files

  const total = (file) => file[F_ERRORS] + file[F_WARNINGS] + file[F_NOTES];
  const most = Math.max(1, ...data.files.map(total));

  function fileRow(file) {
    const row = element("tr");
    const name = element("td");
    const link = element("button", "link");
    link.type = "button";
    link.append(path(data.paths[file[F_PATH]]));
    link.addEventListener("click", () => search(data.paths[file[F_PATH]]));
    name.append(link);
    const heat = element("td", "right");
    const band = BANDS.filter((limit) => file[F_COMPLEXITY] > limit).length;
    heat.append(element("span", `heat c${band}`, format.format(file[F_COMPLEXITY])));
    const worst = element("td", "optional");
    worst.append(element("code", "", file[F_WORST]));
    const bar = element("td", "optional");
    const mini = element("div", "mini");
    mini.setAttribute("aria-hidden", "true");
    [F_ERRORS, F_WARNINGS, F_NOTES].forEach((column, index) => {
      if (!file[column]) return;
      const part = element("i", data.severities[index]);
      part.style.width = `${(100 * file[column]) / most}%`;
      mini.append(part);
    });
    bar.append(mini);
    row.append(
      name,
      element("td", "right", format.format(file[F_LINES])),
      element("td", "right optional", format.format(file[F_FUNCTIONS])),
      heat,
      worst,
      element("td", "right optional", format.format(file[F_ERRORS])),
      element("td", "right", format.format(total(file))),
      bar,
    );
    return row;
  }

  const fileColumns = [
    { title: "File", key: (file) => data.paths[file[F_PATH]] },
    { title: "Lines", key: (file) => file[F_LINES], className: "right", descending: true },
    { title: "Functions", key: (file) => file[F_FUNCTIONS], className: "right optional", descending: true },
    { title: "Complexity", key: (file) => file[F_COMPLEXITY], className: "right", descending: true },
    { title: "Most complex function", className: "optional" },
    { title: "Errors", key: (file) => file[F_ERRORS], className: "right optional", descending: true },
    { title: "Findings", key: total, className: "right", descending: true },
    { title: "", className: "optional" },
  ];
  const fileTable = new PagedTable("files", fileColumns, fileRow, 15);
  fileTable.sort(fileColumns[3], true);
  fileTable.show(data.files);

  // ---------------------------------------------------------------- findings

  function findingRow(finding) {
    const row = element("tr");
    const severity = element("td");
    severity.append(element("span", `chip ${data.severities[finding[SEVERITY]]}`, data.severities[finding[SEVERITY]]));
    if (finding[NEW]) severity.append(" ", element("span", "chip new", "new"));
    const [name, why, url] = data.rules[finding[RULE]];
    const rule = element("td");
    const label = element(url ? "a" : "span", "chip", name);
    label.title = why;
    if (url) {
      label.href = url;
      label.rel = "noreferrer";
    }
    rule.append(label);
    const where = element("td", "where");
    where.append(path(data.paths[finding[PATH]]), element("span", "line", `:${finding[LINE]}:${finding[COLUMN]}`));
    const message = element("td", "message");
    message.append(prose(finding[MESSAGE]));
    row.append(severity, rule, element("td", "muted", finding[TOOL]), where, message);
    return row;
  }

  const findingColumns = [
    { title: "Severity", key: (finding) => finding[SEVERITY] },
    { title: "Rule", key: (finding) => finding[RULE] },
    { title: "Tool", key: (finding) => finding[TOOL] },
    { title: "Place", key: (finding) => `${data.paths[finding[PATH]]}\u0000${String(finding[LINE]).padStart(8, "0")}` },
    { title: "What is wrong" },
  ];
  const findingTable = new PagedTable("findings", findingColumns, findingRow, 100);
  findingTable.sort(findingColumns[0], false);

  // Lower-cased once: typing in the search box then only compares strings.
  const haystacks = data.findings.map((finding) =>
    `${data.paths[finding[PATH]]}:${finding[LINE]} ${data.rules[finding[RULE]][0]} ${finding[MESSAGE]}`.toLowerCase(),
  );
  const ruleCounts = new Array(data.rules.length).fill(0);
  data.findings.forEach((finding) => (ruleCounts[finding[RULE]] += 1));
  data.rules.forEach(([name], index) => {
    const option = element("option", "", `${name} (${format.format(ruleCounts[index])})`);
    option.value = String(index);
    byId("rule").append(option);
  });

  function filter() {
    const words = byId("query").value.toLowerCase().split(/\s+/).filter(Boolean);
    const rule = byId("rule").value;
    const severities = new Set([...document.querySelectorAll("input[name=severity]:checked")].map((box) => Number(box.value)));
    const onlyNew = Boolean(byId("only-new") && byId("only-new").checked);
    const shown = data.findings.filter(
      (finding, index) =>
        severities.has(finding[SEVERITY]) &&
        (rule === "" || finding[RULE] === Number(rule)) &&
        (!onlyNew || finding[NEW]) &&
        words.every((word) => haystacks[index].includes(word)),
    );
    byId("shown").textContent = `${format.format(shown.length)} of ${format.format(data.findings.length)} findings`;
    findingTable.show(shown);
  }

  function search(query, rule = "") {
    byId("query").value = query;
    byId("rule").value = rule;
    document.querySelectorAll("input[name=severity]").forEach((box) => (box.checked = true));
    filter();
    byId("findings-title").scrollIntoView();
    byId("query").focus({ preventScroll: true });
  }

  byId("filters").addEventListener("input", filter);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  filter();

  document.querySelectorAll("[data-rule]").forEach((button) =>
    button.addEventListener("click", () => search("", String(data.rules.findIndex(([name]) => name === button.dataset.rule)))),
  );
  const map = document.querySelector(".map");
  if (map) {
    map.addEventListener("click", (event) => {
      const cell = event.target.closest("[data-path]");
      if (cell) search(cell.dataset.path);
    });
  }

  // ---------------------------------------------------------------- paper and theme

  // On paper there is nothing to click: print the beginning of what is filtered now.
  addEventListener("beforeprint", () => findingTable.draw(500));
  addEventListener("afterprint", () => findingTable.draw());

  const theme = byId("theme");
  const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => (theme.textContent = dark() ? "Light" : "Dark");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    name();
  });
  name();
})();
