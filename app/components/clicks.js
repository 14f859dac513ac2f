// Clicks on a chart that is drawn anew while it is clicked. Listens on the page, since the chart's element comes and goes.
function nearest(points, at, box) {
  let best = null, least = Infinity;
  for (const p of points) {
    if (!p.customdata || typeof p.customdata !== "object" || !p.xaxis || !p.yaxis) continue;
    const x = box.left + p.xaxis._offset + p.xaxis.d2p(p.x), y = box.top + p.yaxis._offset + p.yaxis.d2p(p.y);
    const away = Math.hypot(x - at.clientX, y - at.clientY);
    if (away < least) [best, least] = [p, away];
  }
  return best;
}

export default function (component) {
  const { data, setTriggerValue } = component;
  const listen = (event) => {
    const chart = event.target.closest?.(`.st-key-${data.chart} .js-plotly-plot`);
    if (!chart?.on) return;
    const fresh = !chart.pscClicks;
    chart.pscClicks = (e) => {
      const point = nearest(e.points, e.event, chart.getBoundingClientRect());
      // of a typed array plotly gives {0: .., 1: ..}
      if (point) setTriggerValue("pick", { custom: Object.values(point.customdata), x: point.x });
    };
    if (fresh) chart.on("plotly_click", (e) => chart.pscClicks(e));
  };
  document.addEventListener("pointerdown", listen, true);
  return () => document.removeEventListener("pointerdown", listen, true);
}
