"""The panels of the Results page."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import asking, theme, url, widgets
from app.parts import part_pickers
from app.picture import browser, image
from backend import export
from backend.contract import canonical_hash
from backend.errors import PhasescopeError

#: what a Parquet file says of itself
SIGNED = ("key", "analysis", "version", "spec", "step", "fingerprint", "dtype", "device", "subject", "params")
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
        pinned = [k for k in keys if bool(found.set_index("key").loc[k, "pinned"])]
        _delete(house, [k for k in keys if k not in pinned], len(pinned))
        if len(keys) == 1 and keys[0] != url.get("key"):
            url.put(key=keys[0])


def _delete(house: Any, keys: list[str], pinned: int) -> None:
    """Ask before deleting; pinned results stay."""
    if pinned:
        st.caption(f"{pinned} pinned: unpin to delete")
    if not keys:
        return
    with st.popover(f"Delete {len(keys)}", icon=":material/delete:"):
        st.markdown(f"Delete {len(keys)} results and their figures? They can be computed again.")
        if st.button("Delete for good", type="primary"):
            house.delete(keys)
            url.put(key=None)
            st.rerun()


def _step(step: Any) -> str:
    return "" if pd.isna(step) else str(int(step))


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
            st.rerun()
        names = list(asked.figures)
        name = url.bound(
            st.selectbox, "Figure", "figure", names[0], options=names, format_func=lambda n: asked.figures[n].title
        )
        chosen = part_pickers(house, key, asked.figures[name].choose)
        figure = house.figure(key, name, chosen)
        st.plotly_chart(figure, key=f"result:{key}:{name}")
        downloads(house, record, figure)
        asking.provenance(house, key)
    except PhasescopeError as error:
        widgets.error_panel(error)


def downloads(house: Any, record: dict[str, Any], figure: Any) -> None:
    """Offer the table and the figure as files named after analysis, subject and key; made when asked for."""
    place = record["spec"].replace(":", "-").replace("/", "-") + (
        f"-step{_step(record['step'])}" if _step(record["step"]) else ""
    )
    base = f"{record['analysis']}_{place}_{record['key'][:8]}"
    drawable = browser() is not None
    titled = signed(figure, record)
    for column, form in zip(st.columns(5), ("csv", "parquet", "html", "png", "svg"), strict=True):
        blind = form in ("png", "svg") and not drawable
        column.download_button(
            form.upper(),
            _lazily(house, record, titled, form),
            f"{base}.{form}",
            MIME[form],
            key=f"save:{form}:{record['key']}",
            on_click="ignore",
            disabled=blind,
            help="Needs Chromium or Chrome on this machine" if blind else None,
        )


def signed(figure: Any, record: dict[str, Any]) -> Any:
    """Return a copy of a figure that says where it comes from: an exported picture travels alone."""
    from plotly.graph_objects import Figure

    step = f" at step {_step(record['step'])}" if _step(record["step"]) else ""
    words = f"{record['title']} · {record['spec']}{step} · {record['dtype']} · key {record['key'][:8]}"
    copy = Figure(figure)
    named = copy.layout.title.text
    text = (f"{named}<br>" if named else "") + f"<sup>{words}</sup>"
    return copy.update_layout(title={"text": text, "x": 0.01, "xref": "container"}, margin={"t": 80})


def _lazily(house: Any, record: dict[str, Any], figure: Any, form: str) -> Any:
    def make() -> bytes:
        if form == "html":
            return figure.to_html(include_plotlyjs=True).encode()
        if form in ("png", "svg"):
            return image(figure, form)
        return export.to_bytes(house.table(record["key"]), form, {k: record[k] for k in SIGNED})

    return make
