"""Every registered analysis keeps the promises of contract.py; a new file is an analysis with no second edit."""

import json
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from backend import analyses
from backend.contract import Corpus, EnergyWeights, Pair, Pairs, Prompt, Request, Rows, View, Weights, parse_spec
from backend.models.open import open_model
from backend.settings import Settings
from backend.tables import pack, unpack
from tests.energy_kit import problems, tiny_energy
from tests.lens_kit import lens_run
from tests.sae_kit import sae_run
from tests.tiny_models import opened, quiet

NAMES = sorted(analyses.registry())
TOKENS = (3, 9, 4, 9, 1, 3, 20, 17, 3, 9)
ROWS = np.random.default_rng(0).integers(50, size=(6, 10))
SUBJECTS = {
    "prompt": Prompt(tokens=TOKENS), "weights": Weights(), "energy_weights": EnergyWeights(),
    "pairs": Pairs(pairs=tuple(Pair(clean=a, corrupted=b, answer=a[2], distractor=a[5])
                               for a, b in zip(ROWS[:3].tolist(), ROWS[3:].tolist(), strict=True))),
    "corpus": Rows(tokens=ROWS, corpus=Corpus(source="random", rows=6, length=10)),
}  # fmt: skip
#: what has no default because it names something of the user's own, or takes long
GIVEN = {"hessian_blocks": {"probes": 2, "products": 5}, "hessian_spectrum": {"products": 10, "k": 2, "steps": 5},
         "energy_connectivity": {"points": 3, "bend_steps": 2},
         "energy_learning_coefficient": {"chains": 2, "draws": 10, "burn": 10},
         "energy_slices": {"directions": 2, "points": 5, "grid": 3},
         "loss_slices": {"directions": 2, "points": 5, "grid": 3},
         "learning_coefficient": {"chains": 2, "draws": 10, "burn": 10},
         "mode_connectivity": {"points": 3, "bend_steps": 2},
         "sae_features": {"sae": "sae-0"}, "feature_ablation": {"sae": "sae-0"},
         "feature_card": {"sae": "sae-0"}, "feature_drift": {"sae": "sae-0"},
         "sae_agreement": {"a": "sae-0", "b": "sae-1"},
         "tuned_lens": {"lens": "a-lens"}, "tuned_lens_quality": {"lens": "a-lens"},
         "exp003_sparse_features": {"steps": 10, "samples": 128}, "exp007_implicit_bias": {"steps": 30}}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    model = opened("native", root, "float32")
    for seed in (0, 1):
        sae_run(root / "runs" / f"sae-{seed}", model, seed)
    lens_run(root / "runs" / "a-lens", model, scale=0.1)
    return model


@pytest.fixture(scope="module")
def energy(tmp_path_factory):
    return tiny_energy(tmp_path_factory.mktemp("energy"), task="completion")


@pytest.fixture(scope="module")
def tables(tiny, energy):
    kept: dict[str, pd.DataFrame] = {}

    def table(name: str) -> pd.DataFrame:
        if name not in kept:
            asks_energy = analyses.registry()[name].subject.family == "energy"
            model = compiled() if name == "published_numbers" else energy if asks_energy else tiny
            kept[name] = compute(analyses.registry()[name], model)
        return kept[name]

    return table


def compiled():
    """A model of which numbers are published."""
    return open_model(parse_spec("tl:tracr_hist"), Settings(device="cpu"))


def compute(analysis, model) -> pd.DataFrame:
    kind = analysis.subject.model_fields["kind"].default
    subject = problems(model) if kind == "problems" else SUBJECTS[kind]
    assert analysis.unfit(model.card.capabilities) == ""
    return analysis.compute(model, subject, analysis.params(**GIVEN.get(analysis.name, {})), quiet)


def view(tiny) -> View:
    return View(tokens=[f" t{i}" for i in TOKENS], vocab=lambda i: f"w{i}", card=tiny.card.model_dump())


def test_the_shipped_analyses_are_all_sound():
    assert analyses.problems() == []
    assert {"attention", "logit_lens", "head_scores"} <= set(NAMES)
    assert len(NAMES) == len(analyses._files(analyses.HERE))


@pytest.mark.parametrize("name", NAMES)
def test_returns_what_it_declares(name, tables):
    analysis, frame = analyses.registry()[name], tables(name)
    assert list(frame.columns) == [c.name for c in (*analysis.axes, *analysis.values)] and len(frame)
    axes = [a.name for a in analysis.axes]
    assert not frame.duplicated(axes).any() and not frame[axes].isna().any().any()
    for column in analysis.scalars:
        known = frame[column.name].dropna()
        assert column.kind != "int" or (known % 1 == 0).all()
        assert column.kind not in ("int", "float") or np.isfinite(known.to_numpy(float)).all()
        assert column.kind != "str" or known.map(lambda x: isinstance(x, str)).all()


@pytest.mark.parametrize("name", NAMES)
def test_packs_and_unpacks_to_itself(name, tables):
    analysis, frame = analyses.registry()[name], tables(name)
    table, arrays = pack(analysis, frame)
    back = unpack(analysis, table.to_pandas(), arrays)
    scalars = [c.name for c in analysis.scalars]
    pd.testing.assert_frame_equal(back[scalars], frame[scalars], check_dtype=False)
    for value in analysis.arrays:
        for a, b in zip(frame[value.name], back[value.name], strict=True):
            np.testing.assert_array_equal(np.asarray(a, value.dtype), b)


@pytest.mark.parametrize("name", NAMES)
def test_has_words_for_everything(name):
    analysis = analyses.registry()[name]
    assert "Source:" in analysis.doc and analysis.title and analysis.asks.endswith("?")
    assert all(c.help for c in (*analysis.axes, *analysis.values))
    assert analyses.unfinished_params(analysis) == []
    json.dumps(analysis.schema(), allow_nan=False)
    analysis.params()  # every field has a default


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_sound(name, tables, tiny, energy):
    analysis = analyses.registry()[name]
    assert analysis.figures
    seen = view(energy if analysis.subject.family == "energy" else tiny)
    for figure in analysis.figures.values():
        built = [figure.build(tables(name).copy(), seen) for _ in range(2)]
        texts = [json.dumps(f.to_plotly_json(), cls=_Encoder) for f in built]
        assert texts[0] == texts[1], f"{figure.name} is not deterministic"
        json.loads(built[0].to_json(), parse_constant=_refuse)
        _check_axes(built[0], figure.name)
        assert built[0].layout.uirevision == "keep"
        assert built[0].layout.paper_bgcolor == "rgba(0,0,0,0)"


def _refuse(constant: str):
    raise AssertionError(f"{constant} is no JSON")


class _Encoder(json.JSONEncoder):
    def default(self, o):
        return np.asarray(o).tolist()


def _check_axes(figure, name: str) -> None:
    """Each column of panels names its x at the bottom, each row its y at the left (or shares it)."""
    layout = figure.layout.to_plotly_json()
    for letter in "xy":
        titles = [v.get("title", {}).get("text") for k, v in layout.items() if k.startswith(f"{letter}axis")]
        assert any(titles), f"{name} does not name its {letter} axis"
    assert figure.data


def test_figures_read_the_table_without_arrays(tables, tiny):
    """The page of all heads asks for scalars only."""
    frame = tables("attention").drop(columns="pattern")
    assert analyses.registry()["attention"].figures["overview"].build(frame, view(tiny)).data


# ---------------------------------------------------------------- a new file is a new analysis

NEW = '''
"""How large is the residual stream?

`norm` = |h| after each layer. Exact. One forward. Source: this test.
"""
import pandas as pd
import plotly.graph_objects as go
from pydantic import Field

from backend.contract import Axis, Params, Prompt, Value, analysis


class NormParams(Params):
    """Scale."""

    power: float = Field(1.0, ge=0.5, le=2.0, description="exponent of the norm")


@analysis(version=3, title="Norms", asks="How large?", subject=Prompt, params=NormParams,
          axes=[Axis("layer", "layer"), Axis("pos", "position", "token")],
          values=[Value("norm", "norm of the residual stream"),
                  Value("resid", "the stream itself", kind="array", dtype="float32")])
def norms(model, subject, params, progress):
    """Return one row per (layer, pos)."""
    kept = model.capture([list(subject.tokens)], ["resid_post"])
    progress(1.0, "done")
    return pd.DataFrame([
        {"layer": layer, "pos": pos, "norm": float(h.norm()) ** params.power, "resid": h.float().numpy()}
        for (_, layer), block in kept.items() for pos, h in enumerate(block[0])])


@norms.figure("Norms")
def curve(table, view):
    """Mean over positions."""
    mean = table.groupby("layer")["norm"].mean()
    return go.Figure(go.Scatter(x=mean.index, y=mean), layout={
        "xaxis": {"title": {"text": "layer"}}, "yaxis": {"title": {"text": "norm"}}, "uirevision": "keep"})
'''


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(textwrap.dedent(text).lstrip())
    return path


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "norms", NEW)
    return tmp_path


def test_a_new_file_is_a_whole_analysis(folder, tiny):
    norms = analyses.registry(folder)["norms"]
    assert norms.name == "norms" and norms.table == "norms_v3" and norms.compute.__module__ == "backend.analyses.norms"
    schema = norms.schema()
    assert schema["params"]["properties"]["power"]["maximum"] == 2.0 and schema["doc"].startswith("How large")
    frame = compute(norms, tiny)
    table, arrays = pack(norms, frame)
    back = unpack(norms, table.to_pandas(), arrays)
    np.testing.assert_array_equal(np.stack(list(back["resid"])), np.stack(list(frame["resid"])))
    assert len(arrays) == 2 and arrays[0].part == {"layer": 0}
    _check_axes(norms.figures["curve"].build(back, view(tiny)), "curve")


def test_a_new_file_has_keys(folder, tiny):
    norms, card = analyses.registry(folder)["norms"], tiny.card

    def key(**params) -> str:
        return Request(analysis=norms.name, version=norms.version, spec=card.spec, fingerprint=card.fingerprint,
                       dtype=card.dtype, device=card.device, subject=Prompt(tokens=TOKENS).model_dump(mode="json"),
                       params=norms.params(**params).model_dump(mode="json")).key

    assert key() == key(power=1.0) and key() != key(power=2.0)


def test_the_shipped_ones_stay_beside_it(folder):
    assert set(analyses.registry(folder)) == {*NAMES, "norms"} and "norms" not in analyses.registry()


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(folder):
    first = analyses.registry(folder)["norms"]
    assert analyses.registry(folder)["norms"] is first
    write(folder, "norms", NEW.replace("version=3", "version=44"))
    assert analyses.registry(folder)["norms"].version == 44


BROKEN = {
    "two": (NEW + NEW.replace("def norms", "def more").replace("@norms", "@more"), "declares 2 analyses"),
    "none": ('"""Nothing. Source: none."""\n', "declares 0 analyses"),
    "raises": ('"""Bad."""\nraise RuntimeError("not today")\n', "RuntimeError: not today"),
    "syntax": ("def oops(:\n", "SyntaxError"),
    "silent": (NEW.replace('"""How large', 'unused = """How large', 1), "no module docstring"),
    "rangeless": (NEW.replace("ge=0.5, le=2.0, ", ""), "power lacks a range"),
    "half": (NEW.replace("ge=0.5, ", ""), "power lacks a range"),
    "wordless": (NEW.replace(', description="exponent of the norm"', ""), "power lacks a description"),
    "required": (NEW.replace("Field(1.0, ", "Field("), "power lacks a default"),
    "twice": (NEW.replace('Value("norm"', 'Value("pos"'), "occurs twice"),
    "helpless": (NEW.replace('"norm of the residual stream"', '""'), "no help for the columns ['norm']"),
    "attention": (NEW, "an analysis named attention is shipped"),
    "not-a-name": (NEW, "not a Python name"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_and_takes_nobody_down(name, folder):
    text, complaint = BROKEN[name]
    path = write(folder, name, text)
    assert set(analyses.registry(folder)) == {*NAMES, "norms"}
    (problem,) = analyses.problems(folder)
    assert str(path) in problem and complaint in problem, problem


def test_a_corrected_file_comes_back(folder):
    path = write(folder, "late", "def oops(:\n")
    assert "late" not in analyses.registry(folder)
    path.write_text(NEW.lstrip())
    assert "late" in analyses.registry(folder) and analyses.problems(folder) == []


@pytest.mark.parametrize("name", [n for n in NAMES if analyses.registry()[n].judge])
def test_what_a_table_says_of_what_was_expected(name, tables, tiny, energy):
    analysis = analyses.registry()[name]
    claims = analysis.judge(tables(name).drop(columns=[v.name for v in analysis.arrays]),
                            view(energy if analysis.subject.family == "energy" else tiny))  # fmt: skip
    assert claims and all(c.criterion and c.null and c.value and "nan" not in c.value for c in claims)


def test_the_two_families_are_told_apart(tiny, energy):
    for one in analyses.registry().values():
        reasons = [one.unfit(model.card.capabilities) for model in (tiny, energy)]
        assert reasons[one.subject.family != "energy"], "the other family"
        assert not reasons[1] if one.subject.family == "energy" else True
