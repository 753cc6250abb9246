const dark = matchMedia("(prefers-color-scheme: dark)");

// A figure says what is in it; the page's own style gives it fonts and colours, and again when the theme changes.
function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const axis = (own) => ({ ...own, gridcolor: color("--line"), linecolor: color("--line"), tickcolor: color("--line"),
    title: { ...own.title, font: { size: 13, color: color("--soft") } } });
  const axes = Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key)).map((key) => [key, axis(layout[key])]);
  return { ...layout, ...Object.fromEntries(axes), autosize: true,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: color("--ink") },
    hoverlabel: { font: { family: getComputedStyle(document.body).fontFamily } } };
}

function draw() {
  for (const figure of FIGURES) {
    Plotly.react(figure.name, figure.data, themed(structuredClone(figure.layout)), { displayModeBar: false, responsive: true });
  }
}

draw();
dark.addEventListener("change", draw);
