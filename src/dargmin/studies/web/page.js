"use strict";
// The theme is the reader's system's until the button says otherwise; figures are drawn anew.
const root = document.documentElement;
const system = window.matchMedia("(prefers-color-scheme: dark)");
let theme = system.matches ? "dark" : "light";
const views = {};

async function draw(element) {
  const name = element.dataset.study;
  const config = structuredClone(THEMES[theme]);
  config.legend.columns = window.innerWidth < 640 ? 1 : 3;
  const old = views[name];
  const state = old ? old.view.getState({ signals: (n) => n.startsWith("pick_"), data: () => false })
    : null;
  if (old) old.finalize();
  views[name] = await vegaEmbed(element, FIGURES[name], { config, actions: false, renderer: "svg" });
  if (state) {
    for (const [signal, value] of Object.entries(state.signals)) {
      views[name].view.signal(signal, value);
    }
    await views[name].view.runAsync();
  }
  element.dataset.drawn = theme;
}

async function drawAll() {
  root.dataset.theme = theme;
  for (const element of document.querySelectorAll(".chart")) await draw(element);
}

document.getElementById("theme").addEventListener("click", () => {
  theme = theme === "dark" ? "light" : "dark";
  drawAll();
});
let narrow = window.innerWidth < 640;
window.addEventListener("resize", () => {
  if (narrow === window.innerWidth < 640) return; // the figures follow by themselves
  narrow = window.innerWidth < 640; // but for their legends
  drawAll();
});
system.addEventListener("change", () => {
  theme = system.matches ? "dark" : "light";
  drawAll();
});
drawAll();
