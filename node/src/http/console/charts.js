// Lines over the last minutes, drawn as SVG.

const CHART_SECONDS = 300;
// What is drawn at least: it grows with what there is.
const SHORTEST_CHART_SECONDS = 60;
const WIDTH = 300;
const HEIGHT = 100;

// A number of a scale that is not below the highest: 1, 2 or 5 times a power of ten.
function scaleTop(highest) {
  if (!(highest > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(highest));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= highest * 0.999);
}

// `series` are names, `format` makes a text of a number. Returns the figure and `add(at, values)`, at in seconds; a value may be null.
function lineChart(title, series, format) {
  const points = [];
  const lines = series.map((_, i) => svg("path", { class: `series series-${i + 1}` }));
  const grid = [0, 0.5, 1].map((part) =>
    svg("line", { class: "grid-line", x1: 0, x2: WIDTH, y1: HEIGHT * part, y2: HEIGHT * part }));
  const plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title }, grid, lines);
  const top = el("span", { class: "top-label", "aria-hidden": "true" }, "");
  const numbers = series.map(() => el("b", {}, "–"));
  const legend = series.map((name, i) => el("li", {},
    svg("svg", { viewBox: "0 0 20 10", "aria-hidden": "true" }, svg("path", { class: `series series-${i + 1}`, d: "M0 5H20" })),
    `${name} `, numbers[i]));
  const start = el("span", {}, "");
  const figure = el("figure", { class: "card chart" },
    el("figcaption", {}, el("h3", {}, title)), el("ul", { class: "legend" }, legend),
    el("div", { class: "plot" }, plot, top),
    el("div", { class: "axis", "aria-hidden": "true" }, start, el("span", {}, "now")));

  function draw(now) {
    const span = Math.max(SHORTEST_CHART_SECONDS, now - points[0].at);
    const all = points.flatMap((point) => point.values).filter((value) => value !== null);
    const highest = scaleTop(Math.max(0, ...all));
    lines.forEach((line, i) => {
      let path = "";
      let pen = "M";
      for (const { at, values } of points) {
        if (values[i] === null) {
          pen = "M";
          continue;
        }
        const x = WIDTH * (1 - (now - at) / span);
        path += `${pen}${x.toFixed(1)} ${(HEIGHT * (1 - values[i] / highest)).toFixed(1)}`;
        pen = "L";
      }
      line.setAttribute("d", path);
    });
    setText(top, format(highest));
    setText(start, `${timeText(span)} ago`);
    const texts = points.at(-1).values.map(format);
    numbers.forEach((number, i) => setText(number, texts[i]));
    plot.setAttribute("aria-label", `${title}, now: ${series.map((name, i) => `${name} ${texts[i]}`).join(", ")}`);
  }

  return {
    figure,
    add(at, values) {
      points.push({ at, values });
      while (at - points[0].at > CHART_SECONDS) points.shift();
      if (figure.isConnected) draw(at);
    },
    redraw() {
      if (points.length) draw(points.at(-1).at);
    },
  };
}

// The time within which a part of the requests was answered, from the buckets of a histogram between two samples; `null` if there were
// none. As Prometheus does it: even within a bucket.
function quantile(part, before, now, name) {
  const buckets = new Map();
  for (const [full, value] of now) {
    if (!full.startsWith(`${name}_bucket{`)) continue;
    const bound = Number((/le="([^"]+)"/.exec(full)?.[1] ?? "").replace("+Inf", "Infinity"));
    buckets.set(bound, (buckets.get(bound) ?? 0) + value - (before.get(full) ?? 0));
  }
  const sorted = [...buckets].sort(([a], [b]) => a - b);
  const total = sorted.at(-1)?.[1] ?? 0;
  if (!(total > 0)) return null;
  let [below, counted] = [0, 0];
  for (const [bound, count] of sorted) {
    if (count >= part * total) {
      return bound === Infinity ? below : below + (bound - below) * ((part * total - counted) / (count - counted || 1));
    }
    [below, counted] = [bound, count];
  }
  return below;
}
