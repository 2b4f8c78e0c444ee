"use strict";
// Draws the plots of a report into its <figure class="plot"> elements, in their order, with uPlot.
(() => {
  const plots = JSON.parse(document.getElementById("data").textContent).plots;
  const figures = [...document.querySelectorAll("figure.plot")];
  const SERIES = 8, HEIGHT = 260;
  const color = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const number = value => value == null ? "–" : Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3)
    ? value.toExponential(3) : value.toLocaleString("en", { maximumSignificantDigits: 5 });
  const sync = uPlot.sync("steps");

  function options(plot, width) {
    const axis = {
      stroke: () => color("--faint"), grid: { stroke: () => color("--line"), width: 1 },
      ticks: { stroke: () => color("--line"), width: 1 }, font: "12px system-ui, sans-serif",
    };
    const values = plot.curves.flatMap(one => one.values).filter(value => value != null);
    const least = Math.min(...values), log = plot.log && least > 0 && Math.max(...values) > 20 * least;
    return {
      width, height: HEIGHT, cursor: { sync: { key: sync.key } }, legend: { live: true },
      scales: { x: { time: false }, y: log ? { distr: 3 } : {} },
      axes: [
        { ...axis, values: (u, splits) => splits.map(one => Number.isInteger(one) ? one.toLocaleString("en") : "") },
        { ...axis, size: 76, values: (u, splits) => splits.map(one => one == null ? "" : number(one)) },
      ],
      series: [
        { label: "step", value: (u, step) => step == null ? "–" : step.toLocaleString("en") },
        ...plot.curves.map((one, i) => ({
          label: one.name, spanGaps: true, width: 1.75, stroke: () => color(`--series-${i % SERIES}`),
          dash: i >= SERIES ? [6, 4] : undefined, value: (u, value) => number(value),
          points: { show: one.values.filter(value => value != null).length < 40, size: 5 },
        })),
      ],
    };
  }

  const drawn = plots.map((plot, i) => {
    const place = figures[i].querySelector(".canvas");
    const chart = new uPlot(options(plot, place.clientWidth), [plot.steps, ...plot.curves.map(one => one.values)], place);
    new ResizeObserver(() => {
      if (place.clientWidth && place.clientWidth !== chart.width) chart.setSize({ width: place.clientWidth, height: HEIGHT });
    }).observe(place);
    figures[i].querySelector("details").addEventListener("toggle", event => fill(event.target, plot), { once: true });
    return chart;
  });

  // The table behind a plot, for who cannot see it: made when it is opened, so that the figures stand in the page once.
  function fill(details, plot) {
    const table = details.querySelector("table");
    const row = (cells, tag) => {
      const line = table.insertRow();
      cells.forEach((cell, i) => {
        const made = line.appendChild(document.createElement(i && tag === "td" ? "td" : "th"));
        made.scope = tag === "th" ? "col" : "row";
        made.className = "number";
        made.textContent = cell;
      });
    };
    row(["step", ...plot.curves.map(one => one.name)], "th");
    plot.steps.forEach((step, i) => row([step, ...plot.curves.map(one => one.values[i] ?? "–")], "td"));
  }

  // Colours of a canvas are those of the moment in which it was drawn.
  for (const query of ["(prefers-color-scheme: dark)", "print"])
    matchMedia(query).addEventListener("change", () => drawn.forEach(chart => chart.redraw(false, true)));
  window.plots = drawn;
})();
