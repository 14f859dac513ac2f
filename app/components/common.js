// Shared by our components; put before each of them as one module.
const STOPS = {
  sequential: ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"],
  diverging: ["053061", "2166ac", "4393c3", "92c5de", "e3eef4", "fae9df", "f4a582", "d6604d", "b2182b", "67001f"],
};
const rgb = (hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16));

// 256 colours as little-endian RGBA words
function lut(scale) {
  const stops = STOPS[scale].map(rgb);
  const out = new Uint32Array(256);
  for (let i = 0; i < 256; i++) {
    const x = (i / 255) * (stops.length - 1), a = Math.min(Math.floor(x), stops.length - 2), f = x - a;
    const c = [0, 1, 2].map((k) => Math.round(stops[a][k] * (1 - f) + stops[a + 1][k] * f));
    out[i] = (255 << 24) | (c[2] << 16) | (c[1] << 8) | c[0];
  }
  return out;
}
const LUT = { sequential: lut("sequential"), diverging: lut("diverging") };
const css = (word) => `rgb(${word & 255},${(word >> 8) & 255},${(word >> 16) & 255})`;
// dark text on light colours, by relative luminance
const ink = (word) => (0.299 * (word & 255) + 0.587 * ((word >> 8) & 255) + 0.114 * ((word >> 16) & 255) > 140 ? "#14191c" : "#ffffff");

function unpack(data) {
  const n = new DataView(data.buffer, data.byteOffset, 4).getUint32(0, true);
  return [JSON.parse(new TextDecoder().decode(data.subarray(4, 4 + n))), data.subarray(4 + n)];
}

let HALF = null; // float16 bits -> number, for browsers without Float16Array
function half(bits) {
  if (!HALF) {
    HALF = new Float32Array(65536);
    for (let i = 0; i < 65536; i++) {
      const s = i & 0x8000 ? -1 : 1, e = (i >> 10) & 31, m = i & 1023;
      HALF[i] = s * (e === 0 ? m * 2 ** -24 : e === 31 ? (m ? NaN : Infinity) : (1 + m / 1024) * 2 ** (e - 15));
    }
  }
  return HALF[bits];
}

function number(x) {
  if (!Number.isFinite(x)) return Number.isNaN(x) ? "–" : x > 0 ? "∞" : "−∞";
  if (x === 0) return "0";
  const a = Math.abs(x);
  const t = a < 1e-4 || a >= 1e7 ? x.toExponential(2).replace("e+", "e") : a >= 100 ? String(Math.round(x)) : x.toPrecision(3);
  return t.replace(/-/g, "−");
}

// One element of ours inside Streamlit's container, kept across reruns
function own(parent, make) {
  let root = parent.querySelector(":scope > .psc");
  if (!root) {
    root = document.createElement("div");
    root.className = "psc";
    parent.appendChild(root);
    root.ps = make(root);
  }
  return root.ps;
}

function el(tag, cls, parent, text) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  if (text !== undefined) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
}

// A canvas of w x h CSS px at the screen's resolution
function sized(canvas, w, h) {
  const r = Math.min(window.devicePixelRatio || 1, 2);
  canvas.width = Math.max(1, Math.round(w * r));
  canvas.height = Math.max(1, Math.round(h * r));
  canvas.style.width = w + "px";
  canvas.style.height = h + "px";
  const g = canvas.getContext("2d");
  g.setTransform(r, 0, 0, r, 0, 0);
  return g;
}

function colours(node) {
  const s = getComputedStyle(node), v = (n, d) => s.getPropertyValue(n).trim() || d;
  return {
    accent: v("--st-primary-color", "#0F6E84"), text: v("--st-text-color", s.color), bg: v("--st-background-color", "#fff"),
    line: v("--st-border-color", "#D9E1E5"), font: v("--st-font", s.fontFamily), mono: v("--st-code-font", "monospace"),
  };
}

// Hover words inside the component, kept within its width
function tip(root) {
  const node = el("div", "psc-tip", root);
  return {
    hide: () => { node.style.display = "none"; },
    show: (lines, x, y) => {
      node.replaceChildren(...lines.filter(Boolean).map((t, i) => { const d = el("div", i ? "" : "psc-tip-head"); d.textContent = t; return d; }));
      node.style.display = "block";
      const w = node.offsetWidth, h = node.offsetHeight, W = root.clientWidth;
      node.style.left = Math.max(0, Math.min(x + 14, W - w)) + "px";
      node.style.top = (y + 18 + h > root.clientHeight && y - h - 10 > 0 ? y - h - 10 : y + 18) + "px";
    },
  };
}

// Redraw when the width or the theme changes
function watch(root, draw) {
  let last = -1;
  const sizes = new ResizeObserver(() => {
    const w = root.clientWidth;
    if (w && w !== last) { last = w; draw(); }
  });
  sizes.observe(root);
  return () => sizes.disconnect();
}
