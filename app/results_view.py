"""The panels of the Results page."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import asking, theme, url, widgets
from backend import export
from backend.contract import canonical_hash
from backend.errors import PhasescopeError

MIME = {
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
    "html": "text/html",
    "svg": "image/svg+xml",
    "png": "image/png",
}


def result_list(house: Any) -> None:
    """Filter and choose; a chosen row opens below."""
    left, right = st.columns([1, 2])
    with left:
        analysis = url.bound(
            st.selectbox,
            "Analysis",
            "analysis",
            fallback="",
            options=["", *house.analyses()],
            format_func=lambda n: n or "all",
        )
    with right:
        text = url.bound(st.text_input, "Find", "find", fallback="", placeholder="model, prompt, parameter, key")
    # opening a result uses it: an order by last use would move the rows under the selection
    found = house.results(analysis, text).sort_values("created", ascending=False, ignore_index=True)
    if not len(found):
        widgets.empty_state(
            "Nothing kept" + (" that fits" if text or analysis else " yet"),
            "Clear the filter." if text or analysis else "Open Attention: what it computes appears here.",
        )
        return
    rows = [
        {
            "analysis": r.title,
            "model": r.spec,
            "step": _step(r.step),
            "rows": r.rows,
            "took": theme.seconds(r.seconds),
            "size": theme.bytes(r.bytes),
            "computed": theme.ago(r.created),
            "pinned": bool(r.pinned),
            "key": r.key[:8],
        }
        for r in found.itertuples()
    ]
    picked = st.dataframe(
        rows,
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        height=min(35 * (len(rows) + 1) + 3, 330),
        key=f"results:{canonical_hash(list(found['key']))}",  # other rows: another selection
    )
    keys = [found.iloc[i]["key"] for i in picked["selection"]["rows"] if i < len(found)]
    total = house.count_results(analysis, text)
    st.caption(
        f"{len(found)} of {total} results"
        + (f", {len(keys)} chosen" if keys else "; choose rows to open or delete them")
    )
    if keys:
        if st.button(f"Delete {len(keys)}", icon=":material/delete:"):
            house.delete(keys)
            url.put(key=None)
            st.rerun()
        if len(keys) == 1 and keys[0] != url.get("key"):
            url.put(key=keys[0])


def _step(step: Any) -> str:
    return "" if step is None or step != step else str(int(step))


def open_result(house: Any, key: str) -> None:
    """Draw the figures of a kept result, its provenance, pin and exports."""
    try:
        record = house.record(key)
        asked = house.analysis(record["analysis"])
        st.markdown(
            f"#### {record['title']}: {record['spec']}"
            + (f" at step {_step(record['step'])}" if _step(record["step"]) else "")
        )
        pinned = st.toggle(
            "Pinned", value=bool(record["pinned"]), key=f"pin:{key}", help="A pinned result is never evicted"
        )
        if pinned != bool(record["pinned"]):
            house.pin(key, pinned)
        name = st.selectbox(
            "Figure", list(asked.figures), format_func=lambda n: asked.figures[n].title, key=f"figure:{key}"
        )
        chosen = _part(house, key, asked.figures[name].choose)
        figure = house.figure(key, name, chosen)
        st.plotly_chart(figure, key=f"result:{key}:{name}")
        downloads(house, record, figure)
        asking.provenance(house, key)
    except PhasescopeError as error:
        widgets.error_panel(error)


def _part(house: Any, key: str, axes: tuple[str, ...]) -> dict[str, int]:
    if not axes:
        return {}
    table = house.table(key, arrays=False)
    places = st.columns(max(4, len(axes)))
    return {
        a: p.selectbox(a, sorted(int(v) for v in table[a].unique()), key=f"part:{key}:{a}")
        for a, p in zip(axes, places, strict=False)
    }


def downloads(house: Any, record: dict[str, Any], figure: Any) -> None:
    """Offer the table and the figure as files named after analysis, subject and key; made when asked for."""
    base = f"{record['analysis']}_{record['spec'].replace(':', '-').replace('/', '-')}_{record['key'][:8]}"
    forms = st.columns(5)
    for place, form in zip(forms, ("csv", "parquet", "html", "png", "svg"), strict=True):
        data = _lazily(house, record["key"], figure, form)
        place.download_button(
            form.upper(), data, f"{base}.{form}", MIME[form], key=f"save:{form}:{record['key']}", on_click="ignore"
        )


def _lazily(house: Any, key: str, figure: Any, form: str) -> Any:
    def make() -> bytes:
        if form in ("csv", "parquet"):
            return export.to_bytes(house.table(key), form)
        if form == "html":
            return figure.to_html(include_plotlyjs=True).encode()
        return figure.to_image(format=form, width=1100, height=650, scale=2 if form == "png" else 1)

    return make
