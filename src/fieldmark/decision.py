"""How probabilities become an answer: a temperature, and a threshold for "none of these".

In: probabilities as the network gives them. Out: calibrated ones, and whether the largest of them
is enough to answer by. `metrics.decide` finds a `Decision` from validation photos, never from test
ones; it is kept beside the weights as JSON, and whatever predicts obeys it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fieldmark.errors import FieldmarkError

LEAST = 1e-300  # the logarithm of a probability of 0 is not wanted
SMALLEST = 1e-38  # what an engine answers at least: float32 has nothing below it


class Decision(BaseModel):
    """A temperature and a threshold, and what they were found for and with."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # Above 1: the network was too sure of itself. Those that are looked for lie well within.
    temperature: float = Field(ge=1e-3, le=1e3)
    threshold: float = Field(ge=0, le=1)  # of the largest calibrated probability
    coverage: float = Field(gt=0, le=1)  # the share of validation photos to be answered
    photos: int = Field(ge=1)  # the validation photos that both were found with

    @classmethod
    def from_json(cls, text: str | bytes) -> Decision:
        """Read what `model_dump_json` wrote; raises a `FieldmarkError` for anything else."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise FieldmarkError(
                f"This is no temperature and threshold ({'; '.join(wrong)}): "
                "`fieldmark evaluate RUN` writes them anew."
            ) from error

    def calibrated(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the network's probabilities (n, c) at the temperature, (n, c)."""
        return softened(probabilities, self.temperature)

    def answers(self, probabilities: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell for which of the network's probabilities (n, c) there is an answer, (n,).

        Where there is none, it is "none of these".
        """
        found = self.calibrated(probabilities).max(axis=-1) >= self.threshold
        return np.asarray(found, np.bool_)


def softened(
    probabilities: NDArray[np.float64], temperature: float | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return softmax(log p / temperature) of probabilities (n, c); one temperature, or (n, 1).

    Guo et al. (2017), "On calibration of modern neural networks": the logarithm of a softmax is its
    logits but for a number that all classes share.
    """
    logits = np.log(np.maximum(probabilities, LEAST)) / temperature
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True), np.float64)
