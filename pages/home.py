"""Home: what runs now, what is kept, three ways in."""

import pandas as pd
import streamlit as st

from app import asking, house, theme, widgets
from app.charts import sparkline
from app.links import link
from app.run_groups import folded
from app.subject import default_model
from app.training_data import whole

backend = house.backend()
st.markdown("### Phasescope")
st.caption(
    "See what a transformer computes, and how that changes while it trains. Everything runs on this machine; "
    "every number is kept with where it came from."
)

examples = st.columns(3)
runs = backend.runs()
shipped = {f"run:{r['name']}": r for r in runs if r.get("shipped") and r["checkpoints"]}
if shipped:
    model = default_model(shipped, backend)
    with examples[0].container(border=True):
        st.markdown("**Watch induction heads form**")
        st.caption("A two-layer model learns to copy: move through its checkpoints and see attention change.")
        link("attention", label="Open attention", icon="grid_on", query={"model": model, "layer": "1"})
    with examples[1].container(border=True):
        st.markdown("**Read a prediction layer by layer**")
        st.caption("What would the model say if it stopped here? The logit lens, token by layer.")
        link("logit_lens", label="Open the lens", icon="layers", query={"model": model})
with examples[2].container(border=True):
    st.markdown("**Open your own model**")
    st.caption("A hub name, a local folder, a nanoGPT checkpoint, a run in progress.")
    link("models", label="Open a model", icon="folder_open")


@st.fragment(run_every=2)
def now() -> None:
    """What changes by itself: unfinished jobs, runs, workers."""
    left, right = st.columns([2, 1])
    with left:
        st.markdown("##### Training runs")
        for line in folded(backend.runs())[:5]:
            row, run = st.columns([3, 2, 4], vertical_alignment="center"), line["run"]
            with row[0]:
                link(line["page"], label=line["label"], query=line["query"])
            row[1].caption(line["state"] + (f" · step {theme.count(run['last_step'])}" if run else ""))
            frame = backend.metrics(run["name"], ["loss", "train_loss"], points=120) if run else pd.DataFrame()
            if len(frame):
                first = frame[frame["metric"] == frame["metric"].min()]
                row[2].plotly_chart(sparkline(first), key=f"spark:{run['name']}", config={"staticPlot": True})
        link("training", label="Train a model", icon="play_arrow")
    with right:
        health = backend.health()
        st.markdown("##### This machine")
        st.markdown(
            f"{health['workers']} {'worker' if health['workers'] == 1 else 'workers'} · "
            f"{health['unfinished']} unfinished jobs · "
            f"cache {theme.bytes(health['cache_bytes'])}"
        )
        for job in backend.jobs(states=["queued", "running"], limit=4):
            st.progress(min(job["progress"], 1.0), text=asking.words(job))
        if not health["workers"]:
            st.caption("Workers are starting; this takes a few seconds.")


now()
latest = backend.latest_transitions(5)
if latest:
    st.markdown("##### Latest transitions found")
    for one in latest:
        link(
            "training",
            label=f"{one['run']}: {one['verdict']} at step {theme.count(whole(one['step']))}",
            query={"runs": one["run"], "focus": one["run"], "marker": str(whole(one["step"]))},
        )
st.markdown("##### Recent results")
recent = backend.results(limit=5)
if len(recent):
    for row in recent.itertuples():
        link(
            "results",
            label=f"{row.title}: {row.spec}"
            + ("" if pd.isna(row.step) else f" at step {int(row.step)}")
            + f" · {theme.ago(row.created)}",
            query={"key": row.key},
        )
else:
    widgets.empty_state("Nothing computed yet", "Open Attention above: its first result takes a second and is kept.")
