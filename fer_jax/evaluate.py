"""Exact evaluation of a split: every image once, whatever the batch size."""

from typing import Any

import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from fer_jax import metrics
from fer_jax.data.dataset import Dataset
from fer_jax.predict import make_predict
from fer_jax.runs.clock import Clock


class Evaluator:
    """Evaluates a network on the splits of a dataset."""

    def __init__(self, model: nn.Module, mesh: Mesh, dataset: Dataset, batch_size: int):
        """Prepares evaluation; nothing is compiled yet."""
        self.clock = Clock()
        self._dataset = dataset
        self._predict = make_predict(model, mesh, batch_size, self.clock)

    @property
    def compile_s(self) -> float:
        """Seconds spent compiling."""
        return self.clock.seconds().get("compile", 0.0)

    @property
    def wall_s(self) -> float:
        """Seconds spent evaluating."""
        return self.clock.seconds().get("evaluate", 0.0)

    def __call__(self, variables: Any, split: str) -> tuple[dict[str, Any], np.ndarray]:
        """Returns the metrics of a split, and probabilities `[count, classes]` float32."""
        found = self._dataset.splits[split]
        log_probs = self._predict(variables, found.images)
        return metrics.of_split(found.labels, found.in_train, log_probs), np.exp(log_probs)
