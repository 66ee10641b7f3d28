"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Colors of the page, by name; scales from three of them.
  function colors() {
    const style = getComputedStyle(root);
    const of = (name) => style.getPropertyValue(name).trim();
    const scales = {
      "--sequential": [[0, of("--low")], [0.5, of("--half")], [1, of("--high")]],
      "--diverging": [[0, of("--c1")], [0.5, of("--middle")], [1, of("--c0")]],
    };
    const resolve = (value) => {
      if (typeof value === "string" && value.startsWith("--")) return scales[value] || of(value);
      if (Array.isArray(value)) return value.map(resolve);
      if (value && typeof value === "object") {
        return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolve(v)]));
      }
      return value;
    };
    return { of, resolve };
  }

  function axis(given, of) {
    return {
      gridcolor: of("--grid"), linecolor: of("--line"), zerolinecolor: of("--line"),
      tickfont: { size: 12, color: of("--soft") }, automargin: true, ...given,
      title: { standoff: 8, font: { size: 13, color: of("--soft") }, ...(given.title || {}) },
    };
  }

  function drawn(figure, width) {
    const { of, resolve } = colors();
    const layout = resolve(figure.layout);
    const several = figure.data.filter((t) => t.showlegend !== false).length > 1;
    const base = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
      margin: { l: 44, r: 12, t: 12, b: 40 }, showlegend: several, hovermode: "closest",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: of("--ink") },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 12 } },
      hoverlabel: { bgcolor: of("--card"), bordercolor: of("--line"), font: { color: of("--ink") } },
    };
    if (width) Object.assign(base, { width, autosize: false });
    const legend = { ...base.legend, ...(layout.legend || {}) };
    const both = { ...base, ...layout, legend };
    both.xaxis = axis(layout.xaxis || {}, of);
    both.yaxis = axis(layout.yaxis || {}, of);
    return [resolve(figure.data), both];
  }

  function draw(widthOf) {
    const jobs = Object.entries(figures).map(([id, figure]) => {
      const place = document.getElementById(id);
      const [data, layout] = drawn(figure, widthOf && widthOf(place));
      return Plotly.react(place, data, layout, { displayModeBar: false, responsive: true });
    });
    return Promise.all(jobs).then(() => { root.dataset.drawn = String(jobs.length); });
  }

  draw();
  dark.addEventListener("change", () => draw());
  // Paper is white, and narrower than the window.
  addEventListener("beforeprint", () => {
    root.classList.add("printing");
    document.querySelectorAll("details").forEach((d) => { d.open = true; });
    const columns = { three: 215, two: 325, one: 480 };
    const grid = (place) => place.closest(".grid")?.classList[1];
    draw((place) => columns[grid(place)] || 670);
  });
  addEventListener("afterprint", () => { root.classList.remove("printing"); draw(); });
})();
