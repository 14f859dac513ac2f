// Tokens as chips. One listener for all of them; rebuilt only when tokens or colours change.
function strip(root) {
  const box = el("div", "psc-strip", root), hint = tip(root);
  box.tabIndex = 0;
  box.setAttribute("role", "listbox");
  const me = { d: null, digest: "", pick: () => {} };
  let timer = 0;

  me.build = () => {
    const { tokens, values, limits: [low, high], scale } = me.d, table = LUT[scale] || LUT.sequential;
    box.replaceChildren(...tokens.map((t, i) => {
      const chip = el("span", "psc-chip", null, t), v = values ? values[i] : null;
      chip.dataset.i = i;
      chip.setAttribute("role", "option");
      if (v !== null) {
        const word = table[Math.max(0, Math.min(255, Math.round(((v - low) / (high - low)) * 255)))];
        chip.style.background = css(word);
        chip.style.color = ink(word);
      }
      return chip;
    }));
  };

  me.mark = () => {
    const old = box.querySelector(".psc-on");
    if (old) old.classList.remove("psc-on");
    const now = box.children[me.d.selected ?? -1];
    if (now) now.classList.add("psc-on");
    root.dataset.selected = me.d.selected ?? "";
    box.setAttribute("aria-label", now ? `Token ${me.d.selected}, ${now.textContent}, chosen` : "Tokens");
  };

  function choose(i, wait) {
    me.d.selected = i;
    me.mark();
    clearTimeout(timer);
    timer = setTimeout(() => me.pick(i), wait);
  }

  box.onclick = (e) => { const chip = e.target.closest(".psc-chip"); if (chip) choose(Number(chip.dataset.i), 0); };
  box.onmouseover = (e) => {
    const chip = e.target.closest(".psc-chip");
    if (!chip) return hint.hide();
    const i = Number(chip.dataset.i), v = me.d.values ? me.d.values[i] : null, a = chip.getBoundingClientRect(), b = root.getBoundingClientRect();
    const value = v === null ? "" : `${me.d.name} ${number(v)} ${me.d.unit}`.trim();
    hint.show([`${i} ${chip.textContent}`, value], a.left - b.left - 14, a.bottom - b.top - 12);
  };
  box.onmouseleave = hint.hide;
  box.onkeydown = (e) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[e.key], i = (me.d.selected ?? -1) + step;
    if (!step || i < 0 || i >= me.d.tokens.length) return;
    e.preventDefault();
    choose(i, 180);
    box.children[i].scrollIntoView({ block: "nearest" });
  };
  me.stop = () => clearTimeout(timer);
  return me;
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const started = performance.now(), me = own(parentElement, strip);
  me.d = data;
  me.pick = (value) => setTriggerValue("pick", value);
  const digest = JSON.stringify([data.tokens, data.values, data.limits, data.scale]);
  if (me.digest !== digest) me.build();
  me.digest = digest;
  me.mark();
  performance.measure("phasescope:tokens", { start: started });
  return () => me.stop();
}
