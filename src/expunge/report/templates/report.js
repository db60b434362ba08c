// Nice to have: a button that switches between light and dark, and arrow keys inside the attack tables. Everything
// else works without script.
(function () {
  var root = document.documentElement, bar = document.querySelector("nav");
  if (!bar || !window.matchMedia) { return; }
  var dark = window.matchMedia("(prefers-color-scheme: dark)").matches, button = document.createElement("button");
  button.type = "button";
  function name() { button.textContent = dark ? "Light" : "Dark"; }
  button.addEventListener("click", function () {
    dark = !dark;
    root.setAttribute("data-theme", dark ? "dark" : "light");
    name();
  });
  name();
  bar.appendChild(button);
})();
(function () {
  function walk(table) {
    var rows = Array.prototype.map.call(table.querySelectorAll("tbody tr"), function (row) {
      return Array.prototype.slice.call(row.querySelectorAll("td"));
    }).filter(function (row) { return row.length; });
    if (!rows.length) { return; }
    var box = table.closest(".box"), told = document.createElement("p"), at = null;
    told.className = "detail";
    told.setAttribute("aria-live", "polite");
    told.textContent = "Arrow keys move from cell to cell; what a cell says is told here.";
    box.insertAdjacentElement("afterend", told);
    table.querySelectorAll("td a").forEach(function (link) { link.tabIndex = -1; });
    function place(cell) {
      for (var r = 0; r < rows.length; r += 1) {
        var c = rows[r].indexOf(cell);
        if (c >= 0) { return [r, c]; }
      }
      return null;
    }
    function say(cell) {
      if (at) { at.tabIndex = -1; }
      at = cell;
      at.tabIndex = 0;
      told.textContent = cell.title || cell.parentNode.querySelector("th").innerText.replace(/\s+/g, " ") + ": " + cell.innerText;
    }
    rows.forEach(function (row) { row.forEach(function (cell) { cell.tabIndex = -1; }); });
    at = rows[0][0];
    at.tabIndex = 0;
    table.addEventListener("focusin", function (event) {
      var cell = event.target.closest("td");
      if (cell) { say(cell); }
    });
    table.addEventListener("click", function (event) {
      var cell = event.target.closest("td");
      if (cell && !event.target.closest("a")) { cell.focus(); }
    });
    table.addEventListener("keydown", function (event) {
      var cell = event.target.closest("td"), here = cell && place(cell);
      if (!here || event.ctrlKey || event.altKey || event.metaKey) { return; }
      var r = here[0], c = here[1], last = rows.length - 1;
      if (event.key === "ArrowDown") { r = Math.min(last, r + 1); }
      else if (event.key === "ArrowUp") { r = Math.max(0, r - 1); }
      else if (event.key === "ArrowRight") { c += 1; }
      else if (event.key === "ArrowLeft") { c = Math.max(0, c - 1); }
      else if (event.key === "Home") { c = 0; }
      else if (event.key === "End") { c = rows[r].length - 1; }
      else if (event.key === "PageDown") { r = Math.min(last, r + 8); }
      else if (event.key === "PageUp") { r = Math.max(0, r - 8); }
      else if (event.key === "Enter" && cell.querySelector("a")) { cell.querySelector("a").click(); return; }
      else { return; }
      event.preventDefault();
      rows[r][Math.min(c, rows[r].length - 1)].focus();
    });
  }
  document.querySelectorAll("table.cross").forEach(walk);
  window.addEventListener("beforeprint", function () {  // for browsers that cannot show closed parts by style alone
    document.querySelectorAll("details:not([open])").forEach(function (part) { part.open = true; part.dataset.shut = ""; });
  });
  window.addEventListener("afterprint", function () {
    document.querySelectorAll("details[data-shut]").forEach(function (part) { part.open = false; delete part.dataset.shut; });
  });
})();
