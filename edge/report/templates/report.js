const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 640px)");

// On a phone the names of a timeline's lines stand in two columns: there is room for no more than two rows of them.
const inColumns = (legend) => ({ ...legend, entrywidthmode: "fraction", entrywidth: 0.5, font: { size: 10 } });

// A figure says what is in it; the page's own style gives it fonts and colours, and again when the theme changes.
function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const axis = (own) => ({ ...own, gridcolor: color("--line"), linecolor: color("--line"), tickcolor: color("--line"),
    title: { ...own.title, font: { size: 13, color: color("--soft") } } });
  const change = (name, how) => Object.fromEntries(
    Object.keys(layout).filter((key) => name.test(key)).map((key) => [key, how(layout[key])]));
  const columns = narrow.matches && layout.meta?.timeline ? change(/^legend\d*$/, inColumns) : {};
  return { ...layout, ...change(/^[xy]axis\d*$/, axis), ...columns, autosize: true,
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
narrow.addEventListener("change", draw);
