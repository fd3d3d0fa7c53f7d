"""Measures the distance of samples from the activations of a census, and detects drift in a stream of samples.

The statistic is the firing pattern: for each channel of each Relu, the share of its places that are above zero. Which units
fire determines the linear piece of the network that a sample lies on, and inputs of another kind tend to lie on pieces that
were not used before: Cheng, Nührenberg, Yasuoka, "Runtime monitoring neuron activation patterns" (1809.06573), and Olber et
al., "Detection of out-of-distribution samples using binary neuron activation patterns" (2212.14268), compare binary patterns
by Hamming distance. A share per channel is the same pattern summed over the places, where it does not depend on position.

1. The rows of the census are divided at random in two halves. One is fitted, the other held out: scored, never fitted.
2. Each Relu's shares on the fitted half are described by a Gaussian with few directions and one variance for all others
   (probabilistic principal components: Tipping and Bishop, 1999). A sample's distance is its Mahalanobis distance in it,
   squared, over the number of channels: about 1 on the census. Channels fire together, and drift shows in combinations that
   did not occur; without the correlations most of it is not found.
3. A sample's score is the mean over the Relus of the logarithm of its distance: no Relu has to be weighted.
4. A window of samples is compared with the held-out half by the rank-sum test of Mann and Whitney (1947), one-sided. Both
   were scored by what neither was fitted on, so if the stream is like the census, the alarm is raised for the chosen share
   of windows (normal approximation), however scores are distributed. One sample has its conformal p-value (Vovk et al.).
5. A range excursion is a Relu above the largest number that it gave on the whole census of N rows ("Outside the Box",
   Henzinger, Lukina, Schilling, 1911.09032, with one box): one sample in N + 1 does that by chance.

A drift means that the inputs differ from those of the census. It does not mean that an answer is wrong.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from relu_deploy.data.datasets import load_npz
from relu_deploy.errors import InputError
from relu_deploy.graph import Relu
from relu_deploy.tensors import Array

__all__ = ["LEAST_ROWS", "Baseline", "BaselineBuilder", "ReluNorm", "p_value", "rank_sum", "rates_of", "threshold_of"]

SCHEMA = "relu-deploy/baseline/1"
ARRAYS = ("mean", "spread", "directions", "variances")
#: largest number of principal directions of a Relu, and fitted rows required for each
DIRECTIONS, ROWS_EACH = 16, 4
#: smallest and largest number of rows of a baseline, fitted and held out, and limit of the bytes of their rates
LEAST_ROWS, MOST_ROWS, MOST_BYTES = 64, 2000, 1 << 26
#: added to distances before the logarithm, so that very small ones do not dominate the mean
NEAR = 0.01


@dataclass(frozen=True)
class ReluNorm:
    """How one Relu fires on the census.

    Attributes:
        upper: The bound of a ReLU6 or clipped Relu.
        maximum: The largest value on any row.
        mean, spread: Float64 (C,), of each channel's rate over the fitted rows.
        directions: Float64 (K, C), orthonormal.
        variances: (K,) along them.
        residual: The variance in every other direction.
    """

    node: str
    output: str
    upper: float | None
    maximum: float
    mean: Array
    spread: Array
    directions: Array
    variances: Array
    residual: float

    def log_distances(self, rates: Array) -> Array:
        """Return the logarithm of each sample's distance, float64 (N,).

        Args:
            rates: Firing rates of the samples, (N, C).

        Raises:
            InputError: If the number of channels is not that of the census.
        """
        if rates.shape[1] != len(self.mean):
            raise InputError(
                f"{self.node} has {rates.shape[1]} channels, and {len(self.mean)} in the census", "run relu-deploy census again"
            )
        off = rates - self.mean
        along = off @ self.directions.T
        rest = np.maximum((off**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
        distances = ((along**2 / self.variances).sum(axis=1) + rest / self.residual) / len(self.mean)
        result: Array = np.log(NEAR + distances)
        return result

    def exceeded(self, maxima: Array) -> Array:
        """Return which samples are above the maximum of the census, bool (N,).

        Args:
            maxima: Largest value of the Relu on each sample, (N,). NaN counts as above.
        """
        if self.upper is not None or math.isnan(self.maximum):
            return np.zeros(len(maxima), bool)
        result: Array = ~(maxima <= self.maximum)
        return result


@dataclass(frozen=True)
class Baseline:
    """The activations of a census, to compare requests with.

    Attributes:
        held_out: Logarithmic distances of the held-out rows, float64 (N, Relus).
        fitted: Rows that the Relus' statistics were fitted to.
        samples: Rows of the whole census.
        backend: Backend that ran it.
        graph: sha256 of the ONNX file.
    """

    relus: tuple[ReluNorm, ...]
    held_out: Array
    fitted: int
    samples: int
    backend: str
    graph: str

    @property
    def scores(self) -> Array:
        """The scores of the held-out rows, ascending."""
        return np.sort(self.held_out.mean(axis=1))

    def log_distances(self, rates: Sequence[Array]) -> Array:
        """Return the logarithmic distances, float64 (N, Relus). The score of a sample is their mean.

        Args:
            rates: Firing rates for each Relu, (N, C).
        """
        return np.stack([relu.log_distances(each) for relu, each in zip(self.relus, rates, strict=True)], axis=1)

    def to_json(self) -> dict[str, Any]:
        """Return a summary for reports. `to_bytes` has the arrays."""
        return {"relus": len(self.relus), "fitted": self.fitted, "held_out": len(self.held_out), "samples": self.samples}

    def to_bytes(self) -> bytes:
        """Return the baseline as the content of an .npz file."""
        header = {"schema": SCHEMA, "fitted": self.fitted, "samples": self.samples, "backend": self.backend, "graph": self.graph}
        header["relus"] = [
            {"node": relu.node, "output": relu.output, "upper": relu.upper, "maximum": relu.maximum, "residual": relu.residual}
            for relu in self.relus
        ]
        arrays = {"baseline": np.array(json.dumps(header)), "held_out": self.held_out.astype(np.float32)}
        for index, relu in enumerate(self.relus):
            for name in ARRAYS:
                arrays[f"{name}_{index}"] = getattr(relu, name).astype(np.float32)
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]
        return file.getvalue()

    @classmethod
    def read(cls, file: Path) -> Baseline:
        """Return the baseline in `file`.

        Raises:
            InputError: If the file is not a baseline.
        """
        arrays = load_npz(file)
        try:
            header = json.loads(str(arrays["baseline"]))
            if header["schema"] != SCHEMA:
                raise ValueError(f"its schema is {header['schema']}")
            relus = []
            for index, fields in enumerate(header["relus"]):
                parts: dict[str, Any] = {name: arrays[f"{name}_{index}"].astype(np.float64) for name in ARRAYS}
                relus.append(ReluNorm(**fields, **parts))
            held_out = arrays["held_out"].astype(np.float64)
            _check_shapes(relus, held_out)
            return cls(tuple(relus), held_out, header["fitted"], header["samples"], header["backend"], header["graph"])
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{file} is not the baseline of a census: {error}", "run relu-deploy census again") from error


def _check_shapes(relus: Sequence[ReluNorm], held_out: Array) -> None:
    """Raise ValueError where the arrays of a baseline do not fit each other or are not finite."""
    if held_out.ndim != 2 or held_out.shape[1] != len(relus) or not len(held_out):
        raise ValueError(f"held_out has the shape {held_out.shape}")
    for index, relu in enumerate(relus):
        channels, count = relu.mean.shape[:1], relu.variances.shape[:1]
        shapes = {name: getattr(relu, name).shape for name in ARRAYS}
        expected = {"mean": channels, "spread": channels, "directions": (*count, *channels), "variances": count}
        if shapes != expected or relu.mean.ndim != 1 or relu.variances.ndim != 1:
            raise ValueError(f"the arrays of Relu {index} have the shapes {shapes}")
        if not all(np.isfinite(getattr(relu, name)).all() for name in ARRAYS) or not (relu.variances > 0).all():
            raise ValueError(f"the arrays of Relu {index} are not finite")
        texts, numbers = (relu.node, relu.output), (relu.maximum, relu.residual, 0.0 if relu.upper is None else relu.upper)
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(f"the facts of Relu {index} have other types")
        if not 0 < relu.residual < math.inf:
            raise ValueError(f"the residual of Relu {index} is {relu.residual}")


class BaselineBuilder:
    """Collects the firing rates of some rows of a census."""

    def __init__(self, relus: Sequence[Relu], total: int) -> None:
        """Choose rows at random.

        Args:
            relus: The Relus of the model.
            total: Number of rows of the census.
        """
        self._relus, self._total, self._seen = list(relus), total, 0
        self._picked: Array | None = None
        self._rates: dict[str, list[Array]] = {}

    def add(self, results: Mapping[str, Array], size: int) -> None:
        """Add the Relus' outputs of the next `size` rows."""
        if self._picked is None:
            # A tensor without a row for each sample (a batch folded into another axis) has no statistics per sample.
            self._relus = [relu for relu in self._relus if results[relu.output].ndim > 1 and len(results[relu.output]) == size]
            self._picked = self._choose(sum(results[relu.output].shape[1] for relu in self._relus))
            self._rates = {relu.output: [] for relu in self._relus}
        rows = np.flatnonzero(self._picked[self._seen : self._seen + size])
        for name, kept in self._rates.items():
            kept.append(rates_of(results[name][rows]))
        self._seen += size

    def _choose(self, channels: int) -> Array:
        count = min(self._total, MOST_ROWS, MOST_BYTES // max(1, 4 * channels))
        picked = np.zeros(self._total, bool)
        picked[np.random.default_rng(0).permutation(self._total)[:count]] = True
        return picked

    def result(self, maxima: Mapping[str, float], places: Mapping[str, int], backend: str, graph: str) -> Baseline | None:
        """Return the baseline, None if there are too few rows or no Relu.

        Args:
            maxima: Largest value of the whole census, by the Relu's output.
            places: Number of values of each channel in one row, by the Relu's output.
            backend: Backend that ran the census.
            graph: sha256 of the ONNX file.
        """
        gathered = {name: np.concatenate(kept) for name, kept in self._rates.items()}
        rows = len(next(iter(gathered.values()), ()))
        if rows < LEAST_ROWS:
            return None
        fitted = np.zeros(rows, bool)
        fitted[np.random.default_rng(1).permutation(rows)[: rows // 2]] = True
        relus = tuple(_fit(relu, gathered[relu.output][fitted], maxima[relu.output], places[relu.output]) for relu in self._relus)
        held_out = np.stack([relu.log_distances(gathered[relu.output][~fitted]) for relu in relus], axis=1)
        return Baseline(relus, held_out, int(fitted.sum()), self._seen, backend, graph)


def _fit(relu: Relu, rates: Array, maximum: float, places: int) -> ReluNorm:
    rates = rates.astype(np.float64)
    rows, channels = rates.shape
    mean = rates.mean(axis=0)
    _, singular, directions = np.linalg.svd(rates - mean, full_matrices=False)
    along = singular**2 / (rows - 1)
    total = float(along.sum())
    count = min(DIRECTIONS, rows // ROWS_EACH, channels)
    rest = (total - float(along[:count].sum())) / (channels - count) if channels > count else 0.0
    # A lower bound: the resolution of a rate if no rate varied, otherwise a thousandth of the mean variance.
    residual = max(rest, 1e-3 * total / channels) or 1.0 / places**2
    return ReluNorm(
        relu.node,
        relu.output,
        relu.upper,
        maximum,
        mean,
        rates.std(axis=0, ddof=1),
        directions[:count],
        np.maximum(along[:count], residual),
        residual,
    )


def rates_of(values: Array) -> Array:
    """Return the share of positive values of each channel, float32 (N, C).

    Args:
        values: Outputs of a Relu, (N, C, ...).
    """
    # Not -1 for the last size: it cannot be inferred when a batch of the census has no row that was picked.
    planes = np.ascontiguousarray(values).reshape(values.shape[0] * values.shape[1], math.prod(values.shape[2:]))
    # Summing bytes as uint32 is several times faster than NumPy's count_nonzero along an axis.
    fired = (planes > 0).view(np.uint8).sum(axis=1, dtype=np.uint32)
    return (fired / np.float32(planes.shape[1])).astype(np.float32).reshape(values.shape[:2])


def rank_sum(window: Array, reference: Array) -> float:
    """Return the standardized rank-sum statistic of Mann and Whitney (1947); ties count half.

    Under the hypothesis of equal distributions it is approximately standard normal if W and N are at least a dozen.

    Args:
        window: Scores, (W,).
        reference: Scores of the baseline, (N,), ascending.
    """
    below = np.searchsorted(reference, window, "left") + np.searchsorted(reference, window, "right")
    few, many = len(window), len(reference)
    return float((below.sum() / 2 - few * many / 2) / math.sqrt(few * many * (few + many + 1) / 12))


def threshold_of(false_alarm_rate: float) -> float:
    """Return the value that `rank_sum` exceeds with probability `false_alarm_rate` without drift."""
    return NormalDist().inv_cdf(1 - false_alarm_rate)


def p_value(scores: Array, reference: Array) -> Array:
    """Return the conformal p-value of each score, float64 (N,): it is at most p with probability at most p.

    Args:
        scores: Scores of samples, (N,).
        reference: Scores of the baseline, ascending.
    """
    result: Array = (1 + len(reference) - np.searchsorted(reference, scores, "left")) / (len(reference) + 1)
    return result
