"""A model that is steered whatever runs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Optional, Union

from llm_entropy.errors import ReportedError
from llm_entropy.library.opening import LanguageModel
from llm_entropy.settings import ControlSettings
from llm_entropy.steering.hooks import steer_every_token
from llm_entropy.steering.plan import plan_steering
from llm_entropy.steering.vectors import resolve_vector


@contextmanager
def steer(
    lm: LanguageModel,
    vector: Any,
    strength: float = 1.0,
    *,
    blocks: Union[str, Sequence[int], None] = None,
    layer_weights: Optional[Sequence[float]] = None,
    operator: Literal["add", "add_keep_norm", "project_out", "cap"] = "add",
    cap: Optional[float] = None,
) -> Iterator[None]:
    """Steer every forward pass of the model inside of the `with`, such as your own loop or `lm.model.generate`.

    Every token is steered; in generation this means the prompt and the tokens after it. The weights do not change, and
    gradients flow through.

    Args:
        lm: As `open_model` returns it.
        vector: A file, a tensor or array, or numbers: [hidden], [L, hidden] or [L + 1, hidden].
        strength: Factor on the vector; a negative one reverses it.
        blocks: Which blocks are steered: a list of numbers, or a slice as "8:12"; None: all of the vector's.
        layer_weights: A factor for each block, or one more, the first for the embeddings.
        operator: What happens to the stream; `llm_entropy.steering.operators` has the formulas.
        cap: For the operator `cap`: the largest component along the vector that remains.

    Raises:
        ReportedError: The vector does not fit, or something else that was given is wrong.
    """
    shape = lm.view.shape
    control = _control({"blocks": blocks, "layer_weights": layer_weights, "operator": operator, "cap": cap})
    resolved = resolve_vector(
        vector,
        key="vector",
        model=lm.name,
        num_blocks=shape.num_blocks,
        hidden_size=shape.hidden_size,
        operator=operator,
        model_type=lm.source.config.model_type,
    )
    plan = plan_steering(control, resolved, key="steer", num_blocks=shape.num_blocks, sign=1)
    plan = plan.at_strength(_control({"strength": strength}).strength, "steer")
    with steer_every_token(lm.view.blocks, plan.to(lm.view.decoder.weight.device)):
        yield


def _control(given: dict[str, Any]) -> ControlSettings:
    """Return the settings of a vector, with errors that name arguments."""
    try:
        return ControlSettings(**given)
    except ReportedError as error:
        raise ReportedError(str(error).replace(f"{ControlSettings.KEY}.", "")) from error
