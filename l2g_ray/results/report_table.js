// Sorting and filtering of the leaderboard, and copying of options. Without scripts the page is whole, only these are not there.
(function () {
  "use strict";
  document.documentElement.classList.add("js");
  var table = document.getElementById("board");
  var body = table.tBodies[0];
  var rows = Array.prototype.slice.call(body.rows);
  var headings = Array.prototype.slice.call(table.tHead.rows[0].cells);

  function compare(key, isNumber, sign) {
    return function (one, other) {
      var a = one.getAttribute("data-" + key), b = other.getAttribute("data-" + key);
      // What is not known stays at the end, whatever the order.
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (isNumber ? parseFloat(a) - parseFloat(b) : a.localeCompare(b));
    };
  }

  headings.forEach(function (heading) {
    var button = heading.querySelector("button");
    button.addEventListener("click", function () {
      var isNumber = button.hasAttribute("data-number");
      var before = heading.getAttribute("aria-sort");
      // Scores begin with the highest, names with A.
      var first = isNumber ? "descending" : "ascending", second = isNumber ? "ascending" : "descending";
      var order = before === first ? second : first;
      headings.forEach(function (each) { each.removeAttribute("aria-sort"); });
      heading.setAttribute("aria-sort", order);
      rows.sort(compare(button.getAttribute("data-key"), isNumber, order === "ascending" ? 1 : -1));
      rows.forEach(function (row) { body.appendChild(row); });
    });
  });

  Array.prototype.forEach.call(document.querySelectorAll("[data-copy]"), function (button) {
    button.addEventListener("click", function () {
      var source = document.getElementById(button.getAttribute("data-copy"));
      var done = document.getElementById(button.getAttribute("data-copy") + "-done");
      function say(copied) { done.textContent = copied ? "Copied." : "Selected: copy it with your keyboard."; }
      function select() {
        // Some browsers let a page from a file only select.
        var range = document.createRange();
        range.selectNodeContents(source);
        var selection = window.getSelection();
        selection.removeAllRanges();
        selection.addRange(range);
        say(document.execCommand && document.execCommand("copy"));
      }
      if (navigator.clipboard) navigator.clipboard.writeText(source.textContent).then(function () { say(true); }, select);
      else select();
    });
  });

  var text = document.getElementById("filter-text"), kind = document.getElementById("filter-kind");
  if (!text) return;
  var note = document.getElementById("filter-told");
  function filter() {
    var wanted = text.value.trim().toLowerCase(), shown = 0;
    rows.forEach(function (row) {
      var words = (row.getAttribute("data-task") + " " + row.getAttribute("data-backbone")).toLowerCase();
      row.hidden = words.indexOf(wanted) < 0 || (kind.value !== "" && row.getAttribute("data-kind") !== kind.value);
      shown += row.hidden ? 0 : 1;
    });
    note.textContent = shown === rows.length ? "" : shown + " of " + rows.length + " tasks";
  }
  text.addEventListener("input", filter);
  kind.addEventListener("change", filter);
}());
