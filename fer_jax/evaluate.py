"""Exact evaluation of a split: every image once, whatever the batch size."""

import time
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fer_jax import metrics, steps
from fer_jax.data.arrays import Dataset
from fer_jax.data.pipeline import eval_batches
from fer_jax.machine import devices
from fer_jax.machine.devices import BATCH_AXIS


class Evaluator:
    """Evaluates a network on the splits of a dataset, compiled once for all of them.

    Attributes:
      compile_s: seconds spent compiling.
      wall_s: seconds spent evaluating, compilation left out.
    """

    def __init__(self, model: nn.Module, mesh: Mesh, dataset: Dataset, batch_size: int):
        """Prepares evaluation; nothing is compiled yet.

        Args:
          model: from `create_model`.
          mesh: the devices that share a batch.
          dataset: whose splits are evaluated.
          batch_size: images at a time, rounded up to a multiple of the devices.
        """
        self._mesh = mesh
        self._dataset = dataset
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._scanned = steps.is_scanned(mesh)  # a split is then one program
        make = steps.make_eval_scan if self._scanned else steps.make_eval_step
        self._step = make(model, mesh)
        self._compiled: dict[tuple, Any] = {}
        self._placed: dict[str, Any] = {}
        self.compile_s = 0.0
        self.wall_s = 0.0

    def __call__(self, variables: Any, split: str) -> tuple[dict[str, Any], np.ndarray]:
        """Evaluates one split.

        Args:
          variables: `{"params", "batch_stats"}`, on the devices.
          split: `train`, `valid` or `test`.

        Returns:
          The metrics that :func:`fer_jax.metrics.compute` describes, and `accuracy_unique` with
          `count_unique`: without the images whose pixels also stand in train (on train, all count).
          Beside them probabilities `[count, 7]` float32, in the split's order.
        """
        batches = self._batches(split)
        run = self._compile(variables, batches)
        start = time.perf_counter()
        if self._scanned:
            total, outputs = jax.device_get(run(variables, *batches))
        else:
            total, outputs = None, []
            for i in range(len(batches[0])):
                sums, probabilities = run(variables, *self._place([b[i] for b in batches]))
                total = sums if total is None else jax.tree.map(np.add, total, sums)
                outputs.append(np.asarray(probabilities))
        self.wall_s += time.perf_counter() - start
        return self._numbers(split, total), self._flatten(split, outputs)

    def _numbers(self, split: str, total: Any) -> dict[str, Any]:
        numbers = metrics.compute(total["all"])
        expected = len(self._dataset.splits[split].labels)
        if numbers["count"] != expected:
            raise AssertionError(f"{split}: counted {numbers['count']} images of {expected}")
        unique = metrics.compute(total["unique"])
        return numbers | {
            "accuracy_unique": unique["accuracy"],
            "count_unique": unique["count"],
        }

    def _flatten(self, split: str, outputs: Any) -> np.ndarray:
        stacked = np.asarray(outputs)
        return stacked.reshape(-1, stacked.shape[-1])[: len(self._dataset.splits[split].labels)]

    def _batches(self, split: str) -> Any:
        if split not in self._placed:
            batches = eval_batches(self._dataset.splits[split], self._batch_size)
            if self._scanned:
                sharding = NamedSharding(self._mesh, P(None, BATCH_AXIS))
                batches = [devices.put(b, sharding) for b in batches]
            self._placed[split] = batches
        return self._placed[split]

    def _place(self, batch: list[np.ndarray]) -> Any:
        return [devices.put(b, devices.sharded(self._mesh)) for b in batch]

    def _compile(self, variables: Any, batches: Any) -> Any:
        example = batches if self._scanned else self._place([b[0] for b in batches])
        key = tuple(b.shape for b in example)
        if key not in self._compiled:
            start = time.perf_counter()
            self._compiled[key] = self._step.lower(variables, *example).compile()
            self.compile_s += time.perf_counter() - start
        return self._compiled[key]
