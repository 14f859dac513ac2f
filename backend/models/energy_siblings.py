"""Other energy models of one's shape, and which of their units may change places.

The energy is the same whatever the order of the hidden units (fc1 to fc3, with the gain and the shift that FiLM gives
each), of the outputs of fc4 whose squares it sums, and of both layers that embed the level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from backend.contract import ModelSpec
from backend.errors import Unfit
from backend.models import registry, weights
from backend.models.energy_net import EnergyNet

if TYPE_CHECKING:
    from backend.models.energy_model import EnergyModel

SHAPE = ("d_x", "d_y", "width", "levels")
#: units: [(module, axis of its weight, how many of its indices are one unit's)]; a bias goes with axis 0
UNITS = {
    "units of fc1": [("fc1", 0, 1), ("fc2", 1, 1)],
    "units of fc2": [("fc2", 0, 1), ("t_map_fc2", 0, 2), ("fc3", 1, 1)],
    "units of fc3": [("fc3", 0, 1), ("t_map_fc3", 0, 2), ("fc4", 1, 1)],
    "outputs of fc4": [("fc4", 0, 1)],
    "units of the embedding": [("time_mlp.1", 0, 1), ("time_mlp.3", 1, 1)],
    "embedding": [("time_mlp.3", 0, 1), ("t_map_fc2", 1, 1), ("t_map_fc3", 1, 1)],
}


def net(run: str, step: int | None, beside: EnergyModel) -> EnergyNet:
    """Return the net of a run's checkpoint (None: its newest), in the dtype and on the device of the model `beside`.

    Raises NotFound for no such run or step, Unfit where it is no energy model, or one of another shape.
    """
    located = registry.locate(ModelSpec(scheme="run", place=run, step=step), beside.settings)
    asked, todo = f"Run {run!r} beside {beside.card.spec}", "Choose a run of an energy model of the same shape"
    if located.kind != "energy":
        raise Unfit(asked, "it is no energy model", todo)
    for name in SHAPE:
        if located.config.get(name) != beside.config[name]:
            raise Unfit(asked, f"another shape: {name} is {located.config.get(name)} there and {beside.config[name]} "
                        "here", todo)  # fmt: skip
    found, like = EnergyNet(beside.net.d_x, beside.net.d_y, beside.net.width), beside.net.fc1.weight
    weights.fit(found, weights.read_safetensors(located.files), located.source)
    return found.to(like.device, like.dtype).eval().requires_grad_(False)


def exchangeable(of: EnergyNet) -> list[tuple[str, list[tuple[str, int, Any]]]]:
    """Return the groups of units that may change places: (their name, [(parameter, axis, indices [unit, k])])."""
    shapes = {name: p.shape for name, p in of.named_parameters()}
    found = []
    for name, modules in UNITS.items():
        places: list[tuple[str, int, Any]] = []
        for module, axis, many in modules:
            n = shapes[f"{module}.weight"][axis]
            units = np.arange(n).reshape(many, -1).T  # FiLM holds the gains of all units, then their shifts
            places += [(f"{module}.{end}", axis, units) for end in (("weight", "bias") if axis == 0 else ("weight",))]
        found.append((name, places))
    return found
