// Times a click inside the page: from the browser's time stamp of the event to the first frame after the new state
// was drawn. psWatch(what, wanted) begins to look; psSeen resolves to [ms since the event, wall clock in ms].
addEventListener('click', (e) => { window.psT0 = e.timeStamp; }, true);
addEventListener('keydown', (e) => { if (e.key === 'Enter') window.psT0 = e.timeStamp; }, true);
const digest = (cls) => document.querySelector(cls)?.closest('.psc')?.ps?.digest;
const gd = () => document.querySelector('.js-plotly-plot');
window.psState = {
  figure: () => [digest('.psc-cells'), digest('.psc-map')],
  head: () => [digest('.psc-map')],
  // the words of every cell, once the map is drawn: colours alone may be the same for two prompts
  lens: () => [gd()?.querySelector('.heatmaplayer image') && gd().calcdata?.at(-1)?.[0]?.trace?.text?.join()],
  page: () => [document.querySelector('[data-testid="stMainBlockContainer"] h3')?.textContent.trim()],
  points: () => [gd()?.calcdata?.[0]?.length],
};
window.psWatch = (what, wanted) => {
  const before = psState[what]();
  const fits = (now) => now.every((v, i) => v && (wanted === null ? v !== before[i] : v === wanted));
  window.psSeen = new Promise((done) => {
    const look = () => requestAnimationFrame(() => fits(psState[what]())
      ? requestAnimationFrame((t) => done([performance.now() - psT0, Date.now()])) : look());
    look();
  });
};
