"""Lists of interventions: what they mean, and those kept by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backend.errors import BadInput
from backend.facade.base import Base
from backend.maths import interventions
from backend.models import trained
from backend.runs import saved


class Intervening(Base):
    """The part of the facade that keeps lists of interventions."""

    def read_interventions(self, edits: str) -> list[str]:
        """Return the list line by line, as it is understood. Raises BadInput that names the wrong line."""
        try:
            return [str(one) for one in interventions.parse(edits)]
        except ValueError as error:
            raise BadInput("The interventions", str(error), "Correct the line") from None

    def check_interventions(self, edits: str, card: Mapping[str, Any]) -> list[str]:
        """Return the list line by line. Raises BadInput for the first line whose place this model does not have, or
        NotFound, Unfit or Unsupported for an autoencoder or set of directions that is not there."""
        lines = self.read_interventions(edits)
        for one in interventions.parse(edits):
            found = _lacking(one, card)
            if found:
                raise BadInput(f"Intervention {one}", found, "Correct the line")
            if one.sae:
                trained.locate(one.sae, None, self.settings)
        return lines

    def kept_interventions(self) -> dict[str, str]:
        """Return {name: list} of what was kept."""
        return saved.read(self.settings.runs)

    def keep_interventions(self, name: str, edits: str) -> None:
        """Keep a list by name. Raises BadInput for an unreadable or empty list, or an odd name."""
        saved.keep(self.settings.runs, name.strip(), "; ".join(self.read_interventions(edits)))

    def forget_interventions(self, name: str) -> None:
        """Drop a kept list. Raises NotFound."""
        saved.forget(self.settings.runs, name)


def _lacking(one: interventions.Intervention, card: Mapping[str, Any]) -> str:
    """Say what a model of these sizes lacks of an intervention, '' where it has it all."""
    layers, ids = card["n_layers"], (*one.prompt, *one.other)
    if one.layer >= layers:
        return f"there is no layer {one.layer}: the model has layers 0 to {layers - 1}"
    if one.head is not None and one.head >= card["n_heads"]:
        return f"there is no head {one.head}: a layer has heads 0 to {card['n_heads'] - 1}"
    if one.point in ("mlp_post", "mlp_out") and not card["d_mlp"]:
        return "the model has no MLP layers"
    if one.neuron is not None and one.neuron >= card["d_mlp"]:
        return f"there is no neuron {one.neuron}: a layer has neurons 0 to {card['d_mlp'] - 1}"
    if one.writer and (one.writer[0] >= layers or one.writer[1] >= card["d_mlp"]):
        return f"there is no neuron {one.writer[1]} in layer {one.writer[0]}: {layers} layers of {card['d_mlp']}"
    if max(one.token or 0, one.minus or 0) >= card["d_vocab_out"]:
        return f"there is no such token: the model answers with 0 to {card['d_vocab_out'] - 1}"
    if ids and max(ids) >= card["d_vocab"]:
        return f"there is no token {max(ids)}: the model reads 0 to {card['d_vocab'] - 1}"
    if max(len(one.prompt), len(one.other)) > card["n_ctx"]:
        return f"a prompt is longer than the {card['n_ctx']} tokens that the model reads"
    return ""
