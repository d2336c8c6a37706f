// Light, dark, or as the system says; the choice is kept.

const KEY = "jaxllm.theme";
const NAMES = { auto: "System theme", light: "Light theme", dark: "Dark theme" };
const ORDER = ["auto", "light", "dark"];

function stored() {
  try {
    const name = localStorage.getItem(KEY);
    return ORDER.includes(name) ? name : "auto";
  } catch {
    return "auto";
  }
}

function apply(name) {
  document.documentElement.dataset.theme = name;
}

apply(stored());

document.addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("theme");
  const show = (name) => {
    apply(name);
    button.setAttribute("aria-label", `${NAMES[name]}; switch`);
    button.title = NAMES[name];
  };
  show(stored());
  button.addEventListener("click", () => {
    const next = ORDER[(ORDER.indexOf(document.documentElement.dataset.theme) + 1) % ORDER.length];
    try {
      localStorage.setItem(KEY, next);
    } catch { /* kept for this page alone */ }
    show(next);
  });
});
