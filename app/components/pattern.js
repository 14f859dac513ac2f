// One head large. Offscreen pixels once per data; axes, cross-hair and colour bar drawn over them.
const PAD = 6, BAR = 12, SMALL = 11;

function map(root) {
  const title = el("div", "psc-title", root), canvas = el("canvas", "psc-map", root), over = el("canvas", "psc-over", root);
  const note = el("div", "psc-note", root), hint = tip(root);
  const pixels = document.createElement("canvas"), small = document.createElement("canvas");
  const me = { h: null, values: null, digest: "", at: null, pick: () => {} };
  let box = null, c = null;
  const start = (axis, i) => Math.floor((i * me.h.n[axis]) / me.h.m[axis]); // same bins as Python's edges()
  const cellOf = (axis, token) => { let i = Math.floor((token * me.h.m[axis]) / me.h.n[axis]); while (start(axis, i + 1) <= token) i++; return i; };
  const words = (axis, i) => {
    const a = start(axis, i), b = start(axis, i + 1) - 1, t = axis ? me.h.keys : me.h.queries;
    return b > a ? `${a}–${b} ${t[a]} … ${t[b]}` : `${a} ${t[a]}`;
  };

  me.load = (bytes) => {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), n = me.h.m[0] * me.h.m[1];
    me.values = new Float32Array(n);
    for (let i = 0; i < n; i++) me.values[i] = half(view.getUint16(2 * i, true));
    const [rows, wide] = me.h.m;  // where no query looks ahead, the keys behind it are not its own
    me.blind = me.h.n[0] === me.h.n[1] && me.values.every((v, p) => v === 0 || p % wide <= Math.floor(p / wide)) && rows === wide;
  };

  function paint(onto, values, rows, cols) {
    const [low, high] = me.h.limits, table = LUT[me.h.scale];
    onto.width = cols;
    onto.height = rows;
    const image = new ImageData(cols, rows), out = new Uint32Array(image.data.buffer);
    for (let i = 0; i < out.length; i++) {
      const v = values[i]; // NaN stays transparent
      if (!Number.isNaN(v)) out[i] = table[Math.max(0, Math.min(255, Math.round(((v - low) / (high - low)) * 255)))];
    }
    onto.getContext("2d").putImageData(image, 0, 0);
  }
  me.colour = () => paint(pixels, me.values, ...me.h.m);

  // widest label, never more than a fifth of the room; longer ones are shortened with an ellipsis
  function labels(g, tokens, most) {
    const cut = (t) => { if (g.measureText(t).width <= most) return t; let s = t; while (s.length > 1 && g.measureText(s + "…").width > most) s = s.slice(0, -1); return s + "…"; };
    const shown = tokens.map(cut);
    return [shown, Math.max(10, ...shown.map((t) => g.measureText(t).width))];
  }

  me.draw = () => {
    if (!me.values || !root.clientWidth) return;
    c = colours(root);
    const { m, max_height } = me.h, W = root.clientWidth, g0 = canvas.getContext("2d");
    g0.setTransform(1, 0, 0, 1, 0, 0);
    g0.font = `${SMALL}px ${c.mono}`;
    const most = Math.min(120, W / 5);
    const [rows, left] = labels(g0, m[0] === me.h.n[0] ? me.h.queries : me.h.queries.filter((_, i) => start(0, cellOf(0, i)) === i), most);
    const [cols, bottom] = labels(g0, m[1] === me.h.n[1] ? me.h.keys : me.h.keys.filter((_, i) => start(1, cellOf(1, i)) === i), most);
    const x = left + PAD + 18, right = BAR + 58;
    const room = Math.max(40, W - x - right);
    const cell = Math.max(0.25, Math.min(room / m[1], (max_height - bottom - 40) / m[0], 56));
    const w = cell * m[1], h = cell * m[0], flat = Math.max(...cols.map((t) => g0.measureText(t).width)) + 6 <= cell;
    const below = flat ? SMALL + 6 : bottom + PAD;
    box = { x, y: 8, w, h, cell, W, H: 8 + h + below + 20, right: x + w, rows, cols, flat };
    const g = sized(canvas, W, box.H);
    sized(over, W, box.H);
    over.style.top = canvas.offsetTop + "px";
    g.imageSmoothingEnabled = false;
    shrink(g);
    g.strokeStyle = c.line;
    g.strokeRect(x - 0.5, box.y - 0.5, w + 1, h + 1);
    names(g);
    bar(g);
    mark();
  };

  // fewer screen pixels than cells: keep the maximum, so that a stripe stays visible
  function shrink(g) {
    const r = canvas.width / box.W, [Q, K] = me.h.m, q = Math.min(Q, Math.round(box.h * r)), k = Math.min(K, Math.round(box.w * r));
    let from = pixels;
    if (q < Q || k < K) {
      const best = new Float32Array(q * k).fill(NaN);
      for (let i = 0, p = 0; i < Q; i++) for (let j = 0; j < K; j++, p++) {
        const to = Math.floor((i * q) / Q) * k + Math.floor((j * k) / K);
        if (!(me.values[p] <= best[to])) best[to] = me.values[p];
      }
      paint((from = small), best, q, k);
    }
    g.drawImage(from, box.x, box.y, box.w, box.h);
  }

  function names(g) {
    const { x, y, w, h } = box;
    g.fillStyle = c.text;
    g.font = `${SMALL}px ${c.font}`;
    g.globalAlpha = 0.7;
    g.textAlign = "center";
    g.textBaseline = "bottom";
    g.fillText("key token", x + w / 2, box.H - 2);
    g.save();
    g.translate(2, y + h / 2);
    g.rotate(-Math.PI / 2);
    g.textBaseline = "top";
    g.fillText("query token", 0, 0);
    g.restore();
    g.globalAlpha = 1;
  }

  function bar(g) {
    const x = box.right + 14, h = Math.min(box.h, 220), table = LUT[me.h.scale], [low, high] = me.h.limits;
    for (let i = 0; i < h; i++) {
      g.fillStyle = css(table[Math.round((1 - i / h) * 255)]);
      g.fillRect(x, box.y + i, BAR, 1.5);
    }
    g.font = `${SMALL}px ${c.font}`;
    g.fillStyle = c.text;
    g.textAlign = "left";
    g.textBaseline = "top";
    g.fillText(number(high), x + BAR + 5, box.y);
    g.textBaseline = "bottom";
    g.fillText(number(low), x + BAR + 5, box.y + h);
    if (!me.h.unit) return;
    g.save();
    g.translate(x + BAR + 6, box.y + h / 2);
    g.rotate(-Math.PI / 2);
    g.textAlign = "center";
    g.textBaseline = "top";
    if (g.measureText(me.h.unit).width < h - 30) g.fillText(me.h.unit, 0, 0);
    g.restore();
  }

  // As many labels as can be read; those in `said` ({index: colour}) always, and none that would touch them
  function labelled(g, axis, said) {
    const texts = axis ? box.cols : box.rows, { x, y, h, cell, flat } = box, across = axis && flat;
    const every = across ? 1 : Math.max(1, Math.ceil((SMALL + 1) / cell)), chosen = Object.keys(said).map(Number);
    const put = (i, colour, weight) => {
      g.save();
      g.font = `${weight} ${SMALL}px ${c.mono}`;
      g.translate(axis ? x + (i + 0.5) * cell : x - PAD, axis ? y + h + PAD : y + (i + 0.5) * cell);
      if (axis && !flat) g.rotate(-Math.PI / 2);
      g.fillStyle = colour;
      g.textAlign = across ? "center" : "right";
      g.textBaseline = across ? "top" : "middle";
      g.fillText(texts[i], 0, 0);
      g.restore();
    };
    for (let i = 0; i < texts.length; i += every) if (!chosen.some((k) => k === i || (!across && Math.abs(k - i) * cell < SMALL + 1))) put(i, c.text, "normal");
    for (const i of chosen) put(i, said[i], "bold");
  }

  function mark() {
    const g = over.getContext("2d"), { x, y, w, cell } = box, thick = Math.max(cell, 1);
    g.clearRect(0, 0, box.W, box.H);
    const rows = {}, cols = {};
    if (me.h.selected !== null) {
      const i = cellOf(0, me.h.selected);
      for (const [colour, width] of [[c.bg, 4], [c.accent, 2]]) {
        g.strokeStyle = colour;
        g.lineWidth = width;
        g.strokeRect(x - 1, y + i * cell - 1, w + 2, thick + 2);
      }
      rows[i] = c.accent;
    }
    root.dataset.selected = me.h.selected ?? "";
    if (me.at) cross(g, me.at, thick);
    if (me.at) [rows[me.at[0]], cols[me.at[1]]] = [rows[me.at[0]] || c.text, c.text];
    labelled(g, 0, rows);
    labelled(g, 1, cols);
  }

  function cross(g, [i, j], thick) {
    const { x, y, w, h, cell } = box;
    g.fillStyle = "rgba(255, 255, 255, 0.1)";
    g.fillRect(x, y + i * cell, w, thick);
    g.fillRect(x + j * cell, y, thick, h);
    g.strokeStyle = "#ffffff";
    g.lineWidth = 1;
    g.strokeRect(x + j * cell - 0.5, y + i * cell - 0.5, cell + 1, cell + 1);
  }

  // how many keys of the query get more: 0 is the most looked at
  const ranked = (i, j) => {
    const row = me.values.subarray(i * me.h.m[1], (i + 1) * me.h.m[1]), here = row[j];
    if (me.blind && j > i) return "not seen by this query";
    let above = 0;
    for (const v of row) if (v > here) above += 1;
    const drawn = me.h.m[1] < me.h.n[1] ? " of this query's " + me.h.m[1] + " drawn blocks of keys" : " of this query's keys";
    return "rank " + above + drawn + " (0: the largest)";
  };

  over.onmousemove = (e) => {
    const r = over.getBoundingClientRect(), i = Math.floor((e.clientY - r.top - box.y) / box.cell), j = Math.floor((e.clientX - r.left - box.x) / box.cell);
    me.at = i >= 0 && j >= 0 && i < me.h.m[0] && j < me.h.m[1] ? [i, j] : null;
    over.style.cursor = me.at ? "crosshair" : "default";
    mark();
    if (!me.at) return hint.hide();
    const o = root.getBoundingClientRect(), unit = me.h.unit ? " " + me.h.unit : "";
    hint.show([number(me.values[i * me.h.m[1] + j]) + unit, "query " + words(0, i), "key " + words(1, j), ranked(i, j)], e.clientX - o.left, e.clientY - o.top);
  };
  over.onmouseleave = () => { me.at = null; if (box) mark(); hint.hide(); };
  over.onclick = () => {
    if (!me.at) return;
    me.h.selected = start(0, me.at[0]);
    mark();
    me.pick({ query: me.h.selected, key: start(1, me.at[1]) });
  };
  me.words = () => {
    const { n, m } = me.h;
    title.textContent = me.h.title;
    title.style.display = me.h.title ? "block" : "none";
    note.textContent = m[0] < n[0] || m[1] < n[1] ? `${m[0]} of ${n[0]} queries, ${m[1]} of ${n[1]} keys: each cell is the largest of several` : "";
    note.style.display = note.textContent ? "block" : "none";
  };
  me.box = () => box; // where the map stands, for tests
  me.stop = watch(root, me.draw);
  return me;
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const started = performance.now(), me = own(parentElement, map);
  const [header, bytes] = unpack(data);
  me.h = header;
  me.pick = (value) => setTriggerValue("pick", value);
  const digest = header.digest + header.m + header.limits + header.scale;
  if (me.digest !== digest) { me.at = null; me.load(bytes); me.colour(); }
  me.digest = digest;
  me.words();
  me.draw();
  performance.measure("phasescope:pattern", { start: started });
  return () => me.stop();
}
