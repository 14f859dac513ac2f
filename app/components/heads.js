// Thumbnails of all heads: one atlas of pixels, one canvas in a box that scrolls, captions that stay.
const LEFT = 30, TOP = 20, GAP = 2;

function grid(root) {
  const box = el("div", "psc-box", root);
  box.tabIndex = 0;
  box.setAttribute("role", "grid");
  const sheet = el("div", "psc-sheet", box);
  const canvas = el("canvas", "psc-cells", sheet);
  const ring = el("div", "psc-ring", sheet);
  const cols = el("div", "psc-cols", sheet), rows = el("div", "psc-rows", sheet);
  const hint = tip(root);
  const atlas = document.createElement("canvas");
  const me = { h: null, atlas, digest: "", cell: 0, pick: () => {} };
  let timer = 0;

  me.paint = (pixels) => {
    const { n_layers: L, n_heads: H, h, w } = me.h;
    atlas.width = H * w;
    atlas.height = L * h;
    const image = new ImageData(H * w, L * h), out = new Uint32Array(image.data.buffer), map = LUT.sequential;
    for (let i = 0, p = 0; i < L * H; i++) {
      const at = Math.floor(i / H) * h * H * w + (i % H) * w;
      for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) out[at + y * H * w + x] = map[pixels[p++]];
    }
    atlas.getContext("2d").putImageData(image, 0, 0);
  };

  me.draw = () => {
    if (!me.h || !root.clientWidth) return;
    const { n_layers: L, n_heads: H, h, w, max_height } = me.h, c = colours(root);
    const room = root.clientWidth - LEFT - 4;
    const cell = (me.cell = Math.max(22, Math.min(112, Math.floor(room / H))));
    const W = H * cell, T = L * cell;
    box.style.maxHeight = max_height + "px";
    sheet.style.width = LEFT + W + 2 + "px";
    sheet.style.height = TOP + T + 2 + "px";
    canvas.style.left = LEFT + "px";
    canvas.style.top = TOP + "px";
    const g = sized(canvas, W, T), side = cell - GAP;
    g.clearRect(0, 0, W, T);
    g.imageSmoothingEnabled = side < Math.max(h, w);
    for (let l = 0; l < L; l++) for (let k = 0; k < H; k++) g.drawImage(atlas, k * w, l * h, w, h, k * cell + 1, l * cell + 1, side, side);
    border(g, c);
    captions(cols, H, "H", cell, true);
    captions(rows, L, "L", cell, false);
    mark();
  };

  function border(g, c) {
    const { n_heads: H, labels } = me.h, cell = me.cell;
    g.lineWidth = 2;
    g.strokeStyle = "#E69F00";
    for (const i of Object.keys(labels)) g.strokeRect((i % H) * cell + 1, Math.floor(i / H) * cell + 1, cell - GAP, cell - GAP);
  }

  function captions(strip, n, letter, cell, across) {
    const every = Math.ceil((across ? 24 : 13) / cell), items = across ? [el("i", "psc-corner")] : [];
    for (let i = 0; i < n; i += every) {
      const t = el("span", "", null, letter + i);
      t.style[across ? "left" : "top"] = (across ? LEFT : TOP) + (i + 0.5) * cell + "px";
      items.push(t);
    }
    strip.replaceChildren(...items);
  }

  function mark() {
    const [l, k] = me.h.selected || [-1, -1], cell = me.cell;
    ring.style.display = l < 0 ? "none" : "block";
    Object.assign(ring.style, { left: LEFT + k * cell - 1 + "px", top: TOP + l * cell - 1 + "px", width: cell + 2 + "px", height: cell + 2 + "px" });
    box.setAttribute("aria-label", `All heads, ${l < 0 ? "none" : `L${l}H${k}`} chosen. Arrow keys move.`);
    root.dataset.selected = `${l},${k}`;
  }

  function at(e) {
    const r = canvas.getBoundingClientRect(), k = Math.floor((e.clientX - r.left) / me.cell), l = Math.floor((e.clientY - r.top) / me.cell);
    return l >= 0 && k >= 0 && l < me.h.n_layers && k < me.h.n_heads ? [l, k] : null;
  }

  function choose(l, k, wait) {
    me.h.selected = [l, k];
    mark();
    clearTimeout(timer);
    timer = setTimeout(() => me.pick([l, k]), wait);
  }

  canvas.onmousemove = (e) => {
    const p = at(e);
    if (!p) return hint.hide();
    const i = p[0] * me.h.n_heads + p[1], r = root.getBoundingClientRect();
    hint.show([`L${p[0]}H${p[1]}`, me.h.labels[i], me.h.hover[i]], e.clientX - r.left, e.clientY - r.top);
  };
  canvas.onmouseleave = hint.hide;
  canvas.onclick = (e) => { const p = at(e); if (p) choose(p[0], p[1], 0); };
  box.onkeydown = (e) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[e.key];
    if (!step) return;
    e.preventDefault();
    const [l0, k0] = me.h.selected || [0, -step[1]], l = l0 + step[0], k = k0 + step[1];
    if (l < 0 || k < 0 || l >= me.h.n_layers || k >= me.h.n_heads) return;
    choose(l, k, 180); // a held key asks once, when it rests
    ring.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  me.stop = watch(root, me.draw);
  return me;
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const started = performance.now(), me = own(parentElement, grid);
  const [header, pixels] = unpack(data);
  me.h = header;
  me.pick = (value) => setTriggerValue("pick", value);
  if (me.digest !== header.digest + header.n_heads) me.paint(pixels);
  me.digest = header.digest + header.n_heads;
  me.draw();
  performance.measure("phasescope:heads", { start: started });
  return () => me.stop();
}
