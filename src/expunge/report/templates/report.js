// Nice to have: a button that switches between light and dark. Everything else works without script.
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
