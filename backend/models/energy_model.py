"""An opened energy model: the net, its schedule of levels and its card; and checkpoints of the official layout."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend import costs, settings
from backend.contract import CAPABILITY_RULES, ModelCard
from backend.errors import BadInput
from backend.maths import annealing
from backend.models import energy_siblings, fingerprints, weights
from backend.models.energy_net import FOURIER, TIME, EnergyNet
from backend.models.registry import Located
from backend.subjects import TASKS, entries

LEVELS, MOST_LEVELS = 10, 1000  # of the official code; more would be no schedule of its kind
MANY = 256  # rows of the probe's larger calls
#: sizes of a config; `task` and `rank` say what the problems are
SIZES = ("side", "d_x", "d_y", "width", "levels")


class EnergyModel:
    """An energy E(x, y, k) with its levels; index 0 is the sharpest. `net` is in the settings' dtype, on their device.

    `net(x, y, level)` gives energies [n], `net.gradient` dE/dy [n, d_y], `net.hessian` the parts of d2E/dy2.
    """

    card: ModelCard

    def __init__(self, net: EnergyNet, config: Mapping[str, Any]):
        self.net = net.eval().requires_grad_(False)
        self.config = dict(config)
        self.settings = settings.load()  # where runs lie; `open_model` gives its own
        self.schedule = annealing.cosine(int(config["levels"]))

    @cached_property
    def exact(self) -> EnergyNet:
        """The net in float64: for small differences of large numbers."""
        return copy.deepcopy(self.net).double()

    @property
    def device(self) -> torch.device:
        return self.net.fc1.weight.device

    def level(self, k: int, n: int) -> Tensor:
        """Return level k for n rows, as the net takes it."""
        return torch.full((n,), k, device=self.device)

    def gradient_at(self, parameters: Mapping[str, Tensor], x: Tensor, y: Tensor, level: Tensor) -> Tensor:
        """Return dE/dy [n, d_y] with these parameters in place of the net's, with its graph by them."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            energies = torch.func.functional_call(self.net, dict(parameters), (x, y, level))
            return torch.autograd.grad(energies.sum(), y, create_graph=True)[0]

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Return the net's matrices by module, {part: [out, in]}: one `whole`, of the maps to FiLM `gain`, `shift`."""
        found = {name.removesuffix(".weight"): {"whole": p.detach()}
                 for name, p in self.net.named_parameters() if p.ndim == 2}  # fmt: skip
        for name in ("t_map_fc2", "t_map_fc3"):
            found[name] = dict(zip(("gain", "shift"), found[name]["whole"].chunk(2), strict=True))
        return found

    def sibling(self, run: str, step: int | None = None) -> EnergyNet:
        """Return the net of another run or checkpoint (None: the newest), like `net`.

        Raises NotFound for no such run or step, Unfit where it is no energy model of the same shape.
        """
        return energy_siblings.net(run, step, self)

    def exchangeable(self) -> list[tuple[str, list[tuple[str, int, Any]]]]:
        """Return (name, [(parameter, axis, indices [unit, k])]) of every group of units that may change places."""
        return energy_siblings.exchangeable(self.net)

    def memory_bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(p.numel() * p.element_size() for p in self.net.parameters())


def open_energy(located: Located, dtype: torch.dtype, device: str) -> EnergyModel:
    """Open an energy model of a run or of the official layout, with its card but for the seconds.

    Raises BadInput for sizes that do not fit.
    """
    asked, notes = str(located.spec), list[str]()
    if located.kind == "energy":
        config, state = _config(located.config, asked), weights.read_safetensors(located.files)
    else:
        config, state, notes = official(located.files[0], located.config, asked)
    net = EnergyNet(config["d_x"], config["d_y"], config["width"])
    weights.fit(net, state, asked)
    model = EnergyModel(net.to(device, dtype), config)
    model.card = _card(model, located, fingerprints.fingerprint_state_dict(state, config), notes)
    return model


def _config(told: Mapping[str, Any], asked: str) -> dict[str, Any]:
    wrong = [n for n in SIZES if not isinstance(told.get(n), int) or told[n] < (n != "d_x")]
    if wrong:
        raise BadInput(asked, f"its config names no {wrong[0]} (found {told.get(wrong[0])!r})", "Correct run.json")
    return {"task": "inverse", "rank": 1, **told}


def _card(model: EnergyModel, located: Located, print_: str, notes: list[str]) -> ModelCard:
    tokens = ("n_heads", "n_key_value_heads", "d_head", "d_mlp", "d_vocab", "d_vocab_out", "n_ctx")
    none: dict[str, Any] = dict.fromkeys(tokens, 0)
    parameters = list(model.net.parameters())
    return ModelCard(
        spec=str(located.spec), step=located.step, source=located.source, architecture="energy model (IRED)",
        **none, n_layers=4, d_model=model.net.width, n_params=sum(p.numel() for p in parameters),
        dtype=str(parameters[0].dtype).removeprefix("torch."), device=parameters[0].device.type,
        memory_bytes=model.memory_bytes(), fingerprint=print_, capabilities=["energy"], rules=CAPABILITY_RULES,
        notes=notes, parameters={name: p.numel() for name, p in model.net.named_parameters()},
        training=located.extra.get("training", {}), energy=model.config,
    )  # fmt: skip


# ---------------------------------------------------------------- checkpoints of the official code


def official(
    file: Path, told: Mapping[str, Any], asked: str
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Read a checkpoint as IRED's trainer writes it: (config, state, notes). The averaged weights are taken if there.

    The sizes are read off the weights; the task too where they decide it, else a JSON of the same name says it, else it
    is taken to be inverse. Raises BadInput naming the weight that does not fit.
    """
    state, notes = _state(file, asked)
    try:
        width, read = state["fc1.weight"].shape
        d_y = state["fc4.weight"].shape[0]
    except (KeyError, ValueError):
        raise BadInput(asked, "it holds no fc1.weight and fc4.weight of an energy model",
                       "Give a checkpoint of IRED's class EBM with the squared-norm head") from None  # fmt: skip
    side, d_x = math.isqrt(d_y), read - d_y
    _fits(state, width, side, d_x, d_y, asked)
    _beside(told, side, d_x, d_y, asked)
    task = str(told.get("task") or {0: "rank1", 2 * d_y: "addition"}.get(d_x, "inverse"))
    if d_x == d_y and not told.get("task"):
        notes.append(f"The weights do not say whether they were trained on inverse, completion or gauss: inverse is "
                     f"assumed. Say so in {file.with_suffix('.json').name}: {{\"task\": \"completion\"}}")  # fmt: skip
    rank = int(told.get("rank", max(1, side // 2) if task == "completion" else 1))  # of 20 x 20 the official 10
    config = {"task": task, "side": side, "rank": rank,
              "d_x": d_x, "d_y": d_y, "width": width, "levels": int(told.get("levels", LEVELS))}  # fmt: skip
    return config, state, notes


def _beside(told: Mapping[str, Any], side: int, d_x: int, d_y: int, asked: str) -> None:
    """Refuse a JSON whose task, rank or levels are not those of such a model."""
    task, asked = told.get("task", ""), f"The JSON beside {asked}"
    if task and (task not in TASKS or entries(task, side) != (d_x, d_y)):
        fit = [t for t in TASKS if entries(t, side) == (d_x, d_y)]
        found = f"its task {str(task)[:40]!r} is none of a model with these sizes"
        raise BadInput(asked, found, f"Use {', '.join(fit)}")
    for name, most in (("rank", side - 1), ("levels", MOST_LEVELS)):
        value = told.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise BadInput(asked, f"its {name} {str(value)[:40]!r} is no whole number from 1 to {most}", "Correct it")


def _state(file: Path, asked: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return the energy's own weights, without what wraps them, and a note where they are the averaged ones."""
    data: Any = weights.read_safetensors([file]) if file.suffix == ".safetensors" else weights.read_torch(file)
    averaged = isinstance(data, dict) and isinstance(data.get("ema"), dict)
    found = data["ema"] if averaged else data.get("model", data) if isinstance(data, dict) else {}
    state = {name: t for name, t in found.items() if isinstance(t, Tensor)}
    if averaged:
        state = {n.removeprefix("ema_model."): t for n, t in state.items() if n.startswith("ema_model.")}
    wrapped = {n.partition("ebm.")[2]: t for n, t in state.items() if n.startswith(("model.ebm.", "ebm."))}
    if not (wrapped or state):
        raise BadInput(asked, "it holds no tensors", "Give model.pt as IRED's trainer writes it")
    return wrapped or state, ["The moving average of the weights (ema), as the official code samples with"] * averaged


def _fits(state: Mapping[str, Tensor], width: int, side: int, d_x: int, d_y: int, asked: str) -> None:
    """Refuse other sizes than those of a square matrix problem and of IRED's layers."""
    if side * side != d_y or d_x not in (0, d_y, 2 * d_y):
        found = f"solutions of {d_y} and problems of {d_x} entries are no square matrices of one of the tasks"
        raise BadInput(asked, found, "Give a model of inverse, addition or completion of square matrices")
    wanted = {"fc2.weight": [width, width], "fc3.weight": [width, width], "fc4.weight": [d_y, width],
              "t_map_fc2.weight": [2 * width, TIME], "time_mlp.1.weight": [TIME, FOURIER]}  # fmt: skip
    for name, shape in wanted.items():
        if name in state and list(state[name].shape) != shape:
            raise weights.misfit(asked, name, state[name].shape, shape)


# ---------------------------------------------------------------- what a call costs


def probe(model: EnergyModel) -> dict[str, float]:
    """Measure energies and gradients of 1 and MANY rows: what `costs.price` reads, a row being one token.

    `forward` is an energy, `gradients` a dE/dy.
    """
    began, found = time.perf_counter(), {}
    calls: dict[str, Callable[..., Any]] = {"forward": _energies, "gradients": _slopes}
    for kind, call in calls.items():
        call(model, MANY)  # warm
        spent = {rows: min(_seconds(partial(call, model, rows)) for _ in range(3)) for rows in (1, MANY)}
        size = 4.0 * model.net.fc1.weight.element_size() * model.net.width * (4 if kind == "gradients" else 1)
        for unit, one, many in (("seconds", spent[1], spent[MANY]), ("bytes", size, size * MANY)):
            parts = zip(("call", "token", "square"), costs.fit([(1, 1, one), (MANY, 1, many), (MANY, 1, many)]),
                        strict=True)  # fmt: skip
            found.update({f"{kind}_{unit}_{part}": value for part, value in parts})
        if kind == "forward":
            found["operations_per_second"] = costs.MATRIX_OPERATIONS * model.card.n_params * MANY / spent[MANY]
    if model.device.type == "cuda":
        found["room_bytes"] = float(torch.cuda.mem_get_info(model.device)[0])
    return {**found, "probe_seconds": time.perf_counter() - began}


def _inputs(model: EnergyModel, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    like = model.net.fc1.weight
    return like.new_zeros(rows, model.net.d_x), like.new_zeros(rows, model.net.d_y), model.level(0, rows)


@torch.no_grad()
def _energies(model: EnergyModel, rows: int) -> Tensor:
    return model.net(*_inputs(model, rows))


def _slopes(model: EnergyModel, rows: int) -> Tensor:
    return model.net.gradient(*_inputs(model, rows))


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
