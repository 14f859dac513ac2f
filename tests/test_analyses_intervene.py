"""Interventions on models: nothing changes nothing, everything patched is the other prompt, a wired circuit breaks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from backend.analyses._intervening import _direction, run
from backend.analyses.intervene import intervene
from backend.analyses.intervention_effect import _mean, elsewhere, intervention_effect, logit_diffs
from backend.contract import Pair, Pairs, Prompt, parse_spec
from backend.errors import BadInput
from backend.maths import interventions as language
from backend.maths.interventions import cycle
from backend.models import prompts
from tests import tiny_models
from tests.wired import config, wired_induction, wired_run

KINDS = ("gpt2", "neox", "llama", "native")


def quiet(fraction: float, words: str = "") -> None:
    assert 0 <= fraction <= 1


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {kind: tiny_models.opened(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return wired_run(tmp_path_factory.mktemp("wired") / "w", wired_induction(), config())


def pairs(model: Any, n: int = 6) -> Pairs:
    return prompts.make(model.card.model_dump(), "induction", n, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_changes_nothing_and_what_changes_all(models: dict[str, Any], kind: str) -> None:
    model, tokens = models[kind], torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    plain, other = model.logits(tokens), torch.tensor([[2, 7, 1, 8, 2], [8, 1, 8, 2, 8]])
    same = "scale L0.attn_out 1; add L1.resid_pre 0 token 3"
    assert torch.equal(run(model, tokens, ""), plain)
    assert torch.allclose(run(model, tokens, same), plain, atol=1e-5)
    assert torch.allclose(run(model, tokens, "patch L0.resid_pre", other), model.logits(other), atol=1e-5)
    assert not torch.allclose(run(model, tokens, "zero L1H0"), plain, atol=1e-4)
    column = (model.bare.head if kind == "native" else model.bare.get_output_embeddings()).weight[3]
    steered = model.run_with(tokens, {("resid_pre", 1): lambda x: x + 4 * column.detach() / column.norm()})
    assert torch.equal(run(model, tokens, "add L1.resid_pre 4 token 3"), steered) and not torch.equal(steered, plain)
    heads = "; ".join(f"zero L0H{h}" for h in range(model.card.n_heads))
    bias = model.capture(tokens, ["attn_out"], [0])["attn_out", 0] - _written_by_heads(model, tokens)
    whole = model.run_with(tokens, {("attn_out", 0): lambda x: bias})
    assert torch.allclose(run(model, tokens, heads), whole, atol=1e-4), "all heads at 0 leave the output bias"


@pytest.mark.parametrize("kind", KINDS)
def test_resampling_exchanges_rows_and_a_difference_of_prompts_leads_from_one_to_the_other(
    models: dict[str, Any], kind: str
) -> None:
    model, tokens = models[kind], torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [2, 7, 1, 8, 2]])
    plain, last = model.logits(tokens), model.card.n_layers - 1
    other = run(model, tokens, "resample L0.resid_pre seed 1")
    assert torch.allclose(other, plain[cycle(3, 1)], atol=1e-5), "everything of another row is that row"
    assert torch.allclose(run(model, tokens[:1], "resample L0.resid_pre", tokens[1:2]), plain[1:2], atol=1e-5)
    alone = run(model, tokens[:1], f"resample L{last}.resid_post seed 2")
    assert torch.allclose(alone, plain[:1, cycle(5, 2)], atol=1e-5), "a single row exchanges its positions"
    ends = model.capture(tokens[:2], ["resid_post"], [last])["resid_post", last]
    length = float((ends[0, -2] - ends[1, -2]).norm())
    steer = f"add L{last}.resid_post {length!r} prompt 3,1,4,1,5 minus 9,2,6,5,3 read -2 at 3"
    told = run(model, tokens[1:2], steer)
    assert torch.allclose(told[0, 3], plain[0, 3], atol=1e-6), "added in full it is the other prompt"
    assert torch.allclose(told[0, [0, 1, 2, 4]], plain[1, [0, 1, 2, 4]], atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_along_a_neuron_is_as_if_it_were_more_active(models: dict[str, Any], kind: str) -> None:
    model, tokens = models[kind], torch.tensor([[3, 1, 4, 1, 5]])

    def more(post: torch.Tensor) -> torch.Tensor:
        post[..., 3] += 2.0
        return post

    raised = model.run_with(tokens, {("mlp_post", 1): more})
    before, after = ({} for _ in range(2))
    for kept, edits in ((before, {}), (after, {("mlp_post", 1): more})):
        model.run_with(tokens, {**edits, ("mlp_out", 1): lambda out, kept=kept: kept.setdefault("out", out)})
    length = float((after["out"] - before["out"])[0, 0].norm())
    along = run(model, tokens, f"add L1.mlp_out {length!r} neuron L1N3")
    assert torch.allclose(along, raised, atol=1e-5) and not torch.allclose(along, model.logits(tokens), atol=1e-3)


def test_a_pair_alone_in_its_length_is_not_mixed_with_means_over_prompts(wired: Any) -> None:
    """Its mean would be over positions, that of the others over prompts."""
    one = pairs(wired, 3).pairs
    shorter = one[0].model_copy(update={"clean": one[0].clean[1:], "corrupted": one[0].corrupted[1:]})
    mixed = Pairs(pairs=(*one, shorter))
    for edits in ("mean L0H0", "resample L0H0"):
        with pytest.raises(BadInput, match="only one prompt has"):
            intervention_effect.compute(wired, mixed, intervention_effect.params(edits=edits), quiet)
    assert len(intervention_effect.compute(wired, mixed, intervention_effect.params(edits="zero L0H0"), quiet)) == 5


def test_other_rows_take_the_place_of_each_by_the_seed(wired: Any) -> None:
    tokens = torch.stack([torch.arange(6) + i for i in range(7)])
    z = wired.capture(tokens, ["z"], [0])["z", 0]
    told = []
    for seed in (0, 1, 2):
        def moved(t: torch.Tensor, seed: int = seed) -> torch.Tensor:
            t[:, :, 0] = z[cycle(7, seed)][:, :, 0]
            return t

        told.append(run(wired, tokens, f"resample L0H0 seed {seed}"))
        assert torch.equal(told[-1], wired.run_with(tokens, {("z", 0): moved}))


def test_a_token_less_another_raises_their_difference_by_its_length(wired: Any) -> None:
    """Without a final norm W_U reads it linearly: the difference moves by amount x |difference of the columns|."""
    tokens, last = torch.tensor([[3, 1, 4]]), wired.card.n_layers - 1
    before, after = (run(wired, tokens, e)[0, -1].double() for e in ("", f"add L{last}.resid_post 2 token 5 minus 7"))
    columns = wired.weights()["W_U"].double()
    moved = (after - before)[5] - (after - before)[7]
    assert float(moved) == pytest.approx(2 * float((columns[:, 5] - columns[:, 7]).norm()), rel=1e-5)
    with pytest.raises(BadInput, match="the same there"):
        run(wired, tokens, "add L0.resid_pre 2 token 5 minus 5")


def _written_by_heads(model: Any, tokens: Any) -> Any:
    """What the heads of layer 0 write: attn_out minus attn_out with z at 0."""
    seen: dict[str, Any] = {}

    def zero(z: Any) -> Any:
        return z * 0

    def keep(x: Any) -> Any:
        seen["bias"] = x.clone()
        return x

    model.run_with(tokens, {("z", 0): zero, ("attn_out", 0): keep})
    return model.capture(tokens, ["attn_out"], [0])["attn_out", 0] - seen["bias"]


def test_breaking_a_wired_circuit_and_its_control(wired: Any) -> None:
    subject = pairs(wired)
    table = intervention_effect.compute(wired, subject, intervention_effect.params(edits="zero L1H0"), quiet)
    mean = table.set_index("pair").loc[-1]
    assert mean["before"] > 20 and abs(mean["after"]) < 1e-6 and mean["effect"] == pytest.approx(-mean["before"])
    assert mean["effect_low"] <= mean["effect"] <= mean["effect_high"] and abs(mean["control"]) < 1e-6
    whole = "patch L0H0; patch L1H0"
    table = intervention_effect.compute(wired, subject, intervention_effect.params(edits=whole), quiet)
    assert table.set_index("pair").loc[-1, "after"] < -20, "with the corrupted prompt's heads it says the distractor"
    assert list(table["pair"]) == [-1, *range(6)]
    rows = table[table["pair"] >= 0]
    assert rows["effect"].mean() == pytest.approx(table["effect"][0])


def test_the_control_names_other_heads_of_the_same_layers(wired: Any) -> None:
    dice = np.random.default_rng(0)
    told = {elsewhere(wired, "zero L1H0; scale L0H1 2 at -1", dice) for _ in range(9)}
    assert told == {"zero L1H1; scale L0H0 2 at -1"}
    turned = elsewhere(wired, "add L1.resid_pre 3 token 5 minus 7 at -1; zero L0H0", dice)
    assert re.fullmatch(r"add L1.resid_pre 3 random \d+ at -1; zero L0H1", turned)
    assert elsewhere(wired, "zero L1.attn_out", dice) == "" and elsewhere(wired, "zero L1H0; zero L1H1", dice) == ""


def test_pairs_of_different_length_are_each_run_at_their_own(wired: Any) -> None:
    long, short = pairs(wired, 2).pairs
    cut = Pair(clean=short.clean[-5:], corrupted=short.corrupted[-5:], answer=short.answer, distractor=short.distractor)
    mixed = logit_diffs(wired, Pairs(pairs=(long, cut)), "zero L0H1")
    alone = [logit_diffs(wired, Pairs(pairs=(p,)), "zero L0H1")[0] for p in (long, cut)]
    assert mixed.tolist() == pytest.approx(alone)


def test_the_answer_before_and_after(wired: Any) -> None:
    pair = pairs(wired, 1).pairs[0]
    params = intervene.params(edits="zero L1H0", top_k=4, continue_by=3)
    table = intervene.compute(wired, Prompt(tokens=pair.clean), params, quiet)
    best = table[table["what"] == "next"].iloc[0]
    assert best["token_before"] == pair.answer and best["rank_before"] == 0 and best["prob_before"] > 0.9
    assert best["prob_after"] == pytest.approx(best["prob_after"]) and best["prob_after"] < 0.5
    assert table["kl"].iloc[0] > 0.1 and len(table[table["what"] == "written"]) == 3
    first = table[table["what"] == "written"].iloc[0]
    assert first["token_before"] == pair.answer
    same = intervene.compute(wired, Prompt(tokens=pair.clean), intervene.params(), quiet)
    assert same["kl"].iloc[0] == pytest.approx(0.0, abs=1e-12)
    assert (same["prob_before"] == same["prob_after"]).all() and (same["token_before"] == same["token_after"]).all()


@pytest.mark.parametrize(("edits", "words"), [
    ("zero L9H0", "Layer 9"), ("zero L0H9", "head 9"), ("zero L0.attn_out at 99", "position 99"),
    ("add L0.resid_pre 1 token 4000", "40 tokens"),
    ("add L0.resid_pre 1 token 5 minus 4000", "40 tokens"), ("patch L0H0", "no corrupted prompt"),
    ("set L0N3 1", "no such part")])
def test_a_place_that_the_model_lacks_is_said(wired: Any, edits: str, words: str) -> None:
    from backend.errors import PhasescopeError

    with pytest.raises(PhasescopeError, match=words):
        intervene.compute(wired, Prompt(tokens=(1, 2, 3)), intervene.params(edits=edits), quiet)


def test_lists_are_kept_by_name(tmp_path: Path) -> None:
    from backend import Backend

    house = Backend(tiny_models.settings(tmp_path), inline=True)
    try:
        house.keep_interventions("no copying", "zero L1H0 ;\n scale L0.attn_out 0.50")
        assert house.kept_interventions() == {"no copying": "zero L1H0; scale L0.attn_out 0.5"}
        for name, edits in (("../x", "zero L1H0"), ("x", ""), ("x", "nonsense")):
            with pytest.raises(BadInput):
                house.keep_interventions(name, edits)
        house.forget_interventions("no copying")
        assert house.kept_interventions() == {}
    finally:
        house.close()


def test_opening_is_by_the_registry(wired: Any) -> None:
    assert parse_spec(wired.card.spec).scheme == "run"


def test_a_random_direction_is_as_long_and_drawn_by_its_seed(wired: Any) -> None:
    steps = [2 * _direction(wired, language.parse(f"add L1.resid_pre 2 random {seed}")[0]) for seed in (7, 7, 8)]
    assert torch.equal(steps[0], steps[1]) and not torch.allclose(steps[0], steps[2])
    assert all(float(s.norm()) == pytest.approx(2) for s in steps)


def test_steering_is_held_against_random_directions(wired: Any) -> None:
    """Along the answer's token the wired model says it more; along a random direction hardly."""
    subject = pairs(wired, 1)
    edits = f"add L1.resid_post 40 token {subject.pairs[0].answer} minus {subject.pairs[0].distractor} at -1"
    mean = intervention_effect.compute(wired, subject, intervention_effect.params(edits=edits), quiet).iloc[0]
    assert mean["effect"] == pytest.approx(40 * 2**0.5) and abs(mean["control"]) < mean["effect"] / 4


def test_a_patch_shows_what_is_said_and_written_before_and_after(wired: Any) -> None:
    """Both heads' outputs of the corrupted prompt: the distractor is said, and what follows it there."""
    pair = pairs(wired, 1).pairs[0]
    corrupted = ",".join(map(str, pair.corrupted))
    params = intervene.params(edits="patch L1H0", corrupted=corrupted, continue_by=3)
    table = intervene.compute(wired, Prompt(tokens=pair.clean), params, quiet)
    written = table[table["what"] == "written"]
    assert written[["token_before", "token_after"]].iloc[0].tolist() == [pair.answer, pair.distractor]
    same = intervene.params(edits="patch L1H0", corrupted=",".join(map(str, pair.clean)))
    kept = intervene.compute(wired, Prompt(tokens=pair.clean), same, quiet)
    assert kept["kl"].iloc[0] == pytest.approx(0.0, abs=1e-12) and (kept["token_before"] == kept["token_after"]).all()
    with pytest.raises(BadInput, match="corrupted prompt of 2 tokens"):
        short = intervene.params(edits="patch L1H0", corrupted="1 2")
        intervene.compute(wired, Prompt(tokens=pair.clean), short, quiet)


def test_the_interval_of_a_mean_effect_is_95_percent_wide() -> None:
    effect = np.random.default_rng(0).normal(size=400)
    told = _mean(pd.DataFrame({"pair": range(400), "effect": effect}), 0).iloc[0]
    width = 2 * 1.96 * effect.std(ddof=1) / 400**0.5
    assert told["effect_high"] - told["effect_low"] == pytest.approx(width, rel=0.08)
