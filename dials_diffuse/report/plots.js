"use strict";
/* Plots by plotly, and the numbers of each as a table. */

(() => {
  const { element, format } = diffuse;

  /* Rows of numbers of a trace, for people who cannot see the plot. */
  function numbers(trace) {
    const axis = trace.x || [];
    const rows = trace.z
      ? trace.z.map((row, i) => [trace.y ? trace.y[i] : i, ...row])
      : axis.map((x, i) => [x, trace.y[i], ...(trace.text ? [trace.text[i]] : [])]);
    const heads = trace.z ? ["", ...(trace.x || trace.z[0].map((_, i) => i))] : ["x", trace.name || "y"];
    const table = element("table", {}, element("caption", {}, trace.name || ""));
    table.append(element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, format(text)))));
    for (const row of rows) table.append(element("tr", {}, ...row.map((x) => element("td", {}, format(x)))));
    return table;
  }

  function layout(plot, narrow) {
    const common = {
      font: { family: "system-ui, sans-serif", size: narrow ? 11 : 13 },
      margin: { l: narrow ? 50 : 62, r: 14, t: 8, b: 46 },
      colorway: data.colours,
      hovermode: "closest",
      showlegend: plot.traces.filter((trace) => trace.showlegend !== false && !trace.z).length > 1,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      plot_bgcolor: "#fff",
    };
    const axis = { automargin: true, linecolor: "#888", gridcolor: "#e6e6e6", zerolinecolor: "#bbb", exponentformat: "power" };
    const result = { ...common, ...plot.layout };
    for (const name of ["xaxis", "yaxis", "yaxis2"]) {
      if (name !== "yaxis2" || plot.layout.yaxis2) result[name] = { ...axis, ...(plot.layout[name] || {}) };
    }
    if (plot.layout.yaxis2) result.margin = { ...common.margin, r: 60 };
    return result;
  }

  const data = diffuse.json("page-data");

  async function draw() {
    const packed = document.getElementById("plotly").textContent.trim();
    let possible = packed !== "";
    if (possible) {
      try {
        const source = new TextDecoder().decode(await diffuse.unpack("plotly"));
        document.head.append(element("script", {}, source));
      } catch (error) {
        possible = false;
      }
    }
    for (const [key, plot] of Object.entries(data.plots)) {
      const figure = document.getElementById(key);
      const details = figure.querySelector("details");
      const fill = () => {
        if (details.open && details.children.length === 1) {
          details.append(element("div", { tabindex: "0" }, ...plot.traces.map(numbers)));
        }
      };
      details.addEventListener("toggle", fill);
      if (possible) {
        const place = figure.querySelector(".drawing");
        await Plotly.newPlot(place, plot.traces, layout(plot, place.clientWidth < 500), {
          responsive: true,
          displaylogo: false,
          modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
        });
        await new Promise((done) => setTimeout(done)); // the page can be used meanwhile
      } else {
        figure.classList.add("bare");
        details.open = true;
        fill();
      }
    }
    return possible;
  }

  diffuse.plots = draw();
})();
