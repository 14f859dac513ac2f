"""Glossary: every quantity with its definition, unit and source, from the analyses themselves."""

import streamlit as st

from app import house, url
from app.terms import fitting

backend = house.backend()
st.markdown("### Glossary")
st.caption(
    "What each quantity means, its unit, and where the definition comes from. Made from the analyses themselves."
)
find = url.bound(st.text_input, "Find", "find", fallback="", placeholder="entropy").lower()
terms = fitting(find)
if terms:
    with st.container(border=True):
        st.markdown("#### Transitions\nWhat the Training page says of a change.")
        st.table({"term": list(terms), "meaning": list(terms.values())}, hide_index=True)
for one in backend.analyses().values():
    columns = [c for c in (*one.axes, *one.values) if find in f"{c.name} {c.help}".lower()]
    if find and not columns and find not in one.doc.lower():
        continue
    with st.container(border=True):
        st.markdown(f"#### {one.title}\n{one.asks}")
        st.table(
            {
                "quantity": [c.name for c in columns],
                "meaning": [c.help for c in columns],
                "unit": [c.unit or "none" for c in columns],
            },
            hide_index=True,
        )
        with st.expander("Definition and source"):
            st.markdown(one.doc)

said = [m for m in backend.metric_words().values() if find in f"{m.name} {m.title} {m.help}".lower()]
if said:
    with st.container(border=True):
        st.markdown("#### Training metrics\nWhat runs log: recipes and monitors.")
        st.table(
            {
                "metric": [m.name for m in said],
                "title": [m.title for m in said],
                "meaning": [m.help for m in said],
                "unit": [m.unit or "none" for m in said],
            },
            hide_index=True,
        )
