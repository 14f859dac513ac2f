"""Interventions as text and as functions of a tensor: ablate, scale, set, steer, patch, at a layer, head and positions.

One line each, `;` or a new line between them:
    zero L1H2                     the head's output z is 0 everywhere
    mean L0.mlp_out at 3,-1       its mean over rows (or over positions, of a single row) at positions 3 and last
    resample L1H2 seed 3          its value on another row (of a single row: at another position), drawn with the seed
    scale L0.attn_out 0.5         multiplied
    set L0N17 4                   neuron 17 of the layer's MLP (mlp_post) has the value 4
    add L1.resid_pre 3 token 5    3 times the unit vector of W_U's column of token 5 is added
    add L1.resid_pre 3 token 5 minus 7       along W_U's column of token 5 minus that of token 7, of length 1
    add L1.resid_pre 3 prompt 4,9,1 minus 4,8,1     along what the point holds at the last token of one prompt minus
                                  another's, of length 1 (`read -2`: at the last but one)
    add L1.resid_pre 2 neuron L0N17          along what neuron 17 of layer 0 writes (its row of W_out), of length 1
    add L1.resid_pre 2 feature my-sae 12     2 times the unit decoder direction of a feature of a trained SAE,
                                  or direction 12 of a set kept from pca_directions
    add L1.resid_pre 2 random 7              along a direction drawn with seed 7, of length 1: a control
    patch L1H2 at -1              the value that it has on the corrupted prompt (pairs only)
A point is one of POINTS; L1H2 is z of that head, L1N7 mlp_post of that neuron. Positions count from 0, negative ones
from the end; without `at` all are meant. Where several name one place they act in turn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

POINTS = ("resid_pre", "resid_post", "attn_out", "mlp_out", "mlp_post", "z")
STREAM = ("resid_pre", "resid_post", "attn_out", "mlp_out")  # where a direction of the stream can be added
OPERATIONS = ("zero", "mean", "resample", "scale", "set", "add", "patch")
NEEDS_AMOUNT = ("scale", "set", "add")
DIRECTIONS = "`token 5`, `token 5 minus 7`, `neuron L0N17`, `feature NAME 12`, `random 7`, `prompt 4,9 minus 4,8` (ids)"
_PLACE = re.compile(r"L(\d{1,3})(?:H(\d{1,4})|N(\d{1,6})|\.([a-z_]+))$")
_LINE = re.compile(
    r"(?P<op>[a-z]+)\s+(?P<place>\S+?)(?:\s+(?P<amount>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?))?"
    r"(?:\s+token\s+(?P<token>\d+)(?:\s+minus\s+(?P<minus>\d+))?"
    r"|\s+neuron\s+L(?P<writer>\d{1,3}N\d{1,6})"
    r"|\s+random\s+(?P<random>\d{1,10})"
    r"|\s+feature\s+(?P<sae>[A-Za-z0-9._~/-]+)\s+(?P<feature>\d+)"
    r"|\s+prompt\s+(?P<prompt>\d+(?:,\d+)*)\s+minus\s+(?P<other>\d+(?:,\d+)*)(?:\s+read\s+(?P<read>-?\d+))?)?"
    r"(?:\s+seed\s+(?P<seed>\d{1,10}))?"
    r"(?:\s+at\s+(?P<at>-?\d+(?:\s*,\s*-?\d+)*))?$"
)


@dataclass(frozen=True)
class Intervention:
    """One change: `op` on (point, layer), of one head or neuron where it is not None, at `positions` (all: ()).

    The direction of `add` is `token` (less `minus`), what neuron `writer` (layer, neuron) writes, `feature` of `sae`,
    one drawn with the seed `random`, or `prompt` less `other`, token ids that are read at position `read`; `seed` is
    resample's.
    """

    op: str
    point: str
    layer: int
    head: int | None = None
    neuron: int | None = None
    amount: float | None = None
    token: int | None = None
    minus: int | None = None
    writer: tuple[int, int] | None = None
    random: int | None = None
    sae: str = ""
    feature: int | None = None
    prompt: tuple[int, ...] = ()
    other: tuple[int, ...] = ()
    read: int = -1
    seed: int = 0
    positions: tuple[int, ...] = ()

    def __str__(self) -> str:
        place = (f"L{self.layer}H{self.head}" if self.head is not None else
                 f"L{self.layer}N{self.neuron}" if self.neuron is not None else f"L{self.layer}.{self.point}")
        parts = [self.op, place, *([_number(self.amount)] if self.amount is not None else [])]
        parts += [self._along()] if self.op == "add" else []
        parts += ["seed", str(self.seed)] if self.seed else []
        return " ".join([*parts, *(["at", _joined(self.positions)] if self.positions else [])])

    def _along(self) -> str:
        if self.writer:
            return "neuron L{}N{}".format(*self.writer)
        if self.random is not None:
            return f"random {self.random}"
        if self.sae:
            return f"feature {self.sae} {self.feature}"
        if self.prompt:
            read = f" read {self.read}" if self.read != -1 else ""
            return f"prompt {_joined(self.prompt)} minus {_joined(self.other)}{read}"
        return f"token {self.token}" + (f" minus {self.minus}" if self.minus is not None else "")


def _joined(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def parse(text: str) -> list[Intervention]:
    """Read interventions. Raises ValueError that names every wrong line and what is wrong with it; "" gives none."""
    found, wrong = [], []
    for line in filter(None, (line.strip() for line in re.split(r"[;\n]", text))):
        try:
            found.append(_one(line))
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError("; ".join(wrong))
    return found


def _one(line: str) -> Intervention:
    found = _LINE.match(line)
    place = _PLACE.match(found["place"]) if found else None
    if found is None or place is None:
        raise ValueError(f"{line!r} is no intervention: write such as `zero L1H2`, `scale L0.attn_out 0.5`")
    op, (layer, head, neuron, point) = found["op"], place.groups()
    if op not in OPERATIONS:
        raise ValueError(f"{line!r}: {op!r} is none of {', '.join(OPERATIONS)}")
    point = "z" if head else "mlp_post" if neuron else point
    if point not in POINTS:
        raise ValueError(f"{line!r}: {point!r} is none of {', '.join(POINTS)}")
    if found["amount"] is not None and not math.isfinite(float(found["amount"])):
        raise ValueError(f"{line!r}: its amount is too large to be a number")
    directed = any(found[way] is not None for way in ("token", "writer", "random", "sae", "prompt"))
    whole = neuron is None and head is None and point in STREAM
    if (op in NEEDS_AMOUNT) != (found["amount"] is not None):
        raise ValueError(f"{line!r}: {op} takes {'an amount' if op in NEEDS_AMOUNT else 'no amount'}")
    if directed != (op == "add") or (op == "add" and not whole):
        raise ValueError(f"{line!r}: `add` takes a direction on {', '.join(STREAM)}, others none: {DIRECTIONS}")
    if found["seed"] is not None and op != "resample":
        raise ValueError(f"{line!r}: a seed is for `resample` alone")
    return Intervention(
        op, point, int(layer), _int(head), _int(neuron), _float(found["amount"]), _int(found["token"]),
        _int(found["minus"]), _writer(found["writer"]), _int(found["random"]), found["sae"] or "",
        _int(found["feature"]), _ints(found["prompt"]), _ints(found["other"]),
        int(found["read"]) if found["read"] else -1, int(found["seed"] or 0), _ints(found["at"]))  # fmt: skip


def _int(text: str | None) -> int | None:
    return None if text is None else int(text)


def _writer(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    layer, neuron = text.split("N")
    return int(layer), int(neuron)


def _ints(text: str | None) -> tuple[int, ...]:
    return tuple(int(p) for p in (text or "").replace(" ", "").split(",") if p)


def _float(text: str | None) -> float | None:
    return None if text is None else float(text)


def _number(value: float) -> str:
    """Write a number so that it is read back as it is."""
    return repr(value).removesuffix(".0")


def change(one: Intervention, other: Any = None, direction: Any = None) -> Callable[[Any], Any]:
    """Return the function of the point's tensor [row, pos, ...] that makes the change.

    `other` is the tensor whose values are put in (patch, resample), `direction` a unit vector [d_model] (add).
    Raises IndexError for a position, head or neuron that the tensor does not have.
    """

    def apply(tensor: Any) -> Any:
        part, there = _part(one, tensor), _part(one, other) if other is not None else None
        rows = _rows(one.positions, tensor.shape[1])
        part[:, rows] = _changed(one, part, there, direction)[:, rows]
        return tensor

    return apply


def cycle(n: int, seed: int) -> list[int]:
    """Return a random cycle over 0..n-1: which other takes the place of each, so that none keeps its own (n > 1)."""
    order = np.random.default_rng(seed).permutation(n)
    found = np.empty(n, int)
    found[order] = np.roll(order, 1)
    return [int(i) for i in found]


def _part(one: Intervention, tensor: Any) -> Any:
    """Return a view of what is changed: a head of z [row, pos, head, d_head], a neuron as [row, pos, 1], or all."""
    for name, index in (("head", one.head), ("neuron", one.neuron)):
        if index is not None and index >= tensor.shape[2]:
            raise IndexError(f"{name} {index}: there are {tensor.shape[2]}")
    if one.head is not None:
        return tensor[:, :, one.head]
    return tensor[:, :, one.neuron : one.neuron + 1] if one.neuron is not None else tensor


def _rows(positions: Sequence[int], length: int) -> list[int]:
    wrong = [p for p in positions if not -length <= p < length]
    if wrong:
        raise IndexError(f"position {wrong[0]}: the prompt has {length} tokens")
    return [p % length for p in positions] if positions else list(range(length))


def _changed(one: Intervention, part: Any, other: Any, direction: Any) -> Any:
    if one.op == "zero":
        return part * 0
    if one.op == "mean":  # over rows, position by position; of a single row over its positions
        return part.mean(0 if len(part) > 1 else 1, keepdim=True).expand_as(part)
    if one.op == "scale":
        return part * one.amount
    if one.op == "set":
        return part * 0 + one.amount
    return part + one.amount * direction if one.op == "add" else other
