"""From a form to numbers: the kept result at once, else a job with progress, cancel and, if it fails, its story."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from app import theme, widgets
from app.links import link
from backend.errors import PhasescopeError, from_record

PATIENCE = 10.0  # s a page waits in place for a job, interruptible by any click, before it lets a fragment watch
ENDED = ("done", "failed", "cancelled", "interrupted")
LOOKS, UNKNOWN = 60, 60.0  # times that a page looks at a job while it runs; s where nobody knows how long that takes
LONG = 10.0  # s expected above which nothing starts without a click


def answer(
    house: Any,
    analysis: str,
    card: Mapping[str, Any],
    subject: Any,
    params: Mapping[str, Any] | None = None,
    start: bool | None = None,
    patience: float = PATIENCE,
) -> str | None:
    """Return the key of the kept result; where there is none, compute it and show how it goes (then None).

    `start=None` computes at once unless it is expected to take long; False waits for the button. What stands below on
    the page waits up to `patience` s: give a small one where it need not.
    """
    try:
        request = house.request(analysis, card, subject, params or {})
        if house.has(request.key):
            return request.key
        last = house.last_job(request.key)
        if last is not None and last["state"] == "queued":  # of a sweep perhaps: now somebody looks at it
            last = house.ask(analysis, card, subject, params)["job"] or last
        if last is None or last["state"] == "done":
            if not _may_start(house, analysis, card, subject, params or {}, request.key, start):
                return None
            last = house.ask(analysis, card, subject, params)["job"]
        if last is None:
            return request.key
        again = lambda: house.ask(analysis, card, subject, params)  # noqa: E731
        expected = lambda: house.estimate(analysis, card, subject, params)["seconds"]  # noqa: E731
        return request.key if finish(house, last, again, patience, expected) else None
    except PhasescopeError as error:
        widgets.error_panel(error)
        return None


def _may_start(house: Any, analysis: str, card: Any, subject: Any, params: Any, key: str, start: bool | None) -> bool:
    """Say whether to start: what is short at once, else on a click that knows the price. Raises where it cannot fit."""
    told = house.estimate(analysis, card, subject, params)
    if told["refused"]:
        raise from_record(told["refused"])
    if start or (start is None and (told["seconds"] is None or told["seconds"] < LONG)):
        return True
    return st.button(f"Compute{price(told)}", type="primary", key=f"compute:{key}", help=PRICED.get(told["basis"]))


PRICED = {
    "probe": "Estimated from a short probe of this model and the calls that this request makes",
    "history": "Estimated from earlier results of this analysis, scaled to this model and subject",
}


def price(told: Mapping[str, Any]) -> str:
    """Say what a request is estimated to take: " (about 12 s, 340 MB)"; nothing where that is not known."""
    known = [
        *([theme.seconds(told["seconds"])] if told["seconds"] is not None else []),
        *([theme.bytes(told["memory_bytes"])] if told["memory_bytes"] is not None else []),
    ]
    return f" (about {', '.join(known)})" if known else ""


def finish(
    house: Any, job: dict[str, Any], again: Callable[[], Any], patience: float = PATIENCE,
    expected: Callable[[], float | None] = lambda: None,
) -> bool:
    """Show a job until it has ended; True when it is done. Waits a little in place, then lets a fragment watch.

    How often that looks depends on the seconds that are `expected` of the job.
    """
    place = st.container()
    job = house.job(job["id"])
    if job["state"] not in ENDED:
        job = _wait_here(house, job, place, patience)
    if job["state"] == "done":
        return True
    with place:
        if job["state"] in ENDED:
            story(job, lambda: _retry(house, job, again))
        else:
            st.fragment(_watch, run_every=pace(expected()))(house, job["id"])
    return False


def pace(expected: float | None) -> float:
    """Return the seconds between two looks at a job; every look sends some 6 kB, whatever it shows."""
    return float(min(5.0, max(0.4, (UNKNOWN if expected is None else expected) / LOOKS)))


def _retry(house: Any, job: dict[str, Any], again: Callable[[], Any]) -> None:
    try:
        house.retry(job["id"])
    except PhasescopeError:
        again()


def _wait_here(house: Any, job: dict[str, Any], place: Any, patience: float) -> dict[str, Any]:
    """Wait in short slices; each redraw is a point where a click of the user may interrupt."""
    end = time.monotonic() + patience
    job = house.wait(job["id"], 0.12)
    if job["state"] in ENDED:
        return job
    with place:
        shown = st.empty()
        with shown.container():
            bar = _progress_row(house, job, "here")
        while job["state"] not in ENDED and time.monotonic() < end:
            job = house.wait(job["id"], 0.06)
            bar.progress(min(job["progress"], 1.0), text=words(job))
        shown.empty()
    return job


def _progress_row(house: Any, job: dict[str, Any], where: str) -> Any:
    with st.container(horizontal=True, vertical_alignment="center"):
        left, right = st.container(), st.container(width="content")
    bar = left.progress(min(job["progress"], 1.0), text=words(job))
    right.button("Cancel", key=f"cancel-{where}:{job['id']}", on_click=widgets.act,
                 args=(house.cancel, job["id"]))
    return bar


def words(job: Mapping[str, Any]) -> str:
    """Say in one line how a job stands."""
    if job["state"] == "queued":
        ahead = job.get("position")
        return f"{job['title']} · queued" + (", next" if ahead == 1 else f", place {ahead}" if ahead else "")
    return f"{job['title']} · {job['words'] or job['state']}"


def _watch(house: Any, job_id: str) -> None:
    job = house.job(job_id)
    if job["state"] in ENDED:
        st.rerun()
    _progress_row(house, job, "watch")


def story(job: Mapping[str, Any], retry: Callable[[], Any] | None = None) -> None:
    """Show how an unfinished job ended, why, and the way on."""
    if job.get("error"):
        widgets.error_panel(job["error"])
    else:
        st.info(f"{job['title']}: {job['state']}.", icon=":material/info:")
    if job["story"]:
        with st.expander("The story of this job"):
            for line in job["story"]:
                st.markdown(f"- {theme.ago(line['time'])}: {line['text']}")
    if retry is not None:
        st.button("Try again", key=f"retry:{job['id']}", on_click=retry)


def provenance(house: Any, key: str, where: Mapping[str, int] | None = None) -> None:
    """The last expander of a page: numbers, SQL, and where they come from."""
    record = house.record(key)
    made = record["provenance"]
    st.caption(
        f":material/schedule: Computed {theme.ago(record['created'])} on {made.get('device', '?')} in "
        f"{theme.seconds(record['seconds'])} · {record['dtype']} · key `{key[:8]}`"
    )
    with st.expander("Numbers and provenance"):
        table = house.table(key, where, arrays=False)
        shown = table.head(500)
        st.dataframe(shown, hide_index=True, height=260)
        if len(shown) < len(table):
            st.caption(f"{len(shown)} of {len(table)} rows; export the rest on the Results page")
        st.code(house.sql(key), language="sql")
        asked = house.analyses().get(record["analysis"])
        left, right = st.columns(2)
        left.json(
            {
                "key": key,
                **{
                    n: record[n]
                    for n in ("analysis", "version", "spec", "step", "fingerprint", "dtype", "device", "params")
                },
            },
            expanded=1,
        )
        right.json(made, expanded=1)
        if asked:
            st.markdown(asked.doc)
        columns = st.columns(3)
        if columns[0].button("Compute again", key=f"again:{key}", help="Deletes this result and computes it anew"):
            house.delete([key])
            st.rerun()
        with columns[1]:
            link("results", label="Export this result", query={"key": key})
