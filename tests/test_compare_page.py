"""The page Compare by AppTest: two checkpoints, two models, what cannot be put to both."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from streamlit.testing.v1 import AppTest

from app import views
from backend import Backend
from backend.errors import BadInput
from tests import page_kit
from tests.page_kit import said, settled_house


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with settled_house(tmp_path_factory.mktemp("compare")) as one:
        yield one


def visit(**query: str) -> AppTest:
    return page_kit.visit("compare", **query)


def titles(at: AppTest) -> set[str]:
    specs = [json.loads(c.proto.spec) for c in at.get("plotly_chart")]
    return {a["text"] for s in specs for a in s["layout"].get("annotations", [])}


def test_first_and_last_checkpoint_of_a_run_with_their_difference(backend: Backend) -> None:
    at = visit(model="run:induction-demo")
    assert {"step 1200", "step 0", "difference"} <= titles(at)


def test_two_models_of_one_vocabulary(backend: Backend) -> None:
    at = visit(model="run:induction-demo", step="1200", model_b="run:induction-1layer", step_b="800",
               compare="attention,head_scores")  # fmt: skip
    assert {"induction-demo (run) step 1200", "induction-1layer (run) step 800"} <= titles(at)
    assert len(next(s for s in at.selectbox if s.label == "Layer").options) == 1, "layers that both have"


def test_questions_about_tokens_are_left_out_where_vocabularies_differ(backend: Backend) -> None:
    at = visit(model="run:induction-demo", model_b="run:grokking-demo")
    offered = next(m for m in at.multiselect if m.label == "Compare in").options
    assert "Attention" not in offered and "Monitors" in offered


def test_two_circuits_of_one_run_are_counted_beside_chance_and_drawn_on_one_scale(backend: Backend) -> None:
    at = visit(model="run:induction-demo", step="1200", step_b="200", compare="circuit_nodes", n_pairs="4",
               task="induction_previous")  # fmt: skip
    table = at.dataframe[0].value
    assert list(table["of"]) == ["heads and MLPs"] and {"Jaccard", "by chance", "P(as many)"} <= set(table.columns)
    text = said(at)
    assert "only step 1200" in text and "only step 200" in text and "Edit distance" in text and "4 pairs" in text
    drawn = [json.loads(c.proto.spec) for c in at.get("plotly_chart")]
    scales = [t["marker"]["cmax"] for f in drawn for t in f["data"] if t.get("marker", {}).get("cmax")]
    assert len(scales) == 2 and scales[0] == scales[1]


def asked(backend: Backend, name: str, spec: str, step: int, task: str = "induction_previous") -> str:
    card = backend.open(spec, step)["card"]
    subject = backend.pairs(card, task, 4, 0)
    params = {"exact_top": 0, "exact_others": 0} if name == "circuit_edges" else {"ablate": "corrupted"}
    if (job := backend.ask(name, card, subject, {**params, "random": 1})["job"]) is not None:
        backend.wait(job["id"], 60)
    return str(backend.request(name, card, subject, {**params, "random": 1}).key)


@pytest.mark.parametrize("name", ["circuit_nodes", "circuit_edges"])
def test_a_circuit_with_itself_is_1_and_0_apart_and_with_another_as_counted(backend: Backend, name: str) -> None:
    whole, other = (asked(backend, name, "run:induction-demo", 1200, t) for t in ("induction_previous", "induction"))
    same = backend.circuit_overlap(whole, whole)
    assert same["distance"] == 0 and all(r["jaccard"] == 1 and not r["only_a"] for r in same["rows"])
    found = backend.circuit_overlap(whole, other)
    tables = [backend.table(k, arrays=False) for k in (whole, other)]
    inside = [t["in_circuit"].to_numpy(bool) for t in tables]
    row = found["rows"][-1]
    assert row["of"] == ("edges" if name == "circuit_edges" else "heads and MLPs") and row["among"] == len(tables[0])
    assert row["jaccard"] == (inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum() < 1
    assert row["distance"] == (inside[0] ^ inside[1]).sum() == len(row["only_a"]) + len(row["only_b"])
    assert found["distance"] == sum(r["distance"] for r in found["rows"]) and 0 < row["chance"] < 1
    assert backend.circuit_overlap(other, whole)["rows"][-1]["only_b"] == row["only_a"]


def test_what_are_no_two_circuits_of_the_same_parts_is_said(backend: Backend) -> None:
    nodes = asked(backend, "circuit_nodes", "run:induction-demo", 1200)
    with pytest.raises(BadInput, match="not two results"):
        backend.circuit_overlap(nodes, asked(backend, "circuit_edges", "run:induction-demo", 1200))
    with pytest.raises(BadInput, match="different parts"):
        backend.circuit_overlap(nodes, asked(backend, "circuit_nodes", "run:induction-1layer", 800))


def test_the_same_twice_is_said(backend: Backend) -> None:
    assert "A and B are the same" in said(visit(model="run:induction-demo", step="1200", step_b="1200"))


def test_titles_name_what_differs() -> None:
    a, b = {"spec": "run:x", "step": 1}, {"spec": "dir:/models/y", "step": None}
    assert views.titles_of([a, a | {"step": 2}]) == ("step 1", "step 2")
    assert views.titles_of([a, b]) == ("x (run) step 1", "y (dir)")


def test_what_wants_a_word_of_the_users_own_is_not_offered(backend: Backend) -> None:
    """A tuned lens, an autoencoder, a list of interventions: Compare has no field to name one."""
    from app import views

    offered = views.fitting(backend, backend.card("run:induction-demo", 1200).model_dump())
    assert {"attention", "circuit_nodes"} <= set(offered)
    wordy = {"tuned_lens", "sae_features", "sae_agreement", "feature_card", "intervene"}
    assert not wordy & set(offered)
    assert wordy <= set(views.fitting(backend, backend.card("run:induction-demo", 1200).model_dump(), named=True))
    told = said(visit(model="run:induction-demo", step="1200", step_b="0", compare="intervention_effect", n_pairs="2"))
    assert "Something must be named first" in told


def test_both_sides_are_asked_the_same_corpus_and_params(backend: Backend) -> None:
    """They are of the address: the corpus in its fields, the params of an analysis under its name."""
    at = visit(model="run:induction-demo", step="1200", model_b="run:induction-1layer", step_b="800", n_rows="7",
               source="random", compare="attention_statistics,intervention_effect", n_pairs="3",
               params="intervention_effect.edits=zero L0H0&attention_statistics.max_offset=3")  # fmt: skip
    kept = [backend.record(k) for k in backend.results()["key"]]
    corpora = [r for r in kept if r["analysis"] == "attention_statistics"]
    assert [r["subject"]["rows"] for r in corpora] == [7, 7] and {r["spec"] for r in corpora} == {
        "run:induction-demo", "run:induction-1layer"}  # fmt: skip
    edited = [r["params"]["edits"] for r in kept if r["analysis"] == "intervention_effect"]
    assert edited == ["zero L0H0"] * 2 and not said(at).count('role="alert"')
    next(n for n in at.number_input if n.label == "Max offset").set_value(4).run()
    assert "max_offset=4" in str(at.query_params["params"]) and "edits" in str(at.query_params["params"])
