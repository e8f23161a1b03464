// A Plotly chart that is updated in place: zoom and hidden legend items survive live updates, which the native chart
// loses because it is mounted anew (streamlit #8782, #11424). Clicks report the run behind the nearest line, a box or
// lasso the runs inside; arrow keys walk along the points or cells; zoom and hidden lines go into the page's address.
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

// What a point stands for: a run, or "defense|x" for several runs. It is the point's own data, or the last of them.
function said(own) {
  const last = Array.isArray(own) ? own[own.length - 1] : own;
  return typeof last === "string" && last ? last : undefined;
}

function nearest(event) {
  const top = event.event.target.ownerSVGElement?.getBoundingClientRect().top ?? 0;
  const y = event.event.clientY - top;
  const gap = (p) => Math.abs(p.yaxis._offset + p.yaxis.c2p(p.y) - y);
  return event.points.filter((p) => said(p.customdata)).sort((a, b) => gap(a) - gap(b))[0];
}

// --- what the reader has zoomed to and hidden, as the address holds it

function recall(text, name) {
  try {
    const view = JSON.parse(text);
    if (view.of === name) return { of: name, axes: view.axes ?? {}, off: view.off ?? [] };
  } catch {
    // a damaged link shows the whole figure
  }
  return { of: name, axes: {}, off: [] };
}

function text(view) {
  return Object.keys(view.axes).length || view.off.length ? JSON.stringify(view) : "";
}

function apply(view, figure) {
  for (const [axis, range] of Object.entries(view.axes)) {
    const good = /^[xy]axis\d*$/.test(axis) && Array.isArray(range) && range.length === 2 && range.every(Number.isFinite);
    if (good) figure.layout[axis] = { ...figure.layout[axis], range: [...range], autorange: false };
  }
  for (const trace of figure.data) if (view.off.includes(trace.legendgroup)) trace.visible = "legendonly";
}

function remember(host, change) {
  const view = host.immunelabView;
  const short = (value) => Number(Number(value).toPrecision(5));
  for (const [key, value] of Object.entries(change ?? {})) {
    const [, axis, part, end] = key.match(/^([xy]axis\d*)\.(range|autorange)(?:\[(\d)\])?$/) ?? [];
    if (!axis) continue;
    if (part === "autorange") delete view.axes[axis];
    else if (end === undefined) view.axes[axis] = value.map(short);
    else (view.axes[axis] ??= [0, 0])[Number(end)] = short(value);
  }
  for (const [axis, range] of Object.entries(view.axes)) {
    const first = host.immunelabFirst[axis]; // back where the figure itself stands: nothing to remember
    if (first && first.every((value, i) => short(value) === range[i])) delete view.axes[axis];
  }
  view.off = [...new Set(host.data.filter((t) => t.visible === "legendonly").map((t) => t.legendgroup))];
  const link = text(view);
  if (link === host.immunelabLink) return;
  host.immunelabLink = link;
  clearTimeout(host.immunelabLater);
  host.immunelabLater = setTimeout(() => host.immunelabSend("view", link), 500);
}

// --- walking along the points by keys

function walkCells(Plotly, host, key, trace) {
  const rows = trace.z.length;
  const columns = trace.z[0]?.length ?? 0;
  if (!rows || !columns) return false;
  const at = (host.immunelabCell ??= { row: 0, column: -1 });
  const upside = host._fullLayout[`yaxis${trace.yaxis.slice(1)}`].range;
  const down = upside[0] > upside[1] ? 1 : -1; // a category axis from the top has a range that falls
  if (key === "Enter") {
    const told = said(trace.customdata?.[at.row]?.[Math.max(0, at.column)]);
    if (told) host.immunelabSend("clicked", told);
    return true;
  }
  const [right, below] = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, down], ArrowUp: [0, -down] }[key];
  at.column = Math.max(0, Math.min(columns - 1, at.column + right));
  at.row = Math.max(0, Math.min(rows - 1, at.row + below));
  Plotly.Fx.hover(host, [{ curveNumber: trace.index, pointNumber: [at.row, at.column] }]);
  const words = trace.hovertext?.[at.row]?.[at.column] || `${trace.y?.[at.row] ?? at.row}, ${trace.x?.[at.column] ?? at.column}: ${Number(Number(trace.z[at.row][at.column]).toPrecision(4))}`;
  host.nextElementSibling.textContent = words.replaceAll("<br>", ", ");
  return true;
}

function walk(Plotly, host, key) {
  const map = host._fullData.find((trace) => trace.type === "heatmap" && trace.visible === true);
  if (map) return walkCells(Plotly, host, key, map);
  const lines = host.calcdata.filter((points) => said([points[0]?.trace?.customdata?.[0]].flat()) && points[0].trace.x);
  if (!lines.length) return false;
  const at = (host.immunelabAt ??= { line: 0, point: -1 });
  if (key === "ArrowUp" || key === "ArrowDown") at.line += key === "ArrowUp" ? -1 : 1;
  at.line = (at.line + lines.length) % lines.length;
  const points = lines[at.line].filter((p) => Number.isFinite(p.y) && Number.isFinite(p.x));
  if (key === "ArrowLeft" || key === "ArrowRight") at.point += key === "ArrowLeft" ? -1 : 1;
  at.point = Math.max(0, Math.min(points.length - 1, at.point));
  const point = points[at.point];
  const { trace } = lines[at.line][0];
  if (key === "Enter") {
    host.immunelabSend("clicked", said(trace.customdata[point.i ?? at.point]));
    return true;
  }
  const full = host._fullLayout;
  Plotly.Fx.hover(host, { xval: point.x }, full._subplots.cartesian);
  const of = (axis) => full[`${axis[0]}axis${axis.slice(1)}`];
  const share = of(trace.yaxis).tickformat?.includes("%");
  const value = share ? `${(100 * point.y).toFixed(1)} %` : Number(point.y.toPrecision(4));
  host.nextElementSibling.textContent = `${trace.name}, ${Number(point.x.toPrecision(6))}: ${of(trace.yaxis).title.text ?? ""} ${value}`;
  return true;
}

// Plotly shows the hovered panel alone when panels have x axes of their own, though these move together.
function hoverAll(Plotly, host, event) {
  const full = host._fullLayout;
  const panels = full._subplots.cartesian;
  if (host.immunelabHovering || panels.length < 2 || full.hovermode !== "x unified" || !event?.xvals) return;
  host.immunelabHovering = true; // what follows is told as a hover, too
  try {
    Plotly.Fx.hover(host, { xval: event.xvals[0] }, panels);
  } finally {
    host.immunelabHovering = false;
  }
}

function bind(Plotly, host) {
  host.on("plotly_hover", (event) => hoverAll(Plotly, host, event));
  host.on("plotly_click", (event) => {
    const point = nearest(event);
    if (point) host.immunelabSend("clicked", said(point.customdata));
  });
  host.on("plotly_selected", (event) => {
    const inside = new Set((event?.points ?? []).map((p) => said(p.customdata)).filter(Boolean));
    host.immunelabSend("brushed", JSON.stringify([...inside].slice(0, 200)));
  });
  host.on("plotly_deselect", () => host.immunelabSend("brushed", "[]"));
  host.on("plotly_relayout", (change) => remember(host, change));
  host.on("plotly_restyle", () => remember(host));
  host.addEventListener("keydown", (event) => {
    const known = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Enter"].includes(event.key);
    if (known && event.target === host && walk(Plotly, host, event.key)) event.preventDefault();
  });
}

// --- drawing

function config(Plotly, host, data) {
  return {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false, // no chart leaves this machine
    displayModeBar: host.clientWidth < 640 ? "hover" : true, // narrow: it would cover the legend
    modeBarButtonsToRemove: ["toImage", "autoScale2d", ...(data.brush ? [] : ["select2d", "lasso2d"])],
    modeBarButtonsToAdd: buttons(Plotly, data.name),
  };
}

function draw(Plotly, host, data, figure, frame) {
  // Plotly writes into what it is given, and frames are drawn more than once.
  const shown = { data: structuredClone(frame?.data ?? figure.data), layout: { ...figure.layout } };
  if (frame?.shapes) shown.layout.shapes = frame.shapes;
  apply(host.immunelabView, shown);
  host.immunelabDrawn = frame;
  return Plotly.react(host, shown.data, { ...shown.layout, autosize: true, height: data.height }, host.immunelabConfig);
}

const uids = (traces) => traces?.map((trace) => trace.uid).join();

// From one position of the sliders to another: what stays is not drawn again, which takes Plotly half the time or less.
function step(Plotly, host, data, figure, frame) {
  const before = host.immunelabDrawn;
  const same = before && JSON.stringify(before.data) === JSON.stringify(frame.data);
  if (same && before.shapes && frame.shapes) {
    Plotly.relayout(host, { shapes: frame.shapes });
  } else if (!same && before && !before.shapes && !frame.shapes && uids(before.data) === uids(frame.data)) {
    const atOnce = { mode: "immediate", frame: { duration: 0, redraw: false }, transition: { duration: 0 } };
    Plotly.animate(host, { data: structuredClone(frame.data), traces: frame.data.map((_, i) => i) }, atOnce);
  } else if (!same) {
    draw(Plotly, host, data, figure, frame);
  }
  host.immunelabDrawn = frame;
}

// Where nobody recorded what the sliders say, the last picture stays, dimmed.
function drawPosition(Plotly, host, data, figure, frame, place, whole) {
  const told = place.nextElementSibling;
  host.classList.toggle("immunelab-dimmed", !frame);
  if (!frame) {
    told.textContent = data.missing;
    if (!host.data) draw(Plotly, host, data, figure);
    return;
  }
  told.textContent = frame.said;
  host.setAttribute("aria-label", frame.said || data.alt);
  if (whole) draw(Plotly, host, data, figure, frame);
  else step(Plotly, host, data, figure, frame);
  host.dispatchEvent(new CustomEvent("immunelab-drawn"));
}

function show(Plotly, host, data, figure) {
  // Made once: a config with new functions counts as changed, and a changed config draws the chart from scratch.
  host.immunelabConfig ??= config(Plotly, host, data);
  const axes = Object.entries(figure.layout).filter(([key, axis]) => /^[xy]axis\d*$/.test(key) && axis.range);
  host.immunelabFirst = Object.fromEntries(axes.map(([key, axis]) => [key, axis.range]));
  if (!host.immunelabView) {
    host.immunelabView = recall(data.view ?? "", data.name);
    host.immunelabLink = text(host.immunelabView);
  }
  const place = host.parentElement.querySelector(".immunelab-sliders");
  if (data.sliders) {
    const move = (frame, whole) => drawPosition(Plotly, host, data, figure, frame, place, whole);
    const told = JSON.parse(data.sliders);
    const moved = Object.values(told.frames).some((frame) => frame.shapes) ? ["shapes"] : [];
    told.look = JSON.stringify([told.frames, figure.layout], (key, value) => (moved.includes(key) ? undefined : value));
    sliders(place, told, move, (texts) => host.immunelabSend("picked", JSON.stringify(texts)));
  } else draw(Plotly, host, data, figure);
  if (host.immunelabBound) return;
  host.immunelabBound = true;
  bind(Plotly, host);
}

function drawFigure(data, parentElement, send) {
  const host = parentElement.querySelector(".immunelab-figure");
  host.immunelabSend = send;
  const over = () => {
    host.immunelabGone = true;
    clearTimeout(host.immunelabLater);
    window.Plotly?.purge(host);
  };
  // A page that follows a run sends its figures again and again: what is the same is not drawn again.
  const whole = JSON.stringify([data.figure, data.sliders, data.alt, data.height]);
  if (host.immunelabWhole === whole) return over;
  host.immunelabWhole = whole;
  host.setAttribute("aria-label", data.alt);
  host.style.minHeight = `${data.height}px`;
  host.style.minWidth = data.minWidth ? `${data.minWidth}px` : "";
  const figure = JSON.parse(data.figure);
  plotly(data.plotly)
    .then((Plotly) => host.immunelabGone || show(Plotly, host, data, figure))
    .catch((error) => (host.textContent = error.message));
  return over;
}
