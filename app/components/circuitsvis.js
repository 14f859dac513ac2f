// The script is loaded once per page into the document's head; every picture waits for the same promise.
function library(src) {
  if (!window.phasescopeCircuitsVis) {
    window.phasescopeCircuitsVis = new Promise((done, fail) => {
      if (window.CircuitsVis) return done();
      const script = document.createElement("script");
      script.src = src;
      script.onload = () => done();
      script.onerror = () => { window.phasescopeCircuitsVis = null; fail(new Error("CircuitsVis was not found at " + src)); };
      document.head.appendChild(script);
    });
  }
  return window.phasescopeCircuitsVis;
}

let made = 0;
function place(root) {
  const node = el("div", "psc-circuitsvis", root);
  node.id = `phasescope-circuitsvis-${++made}`;
  return { node, digest: "" };
}

export default function (component) {
  const { data, parentElement } = component;
  const me = own(parentElement, place), digest = JSON.stringify([data.kind, data.props]);
  if (me.digest === digest) return;
  me.digest = digest;
  me.node.style.minHeight = data.height + "px";
  library(data.src).then(
    () => {
      if (!me.node.isConnected) { me.digest = ""; return; } // the page moved on while the script was loading
      const started = performance.now();
      CircuitsVis.render(me.node.id, CircuitsVis[data.kind], data.props);
      performance.measure("phasescope:circuitsvis", { start: started });
    },
    (error) => { me.node.textContent = error.message; },
  );
}
