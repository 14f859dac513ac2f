"""The list of runs at the left of the Training page: filter, state, progress, sparkline; which are compared."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from app import theme, url
from app.charts import spark_svg
from app.training_data import COMPARED, LIVE, fits, headline
from app.training_rows import stop_all

POLL, IDLE = 2.0, 3.0  # s between two looks at the list while something trains, and while nothing does
SHOWN = 40  # rows of the list; the filter finds the others
KINDS = {"running": "accent", "finished": "good", "failed": "bad", "queued": "warn"}


def run_list(house: Any) -> list[str]:
    """Draw the list and return the names of the compared runs; a first visit shows one that lives, else the newest."""
    known = {r["name"]: r for r in house.runs(expected=url.get("runs"))}
    if not known:
        st.fragment(_none_yet, run_every=IDLE)(house)
        return []
    chosen = [n for n in url.get("runs") if n in known][:COMPARED]
    url.put(runs=chosen)
    living = [n for n, r in known.items() if r["state"] in LIVE]
    chosen = chosen or living[:1] or [n for n, r in known.items() if r["last_step"]][:1] or list(known)[:1]
    url.bound(st.text_input, "Find a run", "find", fallback="", placeholder="name, recipe, state or group",
              label_visibility="collapsed")  # fmt: skip
    st.fragment(_rows, run_every=POLL if living else IDLE)(house, chosen, url.get("find"), stamp(known, chosen))
    return chosen


def stamp(runs: Mapping[str, Any], chosen: Sequence[str]) -> list[Any]:
    """Return what must stay for the page around the charts to stand still: which compared runs move, whether they have
    numbers and checkpoints yet, and how far the others are."""
    told = [runs.get(n) or {} for n in chosen]
    return [(r.get("state") in LIVE, None if r.get("state") in LIVE else r.get("last_step"),
             r.get("last_step") is not None, bool(r.get("checkpoints"))) for r in told]  # fmt: skip


def _none_yet(house: Any) -> None:
    if house.runs():
        st.rerun()


def _rows(house: Any, chosen: list[str], find: str, seen: list[Any]) -> None:
    changed = stamp({r["name"]: r for r in house.runs()}, chosen) != seen  # a run from elsewhere has begun to move
    if st.session_state.pop("runs-changed", False) or changed:
        st.rerun()
    runs = [r for r in house.runs() if fits(r, find) or r["name"] in chosen]
    runs.sort(key=lambda r: (r["name"] not in chosen, r["state"] not in LIVE))
    alone = [r for r in runs if not r.get("group") or r["name"] in chosen]
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run.get("group") and run["name"] not in chosen:
            groups.setdefault(str(run["group"]), []).append(run)
    with st.container(height=380 if len(alone) + len(groups) > 9 else "content", key="run-list", border=False):
        _part(house, alone, chosen)
        for group, members in groups.items():
            with st.expander(f"{group} · {_runs(len(members))}{_living(members)}", icon=":material/folder:"):
                _part(house, members, chosen)
    for group in dict.fromkeys(str(r["group"]) for r in runs if r.get("group") and r["state"] in LIVE):
        left = [job["id"] for r in house.runs() if r.get("group") == group and (job := house.job_of_run(r["name"]))]
        if len(left) > 1:
            st.button(f"Stop all of {group} ({len(left)})", key=f"stop-group:{group}", icon=":material/stop:",
                      on_click=stop_all, args=(house.cancel, left))  # fmt: skip
    if not runs:
        st.caption("No run fits. Clear the filter to see all.")


def _runs(n: int) -> str:
    return f"{n} run" + ("" if n == 1 else "s")


def _living(members: Sequence[Mapping[str, Any]]) -> str:
    live = sum(r["state"] in LIVE for r in members)
    return f", {live} unfinished" if live else ""


def _part(house: Any, runs: list[dict[str, Any]], chosen: list[str]) -> None:
    for run in runs[:SHOWN]:
        _row(house, run, chosen)
    if len(runs) > SHOWN:
        st.caption(f"{SHOWN} of {len(runs)} runs; the filter finds the others")


def _row(house: Any, run: dict[str, Any], chosen: list[str]) -> None:
    name, full = run["name"], len(chosen) >= COMPARED and run["name"] not in chosen
    key = f"run:{name}"
    st.session_state[key] = name in chosen
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"row-{_plain(name)}"):
        st.checkbox(name, key=key, disabled=full, on_change=_toggle, args=(name, chosen), width="stretch",
                    help=f"{COMPARED} runs at most are compared" if full else None)
        st.html(_state(house, run), width="content")


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def _toggle(name: str, chosen: list[str]) -> None:
    on = st.session_state[f"run:{name}"]
    chosen = url.get("runs") or chosen  # another tick may have come since these were drawn
    url.put(runs=[*chosen, name][:COMPARED] if on else [n for n in chosen if n != name] or chosen)
    st.session_state["runs-changed"] = True


def _state(house: Any, run: Mapping[str, Any]) -> str:
    """State, progress while it lives, and the headline metric as a line."""
    job = house.job_of_run(run["name"]) if run["state"] in LIVE else None
    words = str(run["state"]) + (f" {job['progress']:.0%}" if job and job["state"] == "running" else "")
    pulse = '<span class="ps-pulse"></span>' if run["state"] == "running" else ""
    hint = f"step {theme.count(run['last_step'])}, {len(run['checkpoints'])} checkpoints"
    badge = theme.badge(words, KINDS.get(run["state"], "neutral"), hint)
    return f'<div class="ps-run">{_spark(house, run)}{pulse}{badge}</div>'


def _spark(house: Any, run: Mapping[str, Any]) -> str:
    kept = st.session_state.setdefault("sparks", {})
    stamp = (run.get("created"), run["last_step"], theme.dark())
    if kept.get(run["name"], (None,))[0] != stamp:
        recipe = house.recipes().get(run.get("recipe") or "")
        name = headline(house.metric_names(run["name"]), [m.name for m in recipe.metrics] if recipe else [])
        frame = house.metrics(run["name"], [name], points=60) if name else None
        first = frame[["step", "value"]].groupby("step").max() if frame is not None else None
        kept[run["name"]] = (stamp, spark_svg(first.index, first["value"]) if first is not None else "", name)
    _, image, name = kept[run["name"]]
    said = html.escape(str(name))
    return f'<img class="ps-spark" src="{image}" alt="{said}" title="{said}">' if image else ""
