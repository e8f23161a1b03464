// A Plotly chart that is updated in place: zoom and hidden legend items survive live updates, which the native chart
// loses because it is mounted anew (streamlit #8782, #11424). Clicks report the run behind the nearest line.
function plotly(url) {
  window.immunelabPlotly ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = url;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => reject(new Error(`The chart library did not load from ${url}.`));
    document.head.appendChild(script);
  });
  return window.immunelabPlotly;
}

function buttons(Plotly, name) {
  const icon = Plotly.Icons.camera;
  const save = (format) => (chart) => Plotly.downloadImage(chart, { format, filename: name, scale: format === "png" ? 2 : 1 });
  return [
    { name: "png", title: "Download PNG", icon, click: save("png") },
    { name: "svg", title: "Download SVG", icon: Plotly.Icons.disk, click: save("svg") },
  ];
}

function nearest(event) {
  const top = event.event.target.ownerSVGElement?.getBoundingClientRect().top ?? 0;
  const y = event.event.clientY - top;
  const gap = (p) => Math.abs(p.yaxis._offset + p.yaxis.c2p(p.y) - y);
  return event.points.filter((p) => typeof p.customdata === "string").sort((a, b) => gap(a) - gap(b))[0];
}

export default function ({ data, parentElement, setTriggerValue }) {
  const host = parentElement.querySelector(".immunelab-figure");
  host.setAttribute("aria-label", data.alt);
  host.style.minHeight = `${data.height}px`;
  host.immunelabSend = (key) => setTriggerValue("clicked", key);
  const figure = JSON.parse(data.figure);
  plotly(data.plotly)
    .then((Plotly) => {
      if (host.immunelabGone) return;
      // Made once: a config with new functions counts as changed, and a changed config draws the chart from scratch.
      host.immunelabConfig ??= {
        responsive: true,
        displaylogo: false,
        showSendToCloud: false, // no chart leaves this machine
        displayModeBar: host.clientWidth < 640 ? "hover" : true, // narrow: it would cover the legend
        modeBarButtonsToRemove: ["toImage", "select2d", "lasso2d", "autoScale2d"],
        modeBarButtonsToAdd: buttons(Plotly, data.name),
      };
      Plotly.react(host, figure.data, { ...figure.layout, autosize: true, height: data.height }, host.immunelabConfig);
      if (host.immunelabBound) return;
      host.immunelabBound = true;
      host.on("plotly_click", (event) => {
        const point = nearest(event);
        if (point) host.immunelabSend(point.customdata);
      });
    })
    .catch((error) => (host.textContent = error.message));
  return () => {
    host.immunelabGone = true;
    window.Plotly?.purge(host);
  };
}
