"""The page Experiment queue: ten experiments over energy models; status, cost, run, cancel; claims as they land."""

from __future__ import annotations

import html
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from app import auto_page, claims_view, subject_sets, theme, url, widgets
from app.fields import in_words
from app.links import link
from app.run_groups import group_of
from app.subject import FIRST_ENERGY, family_of, openable, short_name
from backend.errors import PhasescopeError

LOOK = 1.0  # s between two looks while something runs
OPEN = ("missing", "failed")  # states in which running it makes sense
MARKS = {"kept": ("done", "good"), "running": ("running", "accent"), "queued": ("queued", "neutral"),
         "failed": ("failed", "bad"), "missing": ("not computed", "neutral"), "waits": ("waits", "warn"),
         "unfit": ("not possible", "neutral")}  # fmt: skip
CAPTION = ("The ten experiments on every chosen energy model. What is computed is kept; run what is missing, leave the "
           "page, come back. Each row has its command line; all of it can be written as a SLURM script.")  # fmt: skip


def page(house: Any) -> None:
    """Draw the page."""
    st.markdown("### Experiment queue")
    st.caption(CAPTION)
    runs = {f"run:{r['name']}": r for r in house.runs() if openable(r) and family_of(r) == "energy"}
    runs |= {r.spec: {} for r in house.models().itertuples() if r.energy and not r.spec.startswith("run:")}
    if not runs:
        widgets.empty_state("No energy model yet", "Train one on the Training page: recipe energy model.")
        link("training", "Train an energy model", icon="monitoring", query={"recipe": "energy"})
        return
    specs, about = _chosen(runs)
    if not specs:
        widgets.empty_state("No model chosen", "Choose energy models above; the experiments then stand here.")
        return
    grid = st.container()
    params, places = _one(house, specs, about)
    busy, waiting = _unfinished(places)
    with grid:
        every = LOOK if busy or waiting else None
        st.fragment(_queue, run_every=every)(house, specs, about, params, (len(busy), waiting))
    _claims(house, places)
    _commands(house, places, about, params)


def _chosen(runs: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Draw the pickers of models and problems; a first visit asks of one model, the last one looked at."""
    last = url.carried("energy")
    first = next(s for s in (last, FIRST_ENERGY, *runs) if s in runs)
    left, n_at, seed_at, harder_at = st.columns([6, 2, 2, 3], vertical_alignment="bottom")
    with left:
        specs = url.bound(st.multiselect, "Energy models", "models", fallback=[first], options=list(runs),
                          format_func=short_name)  # fmt: skip
    about = subject_sets.drawn_problems(n_at, seed_at, harder_at, many="Problems")
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        for words, names in _at_once(runs).items():
            st.button(f"{words} ({len(names)})", key=f"queue-set:{words}", on_click=url.put, kwargs={"models": names})
        link("training", "Train a family", icon="monitoring", query={"recipe": "energy", "preset": "sizes"})
    return [s for s in specs if s in runs], about


def _at_once(runs: dict[str, Any]) -> dict[str, list[str]]:
    """Return the sets that one click chooses: all, those that ship, and each family that was started together."""
    found = {"All": list(runs), "Shipped": [s for s, r in runs.items() if r.get("shipped")]}
    for spec, run in runs.items():
        if family := group_of(run):
            found.setdefault(f"Family {family}", []).append(spec)
    return {words: names for words, names in found.items() if names}


def _unfinished(places: Sequence[Any]) -> tuple[list[Any], bool]:
    """Return the places of jobs that have not ended, and whether a model is waited for."""
    return [p for p in places if p.state in ("queued", "running")], any(p.state == "waits" for p in places)


# ---------------------------------------------------------------- how each stands


def _queue(house: Any, specs: Sequence[str], about: Any, params: Any, before: tuple[int, bool]) -> None:
    """Draw status and buttons; the whole page is drawn again when something has landed."""
    places = house.queue(list(house.experiments()), specs, about, params)
    busy, waiting = _unfinished(places)
    if (len(busy), waiting) != before:
        st.rerun()
    _bar(house, places, busy, (specs, about, params))
    st.html(_table(places, specs, house.experiments()))
    _failures(places)


def _bar(house: Any, places: Sequence[Any], busy: Sequence[Any], asked: tuple[Any, Any, Any]) -> None:
    open_ = [p for p in places if p.state in OPEN]
    done = sum(p.state == "kept" for p in places)
    known = [p.seconds for p in open_ if p.seconds is not None]
    cost = f"about {theme.seconds(sum(known))} of one worker" if known else ""
    row = st.container(horizontal=True, vertical_alignment="center")
    with row:
        if busy:
            st.button(f"Cancel {len(busy)}", icon=":material/close:", key="queue-cancel",
                      on_click=_cancel, args=(house, [p.job for p in busy]))  # fmt: skip
        else:
            names = list(dict.fromkeys(p.analysis for p in open_))
            label = f"Run {len(open_)} missing" if open_ else _nothing(places, "All computed")
            st.button(label, type="primary", key="queue-run",
                      icon=":material/play_arrow:", disabled=not open_, on_click=_run, args=(house, names, *asked),
                      help=f"What is kept is not computed again. Takes {cost}." if cost else None)  # fmt: skip
    running = next((p for p in busy if p.state == "running"), None)
    words = f"{done} of {len(places)} computed" + (
        f" · {running.analysis} of {short_name(running.spec)}: {running.why}" if running else f" · {cost}" * bool(cost))
    row.progress(done / max(1, len(places)), text=words)


def _nothing(places: Sequence[Any], words: str) -> str:
    states = {p.state for p in places}
    return "Opening" if "waits" in states else "Running" if states & {"queued", "running"} else words


def _needs(one: Any) -> str:
    """Return what an experiment waits for or reads: none takes the result of another one."""
    return "model, first checkpoint (drift)" if "first_step" in one.params.model_fields else "model"


def _table(places: Sequence[Any], specs: Sequence[str], known: Mapping[str, Any]) -> str:
    """Return the grid as HTML: a row per experiment, a column per model."""
    at = {(p.analysis, p.spec): p for p in places}
    head = "".join(f"<th>{html.escape(short_name(s).removesuffix(' (run)'))}</th>" for s in specs)
    rows = ""
    for name, one in known.items():
        cells = "".join(f"<td>{_cell(at[name, s])}</td>" for s in specs)
        rows += f"<tr><td>{html.escape(one.title)}</td><td>{_needs(one)}</td>{cells}</tr>"
    return f'<div class="ps-grid"><table><tr><th>Experiment</th><th>Depends on</th>{head}</tr>{rows}</table></div>'


def _cell(place: Any) -> str:
    """Return how it stands; what is computed is one click from its figures."""
    words, kind = MARKS[place.state]
    if place.state == "running":
        words = f"{place.progress:.0%}"
    elif place.state == "missing" and place.seconds is not None:
        words = f"about {theme.seconds(place.seconds)}"
    mark = theme.badge(words, kind, place.why)
    return theme.anchor(_address(place.spec, place.analysis), mark) if place.state == "kept" else mark


def _failures(places: Sequence[Any]) -> None:
    for p in [p for p in places if p.state == "failed"][:5]:
        with st.container(horizontal=True):
            st.caption(f":material/error: {p.analysis} of {short_name(p.spec)}: {p.why}")
            if p.job:
                link("jobs", "Its story", icon="pending_actions", query={"job": p.job})
    waits = sorted({p.why for p in places if p.state == "waits"})
    for why in waits[:5]:
        st.caption(f":material/hourglass_empty: {why}")


def _one(house: Any, specs: Sequence[str], about: Any) -> tuple[dict[str, dict[str, Any]], list[Any]]:
    """Pick one experiment: its settings, run it on all chosen models, or open it. Returns (the settings of every
    experiment that the address changes, how all stand with them)."""
    known = house.experiments()
    left, run, go = st.columns([5, 3, 3], vertical_alignment="bottom")
    with left:
        name = url.bound(st.selectbox, "One experiment", "experiment", fallback=next(iter(known)),
                         options=list(known), format_func=lambda n: known[n].title)  # fmt: skip
    with st.expander("Settings of this experiment", icon=":material/tune:"):
        auto_page.form(known[name], shared=True, columns=4)
        if not known[name].params.model_fields:
            st.caption("Nothing to choose: problems, seed and distribution say it all.")
    params = {n: told for n, one in known.items() if (told := auto_page.told(one))}
    _changed(params)
    places = house.queue(list(known), specs, about, params)
    mine = [p for p in places if p.analysis == name and p.state in OPEN]
    run.button(f"Run on {len(mine)} {'model' if len(mine) == 1 else 'models'}" if mine else
               _nothing([p for p in places if p.analysis == name], "Nothing to run"),
               key="queue-run-one", disabled=not mine, on_click=_run, args=(house, [name], specs, about, params))
    with go if len(specs) == 1 else go.popover("Open", icon=":material/open_in_full:"):
        for spec in specs:
            link("energy_landscapes", "Open it" if len(specs) == 1 else f"at {short_name(spec)}", icon="open_in_full",
                 query=_where(spec, name))  # fmt: skip
    return params, places


def _changed(params: dict[str, dict[str, Any]]) -> None:
    """Say which settings are not the usual ones, of all experiments, and take them back with one click."""
    if params:
        words = "; ".join(f"{_numbered(n)} " + ", ".join(f"{in_words(k).lower()} {v}" for k, v in told.items())
                          for n, told in params.items())  # fmt: skip
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(f":material/tune: Not the usual settings: {words}")
            st.button("Usual settings", key="queue-usual", type="tertiary", on_click=url.put, kwargs={"params": None})


def _run(house: Any, names: Sequence[str], specs: Sequence[str], about: Any, params: Any) -> None:
    widgets.act(house.run_queue, names, specs, about, params)


def _cancel(house: Any, jobs: Sequence[str]) -> None:
    for job in jobs:
        widgets.act(house.cancel, job)


# ---------------------------------------------------------------- what they say


def _claims(house: Any, places: Sequence[Any]) -> None:
    """Draw the claims of all that is computed, and those that ship."""
    found = [(p, claim) for p in places if p.state == "kept" for claim in house.claims(p.key)]
    rows = [{"model": short_name(p.spec).removesuffix(" (run)"), "experiment": _numbered(p.analysis), **claim}
            for p, claim in found]  # fmt: skip
    links = [_address(p.spec, p.analysis) for p, _ in found]
    st.markdown("##### What was expected, and what was found")
    if not rows:
        st.caption("Nothing is computed yet: run what is missing, and each experiment's verdicts appear here.")
    else:
        verdicts = Counter(row["verdict"] for row in rows)
        theme.badges([(f"{n} {word}", claims_view.VERDICTS.get(word, "neutral")) for word, n in verdicts.items()])
        claims_view.table(rows, "queue-claims", links)
    shipped = house.shipped_claims()
    if shipped:
        with st.expander("As shipped: made by `make experiments-energy`"):
            st.caption(f"{shipped['command']} · {shipped['seconds']:.0f} s on {shipped['machine']}")
            claims_view.table(shipped["claims"], "shipped-claims", _shipped_links(house, shipped["claims"]))


def _numbered(analysis: str) -> str:
    return f"EXP-{analysis[3:6]}"


def _where(spec: str, analysis: str) -> dict[str, str]:
    """Return the query under which an experiment of a model is looked at, with the problems and settings of here."""
    return url.query(energy=spec, energy_step=None, experiment=analysis, params=url.get("params"))


def _address(spec: str, analysis: str) -> str:
    return "energy_landscapes?" + urlencode(_where(spec, analysis), safe=":")


def _shipped_links(house: Any, rows: Sequence[dict[str, str]]) -> list[str]:
    """Return where what ships is looked at: its models, at the usual problems and settings."""
    names = {_numbered(name): name for name in house.experiments()}
    asked = [{"energy": f"run:{r['model']}", "experiment": names[r["experiment"]]} for r in rows]
    return ["energy_landscapes?" + urlencode(query, safe=":") for query in asked]


# ---------------------------------------------------------------- the same on a cluster


def _commands(house: Any, places: Sequence[Any], about: Any, params: Any) -> None:
    with st.expander("Command lines and a SLURM script", icon=":material/terminal:"):
        lines = _lines(house, places, about, params)
        if not lines:
            st.caption("No model is open yet.")
            return
        if runs := house.settings.runs_elsewhere:
            st.caption(f"Your runs lie elsewhere than usual: in a shell say first "
                       f"`export PHASESCOPE_RUNS={shlex.quote(runs)}`; the script says it itself.")  # fmt: skip
        st.code("\n".join(shlex.join(line) for line in lines), language="bash", height=220)
        cells = st.columns(5)
        partition = cells[0].text_input("Partition", placeholder="the cluster's default")
        hours = cells[1].number_input("Hours", 0.1, 336.0, 1.0, step=0.5)
        memory = cells[2].number_input("Memory (GB)", 1, 2048, 8)
        cpus = cells[3].number_input("CPUs", 1, 256, 1)
        gpus = cells[4].number_input("GPUs", 0, 16, 0)
        try:
            text = house.job_script(lines, name="phasescope-energy", hours=float(hours), memory_gb=int(memory),
                                    cpus=int(cpus), gpus=int(gpus), partition=partition.strip())  # fmt: skip
        except PhasescopeError as error:
            widgets.error_panel(error)
            return
        st.download_button("Download the sbatch script", text, "phasescope-energy.sbatch", "text/x-shellscript",
                           icon=":material/download:")  # fmt: skip


def _lines(house: Any, places: Sequence[Any], about: Any, params: Any) -> list[list[str]]:
    found = []
    for p in places:
        card = house.card(p.spec) if p.state not in ("waits", "unfit") else None
        if card is not None:
            subject = house.subject(house.analysis(p.analysis).subject, card.model_dump(), about)
            out = f"{p.analysis}-{p.spec.removeprefix('run:').replace('/', '-')}.parquet"
            found.append(house.command(p.analysis, card, subject, params.get(p.analysis), out=out))
    return found
