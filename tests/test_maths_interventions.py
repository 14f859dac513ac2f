"""The language of interventions: what is read is what is written, and each operation does what it says."""

from __future__ import annotations

import pytest
import torch

from backend.maths.interventions import change, cycle, parse

LINES = ["zero L1H2", "mean L0.mlp_out at 3,-1", "scale L0.attn_out 0.5", "set L0N17 4", "add L1.resid_pre 3 token 5",
         "add L1.resid_post -2 feature my-sae.1 12 at -1", "patch L1H2 at -1",
         "resample L1H2 seed 3 at 0", "resample L0.mlp_out", "add L1.resid_pre 3 token 5 minus 7",
         "add L1.resid_post 2 prompt 4,9,1 minus 4,8 read -2 at -1", "add L0.attn_out 2 prompt 4 minus 5",
         "add L1.resid_pre 2 neuron L0N17 at 1"]  # fmt: skip


def test_what_is_written_is_read_back() -> None:
    found = parse(";\n".join(LINES))
    assert [str(one) for one in found] == LINES and parse("; \n ;") == []
    assert parse("scale L0H1 .5")[0].amount == 0.5
    assert (found[0].point, found[0].layer, found[0].head) == ("z", 1, 2)
    assert (found[3].point, found[3].neuron, found[3].amount) == ("mlp_post", 17, 4.0)
    assert (found[7].seed, found[8].seed, found[9].token, found[9].minus) == (3, 0, 5, 7)
    assert (found[10].prompt, found[10].other, found[10].read, found[11].read) == ((4, 9, 1), (4, 8), -2, -1)
    assert found[1].positions == (3, -1) and (found[5].sae, found[5].feature) == ("my-sae.1", 12)


@pytest.mark.parametrize(("line", "words"), [
    ("nought L1H2", "none of zero"), ("zero", "no intervention"), ("zero L1.resid_mid", "none of resid_pre"),
    ("scale L1H2", "takes an amount"), ("zero L1H2 3", "takes no amount"), ("add L1.resid_pre 3", "direction"),
    ("zero L1.resid_pre token 3", "direction"), ("add L1H2 3 token 4", "direction"),
    ("zero L1H2 at x", "no intervention"), ("zero L1H2 seed 3", "seed is for"), ("resample L1H2 3", "takes no amount"),
    ("add L0N3 2", "takes a direction on"), ("add L1H2 3", "takes a direction on"),
    ("add L0.z 2 token 1", "direction on"),
    ("add L1.resid_pre 3 prompt 4,5", "no intervention"), ("resample L1.resid_pre token 3", "direction"),
])  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(line: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        parse(f"zero L0H0; {line}")
    assert line in str(error.value)


def applied(line: str, tensor: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
    return change(parse(line)[0], **more)(tensor.clone())


def test_each_operation_on_its_place_alone() -> None:
    z = torch.arange(24, dtype=torch.float64).reshape(2, 3, 2, 2) + 1  # row, pos, head, d_head
    other = -z
    head = z[:, :, 1]
    for line, expected in {"zero L0H1": 0 * head, "scale L0H1 0.5": 0.5 * head, "set L0H1 7": 0 * head + 7,
                           "patch L0H1": other[:, :, 1], "resample L0H1 seed 4": other[:, :, 1],
                           "mean L0H1": head.mean(0).expand(2, 3, 2)}.items():
        new = applied(line, z, other=other)
        assert torch.equal(new[:, :, 1], expected) and torch.equal(new[:, :, 0], z[:, :, 0]), line
    at_last = applied("zero L0H1 at -1", z)
    assert not at_last[:, 2, 1].any() and torch.equal(at_last[:, :2], z[:, :2])


@pytest.mark.parametrize("n", [2, 3, 7])
def test_a_cycle_visits_all_and_keeps_none_and_follows_its_seed(n: int) -> None:
    seen, at = [], 0
    for _ in range(n):
        at = cycle(n, 5)[at]
        seen.append(at)
    assert sorted(seen) == list(range(n)) and cycle(n, 5) == cycle(n, 5) and cycle(1, 5) == [0]
    assert n < 7 or cycle(n, 5) != cycle(n, 6)


def test_the_mean_of_a_single_row_is_over_its_positions() -> None:
    x = torch.arange(6, dtype=torch.float64).reshape(1, 3, 2)
    assert torch.equal(applied("mean L0.mlp_out", x), x.mean(1, keepdim=True).expand(1, 3, 2))


def test_a_neuron_and_a_direction() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    new = applied("set L0N2 5", x)
    assert (new[:, :, 2] == 5).all() and torch.equal(new[:, :, [0, 1, 3]], x[:, :, [0, 1, 3]])
    unit = torch.tensor([0.0, 1, 0, 0], dtype=torch.float64)
    steered = applied("add L0.resid_pre 3 token 1 at 0", x, direction=unit)
    assert torch.allclose(steered[:, 0] - x[:, 0], 3 * unit.expand(2, 4)) and torch.equal(steered[:, 1:], x[:, 1:])


@pytest.mark.parametrize("line", ["zero L0H9", "zero L0N9", "zero L0.mlp_out at 9", "zero L0.mlp_out at -9"])
def test_a_place_that_is_not_there_is_an_index_error(line: str) -> None:
    with pytest.raises(IndexError, match="9"):
        applied(line, torch.zeros(1, 3, 2, 2) if "H" in line else torch.zeros(1, 3, 4))


@pytest.mark.parametrize("amount", ["0.123456789012", "1234567.5", "1e-300", "2", "-0.1"])
def test_an_amount_is_read_back_to_the_last_digit(amount):
    (one,) = parse(f"scale L0H0 {amount}")
    assert one.amount == float(amount) and parse(str(one)) == [one]


def test_an_amount_beyond_numbers_is_refused():
    with pytest.raises(ValueError, match="too large to be a number"):
        parse("scale L0H0 1e999")
