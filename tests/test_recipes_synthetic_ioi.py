"""synthetic_ioi: the sentences are what they claim, whole heads are dropped, a stopped run resumes to the same bits."""

import pytest
import torch
from safetensors.torch import load_file

from backend.models import sentences
from backend.runs import layout, zoo
from backend.runs.folder import RunFolder
from backend.runs.recipes import synthetic_ioi as recipe
from backend.runs.train import train
from backend.settings import SHIPPED_RUNS
from tests.recipe_kit import assert_resumes_alike, assert_stops_within_one_step, assert_words_for_all, go_on

SMALL = {"steps": 16, "d_model": 16, "n_layers": 2, "n_heads": 2, "batch_size": 8, "log_every": 5, "monitor_every": 10,
         "n_checkpoints": 3, "seed": 3, "head_dropout": 0.3, "device": "cpu"}  # fmt: skip
DEMO = RunFolder(SHIPPED_RUNS / "ioi-demo")


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- data


def test_every_row_is_a_sentence_whose_answer_is_the_other_name():
    rows = recipe.draw(2000, dice())
    names, symbols = set(sentences.NAMES), sentences.SYMBOLS
    made = dict.fromkeys(range(4), 0)
    for ids, last, answer, subject in zip(*(part.tolist() for part in rows), strict=True):
        words = [symbols[i] for i in ids]
        said, a, s = words[: last + 1], symbols[answer], symbols[subject]
        assert words[0] == "BOS" and "PAD" not in said and set(words[last + 1 :]) <= {"PAD"} and said[-1] == "to"
        assert a != s and {w for w in said if w in names} == {a, s} and said.count(s) == 2 and said.count(a) == 1
        slots = {"A": next(w for w in said if w in names), "P": next(w for w in said if w in sentences.PLACES),
                 "O": next(w for w in said if w in sentences.OBJECTS), "S": s}
        slots["B"] = a if slots["A"] == s else s
        (template,) = [t for t in range(4) if sentences.sentence(t, **slots) == " ".join(said)]
        made[template] += 1
    assert all(abs(n - 500) < 5 * (2000 * 3 / 16) ** 0.5 for n in made.values()), made


def test_draws_are_even_and_pairs_of_names_independent():
    """Answer first or second with probability 1/2 each, every name 1/40: within five standard errors."""
    n = 8000
    rows = recipe.draw(n, dice(1))
    ids = torch.tensor(sentences.ids(sentences.NAMES))
    answer, subject = ((rows.tokens == part[:, None]).int().argmax(1) for part in (rows.answer, rows.subject))
    assert abs((answer < subject).double().mean() - 0.5) < 5 * (0.25 / n) ** 0.5
    for part in (rows.answer, rows.subject):
        share = (part[:, None] == ids).double().mean(0)
        assert (share - 1 / 40).abs().max() < 5 * (39 / 1600 / n) ** 0.5


def test_padding_changes_nothing_before_it():
    model = recipe.build(recipe.SyntheticIoiParams(seed=1)).double()
    rows = recipe.draw(8, dice(2))
    logits = recipe.last_logits(model(rows.tokens), rows)
    for i, last in enumerate(rows.last.tolist()):
        alone = model(rows.tokens[i : i + 1, : last + 1])[0, -1]
        torch.testing.assert_close(logits[i], alone, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- model and measurements


def test_first_weights_have_the_stated_sizes():
    model = recipe.build(recipe.SyntheticIoiParams())
    sizes = {n: p.std().item() for n, p in model.named_parameters() if p.dim() == 2}
    for name, std in sizes.items():
        stated = 0.1 if name in ("tok_embed.weight", "pos.weight") else (3 * 64) ** -0.5
        assert std == pytest.approx(stated, rel=0.08), name
    assert len(sizes) == 3 + 4 * 4 and all(
        not p.requires_grad and not p.any() for n, p in model.named_parameters() if ".attn." in n and p.dim() == 1)


def test_measures_are_those_of_the_definition():
    """A model that says its answer with 3 logits more than the subject, which has 2 more than all else."""
    rows = recipe.draw(20, dice(4))

    def told(tokens):
        logits = torch.zeros(*tokens.shape, 70, dtype=torch.float64)
        at = torch.arange(len(tokens)), rows.last
        logits[(*at, rows.answer)], logits[(*at, rows.subject)] = 5.0, 2.0
        return logits

    loss = float(torch.tensor([5.0, 2.0, *[0.0] * 68], dtype=torch.float64).logsumexp(0) - 5)
    assert recipe.measure(told, rows) == pytest.approx({"loss": loss, "accuracy": 1.0, "logit_diff": 3.0})


def test_whole_heads_are_dropped_per_row_and_the_rest_rescaled():
    model = recipe.build(recipe.SyntheticIoiParams(n_layers=1)).double()
    z, seen = [], []
    o = model.layers[0].attn.o
    tokens = recipe.draw(400, dice()).tokens
    first = o.register_forward_pre_hook(lambda m, inputs: z.append(inputs[0].detach()))
    with recipe.dropping_heads(model, 0.25, dice(9)):
        last = o.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].detach()))
        model(tokens)
    last.remove()
    ratio = (seen[0] / z[0]).unflatten(-1, (4, 16)).flatten(3)  # [row, pos, head, d_head]
    kept = ratio[:, 0, :, 0] > 0
    expected = kept.double()[:, None, :, None] / 0.75
    torch.testing.assert_close(ratio, expected.expand_as(ratio), rtol=0, atol=1e-9)
    assert abs(kept.double().mean() - 0.75) < 5 * (0.1875 / 1600) ** 0.5 and kept.any(0).all()
    plain = model(tokens)
    assert len(z) == 2 and torch.equal(model(tokens), plain)  # nothing of it stays
    first.remove()


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ioi") / "straight"
    train("synthetic_ioi", SMALL, folder, False, go_on)
    return folder


def test_a_stopped_run_resumes_to_the_same_bits(straight, tmp_path):
    assert_resumes_alike("synthetic_ioi", SMALL, straight, tmp_path / "stopped", 7)


def test_a_stop_is_heard_within_one_step(tmp_path):
    assert_stops_within_one_step("synthetic_ioi", SMALL, tmp_path / "run")


def test_everything_logged_has_words(straight):
    assert_words_for_all("synthetic_ioi", straight)
    info = RunFolder(straight).info()
    assert info["tokenizer"] == {"kind": "words", "symbols": list(sentences.SYMBOLS)}
    assert recipe.seconds(recipe.SyntheticIoiParams(steps=10)) < recipe.seconds(recipe.SyntheticIoiParams(steps=20))


def test_checkpoints_lie_where_they_are_asked_for():
    params = recipe.SyntheticIoiParams(**zoo.ZOO["ioi-demo"][1])
    assert {180, 240, 300, 0, 700} <= recipe.checkpoint_steps(params) == set(DEMO.checkpoints())
    assert recipe.checkpoint_steps(recipe.SyntheticIoiParams(steps=100, n_checkpoints=5)) >= {0, 100}


def test_one_seed_one_run_and_another_seed_another():
    first = recipe.sample(recipe.SyntheticIoiParams(), 5, 1)
    assert first.shape == (5, 17) and torch.equal(first, recipe.sample(recipe.SyntheticIoiParams(), 5, 1))
    assert not torch.equal(first, recipe.sample(recipe.SyntheticIoiParams(), 5, 2))


# ---------------------------------------------------------------- the shipped run


def test_the_shipped_run_learns_whom_a_gift_goes_to():
    """Two names are told from the rest first (loss ln 2), then the subject from the other between steps 180 and 300."""
    rows = DEMO.read().rows
    curve = {m: rows[rows.metric == m].set_index("step").value for m in ("loss", "accuracy", "logit_diff")}
    assert curve["loss"][0] == pytest.approx(4.25, abs=0.5)
    assert 0.4 < curve["accuracy"][180] < 0.6 and abs(curve["logit_diff"][180]) < 0.5
    assert curve["accuracy"][300] > 0.99 and curve["accuracy"].iloc[-1] > 0.99 and curve["logit_diff"].iloc[-1] > 10


@pytest.mark.parametrize("step", [0, 240, 700])
def test_the_shipped_weights_give_their_numbers(step):
    training = recipe.make_training(recipe.SyntheticIoiParams(**DEMO.info()["params"]))
    training.model.load_state_dict(load_file(layout.file_of(DEMO.path, layout.CHECKPOINTS, step)))
    rows = DEMO.read().rows
    kept = rows[(rows.step == step) & rows.metric.isin([m.name for m in recipe.METRICS])].set_index("metric").value
    assert training.measure() == pytest.approx(kept.to_dict(), abs=2e-4)


def test_making_it_again_gives_the_same_files(tmp_path):
    made = [zoo.make("ioi-demo", tmp_path / n, steps=4, log_every=2, n_checkpoints=2) for n in ("a", "b")]
    for step in layout.steps_in(made[0]):
        one, two = (layout.file_of(f, layout.CHECKPOINTS, step).read_bytes() for f in made)
        assert one == two
    first = layout.file_of(DEMO.path, layout.CHECKPOINTS, 0).read_bytes()
    assert load_file(layout.file_of(made[0], layout.CHECKPOINTS, 0)).keys() == load_file(
        layout.file_of(DEMO.path, layout.CHECKPOINTS, 0)).keys() and len(first) < 320_000
