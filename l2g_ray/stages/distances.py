"""The distances of stage 2 between text and DNA, by the name in `align.distance`: MMD, CORAL and OTDD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from l2g_ray.config import Settings
from l2g_ray.extras import need
from l2g_ray.models.team import Team
from l2g_ray.stages.context import Reference, TaskData, make_batches


def mmd(
    source: Tensor,
    target: Tensor,
    *,
    n_kernels: int = 5,
    bandwidth: float | Tensor | None = None,
    biased: bool = True,
) -> Tensor:
    """Squared maximum mean discrepancy of ``source`` (n, D) and ``target`` (m, D), a scalar.

    The kernel is ``k(u, v) = sum_i exp(-|u - v|^2 / b_i)`` with ``b_i = bandwidth * 2^(i - n_kernels // 2)``,
    so five kernels span bandwidth / 4 .. 4 bandwidth, and there is no factor 2 in the exponent.
    ``bandwidth=None`` takes the mean squared distance over ordered pairs of different rows of the pool; no
    gradient flows through it, given or not.

    ``biased=True`` is L2G's V-statistic: at least 0, diagonals included, and positive even for two samples of
    one distribution. ``biased=False`` is the U-statistic: mean 0 for one distribution, so it can be negative.

    Computed in float64 if an input is float64, else in float32, also under autocast. Raises ValueError for
    inputs that are not two matrices with equal D, for too few rows, or for a bandwidth or kernel count that
    is not positive.
    """
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(f"expected (n, D) and (m, D), got {tuple(source.shape)} and {tuple(target.shape)}")
    fewest = 1 if biased else 2
    if min(len(source), len(target)) < fewest:
        raise ValueError(f"need at least {fewest} rows in each sample, got {len(source)} and {len(target)}")
    if isinstance(bandwidth, Tensor):
        bandwidth = bandwidth.detach()
    if n_kernels < 1 or (bandwidth is not None and float(bandwidth) <= 0):
        raise ValueError(f"n_kernels and bandwidth must be positive, got {n_kernels} and {bandwidth}")

    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    with torch.autocast(device_type=target.device.type, enabled=False):
        x, y = source.to(dtype), target.to(dtype)
        # Distances ignore the origin, but in a Gram matrix a far origin cancels digits; so the pool is
        # centred.
        centre = (x.detach().sum(0) + y.detach().sum(0)) / (len(x) + len(y))
        x, y = x - centre, y - centre
        xx, yy, xy = _squared_distances(x, x), _squared_distances(y, y), _squared_distances(x, y)
        if bandwidth is None:
            pool = len(x) + len(y)
            base = (xx.detach().sum() + yy.detach().sum() + 2 * xy.detach().sum()) / (pool * pool - pool)
            # If all rows are equal, what distance is left is rounding of the centring; any positive bandwidth
            # does.
            rounding = (4 * torch.finfo(dtype).eps * centre.norm()) ** 2
            base = torch.where(base > rounding, base, torch.ones_like(base))
        else:
            base = torch.as_tensor(bandwidth, dtype=dtype, device=target.device)
        bandwidths = [base * 2.0 ** (i - n_kernels // 2) for i in range(n_kernels)]
        k_xx, k_yy, k_xy = (_sum_kernels(d2, bandwidths) for d2 in (xx, yy, xy))
        if biased:
            return k_xx.mean() + k_yy.mean() - 2 * k_xy.mean()
        return _mean_off_diagonal(k_xx) + _mean_off_diagonal(k_yy) - 2 * k_xy.mean()


def sample_rows(reference: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """``n`` rows of ``reference`` (m, D), uniformly with replacement: (n, D) on the device of ``reference``.

    ``generator`` may live on another device (a CPU generator gives the same rows everywhere). Raises
    ValueError when ``reference`` has no rows.
    """
    if not len(reference):
        raise ValueError("cannot sample from a reference without rows")
    rows = torch.randint(len(reference), (n,), generator=generator, device=generator.device)
    return reference[rows.to(reference.device, non_blocking=True)]


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    squares = a.square().sum(1)[:, None] + b.square().sum(1)
    # Rounding can take the distance of near-equal rows below 0.
    return torch.addmm(squares, a, b.t(), alpha=-2).clamp_min(0)


def _sum_kernels(squared_distances: Tensor, bandwidths: list[Tensor]) -> Tensor:
    total = torch.exp(-squared_distances / bandwidths[0])
    for bandwidth in bandwidths[1:]:
        total = total + torch.exp(-squared_distances / bandwidth)
    return total


def _mean_off_diagonal(kernel: Tensor) -> Tensor:
    n = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))


def coral(source: Tensor, target: Tensor) -> Tensor:
    """Squared Frobenius distance of the covariances of `source` (n, D) and `target` (m, D), over 4 D^2; a scalar.

    Computed in float32, also under autocast. Raises ValueError for other shapes, or fewer than two rows.
    """
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(f"expected (n, D) and (m, D), got {tuple(source.shape)} and {tuple(target.shape)}")
    if min(len(source), len(target)) < 2:
        raise ValueError(f"need at least two rows in each sample, got {len(source)} and {len(target)}")
    with torch.autocast(device_type=target.device.type, enabled=False):
        difference = _covariance(source.float()) - _covariance(target.float())
    return difference.square().sum() / (4 * source.shape[1] ** 2)


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


# The network simplex ends within a few thousand steps for the rows of a batch.
MAX_PIVOTS = 1_000_000


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution: mean (D,) and a factor F (r, D) of its covariance F^T F."""

    mean: Tensor
    factor: Tensor


def fit_gaussians(rows: Tensor, classes: Tensor) -> list[Gaussian]:
    """Return the Gaussian of each class that occurs, in the classes' order; rows (n, D), classes (n,) int64.

    Covariances are those of the rows as they are (over n, not n - 1), so a class of one row is a point. Factors have at
    most D rows. Carries gradients.
    """
    found = []
    for value in torch.unique(classes):
        own = rows[classes == value]
        mean = own.mean(0)
        factor = (own - mean) / len(own) ** 0.5
        if len(own) > rows.shape[1] and not rows.requires_grad:
            factor = torch.linalg.qr(factor, mode="r").R
        found.append(Gaussian(mean, factor))
    return found


def squared_bures_wasserstein(a: Gaussian, b: Gaussian) -> Tensor:
    """W2(a, b)^2, a scalar: |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2).

    The last trace is the sum of the singular values of F_a F_b^T. In this form no root of a matrix is taken, whose gradient
    would not be finite for covariances of few rows, which have no full rank.
    """
    roots = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    spread = a.factor.square().sum() + b.factor.square().sum() - 2 * roots
    return (a.mean - b.mean).square().sum() + spread.clamp_min(0)


def otdd(
    source: Tensor,
    source_classes: Tensor,
    target: Tensor,
    target_classes: Tensor,
    source_gaussians: list[Gaussian] | None = None,
) -> Tensor:
    """Squared dataset distance of `source` (n, D) and `target` (m, D) with their classes (n,) and (m,), a scalar.

    Classes are int64 codes; those of source and target have nothing to do with each other. `source_gaussians` are those
    of the source's classes 0..C-1, where `source` is but a sample of them; None fits them to `source`. Differentiable in
    `target`, and in `source` where they are not given; the coupling is constant (envelope theorem).

    Computed in float32, or float64 if an input is, also under autocast. Raises ValueError for other shapes.
    """
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(f"expected (n, D) and (m, D), got {tuple(source.shape)} and {tuple(target.shape)}")
    if source_classes.shape != source.shape[:1] or target_classes.shape != target.shape[:1]:
        raise ValueError(
            f"expected a class a row, got {tuple(source_classes.shape)} and {tuple(target_classes.shape)} for "
            f"{len(source)} and {len(target)} rows"
        )
    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    with torch.autocast(device_type=target.device.type, enabled=False):
        x, y = source.to(dtype), target.to(dtype)
        own, rows = source_gaussians, source_classes
        if own is None:
            own, rows = fit_gaussians(x, source_classes), torch.unique(source_classes, return_inverse=True)[1]
        others, columns = fit_gaussians(y, target_classes), torch.unique(target_classes, return_inverse=True)[1]
        labels = torch.stack([torch.stack([squared_bures_wasserstein(a, b) for b in others]) for a in own])
        squares = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_min(0)
        cost = squares + labels[rows][:, columns]
        return (_couple(cost.detach()) * cost).sum()


def _couple(cost: Tensor) -> Tensor:
    """Return the coupling (n, m) of two samples of equal weights with the least cost (n, m)."""
    ot = _import_pot()
    n, m = cost.shape
    # On the CPU in float64: a network simplex gains nothing from a GPU.
    plan = ot.emd(ot.unif(n), ot.unif(m), cost.double().cpu().numpy(), numItermax=MAX_PIVOTS)
    return torch.from_numpy(plan).to(cost)


def _import_pot() -> Any:
    """POT takes more than a second to import, which only this distance needs to wait for."""
    need("otdd", "align.distance=otdd", "ot")
    import ot

    return ot


# Classes where there are none, of labels or of text: ORCA's number for labels.
N_CLUSTERS = 10
# Rows whose labels are clustered.
MAX_LABELS = 10_000


class Distance(Protocol):
    """A distance of DNA to the text."""

    def classify(self, labels: Tensor) -> Tensor | None:
        """Return the classes (n,) int64 of a batch's labels; None where the distance does not ask for them."""
        ...

    def __call__(self, target: Tensor, classes: Tensor | None, generator: torch.Generator) -> Tensor:
        """Return the distance of embedded rows `target` (n, D), a scalar; `generator` draws as many rows of the text."""
        ...


# Distances of two samples (n, D), whatever their labels, by their names in `align.distance`.
SAMPLE_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mmd": mmd, "coral": coral}


class SampleDistance:
    """A distance of two samples, whatever their labels; `features` (n, D) are the text's."""

    def __init__(self, measure: Callable[[Tensor, Tensor], Tensor], features: Tensor) -> None:
        self.measure, self.features = measure, features

    def classify(self, labels: Tensor) -> Tensor | None:
        """None: labels play no part."""
        return None

    def __call__(self, target: Tensor, classes: Tensor | None, generator: torch.Generator) -> Tensor:
        """Return the distance of `target` (n, D) to as many rows of the text, drawn with replacement."""
        return self.measure(sample_rows(self.features, len(target), generator), target)


class LabelledDistance:
    """OTDD of a step's rows with their labels to the text with its tags, over the text's mean squared distance from its
    own mean, so that it is of the order of 1 whatever the language model's scale, as MMD is.

    features (n, D) and classes (n,) int64 are the text's. `centres` (k, C) of standardised labels make them classes by the
    nearest one; None: labels are classes already. `offset` and `scale` (C,) standardise.
    """

    def __init__(
        self,
        features: Tensor,
        classes: Tensor,
        centres: Tensor | None = None,
        offset: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
    ) -> None:
        self.features = features
        self.classes = torch.unique(classes, return_inverse=True)[1].to(features.device)
        self.gaussians = fit_gaussians(features, self.classes)
        spread = (features - features.mean(0)).square().sum(1).mean()
        self.spread = float(spread) or 1.0
        self.centres, self.offset, self.scale = (
            x.to(features.device) if isinstance(x, Tensor) else x for x in (centres, offset, scale)
        )

    def classify(self, labels: Tensor) -> Tensor:
        """Return the labels themselves, or the nearest centre of each row's labels; a missing label counts as the
        mean.
        """
        if self.centres is None:
            return labels
        return torch.cdist(standardise(labels, self.offset, self.scale), self.centres).argmin(1)

    def __call__(self, target: Tensor, classes: Tensor | None, generator: torch.Generator) -> Tensor:
        """OTDD of `target` (n, D) and its classes (n,) to as many rows of the text. The distribution of a tag is that of
        all its rows, that of a class of DNA that of the step's."""
        assert classes is not None
        rows = sample_rows(torch.arange(len(self.features)), len(target), generator).to(self.features.device)
        value = otdd(self.features[rows], self.classes[rows], target, classes, self.gaussians)
        return value / self.spread


def standardise(labels: Tensor, offset: Tensor | float, scale: Tensor | float) -> Tensor:
    """Return labels (n, C) float with NaN = missing, in standard deviations from the mean; a missing one is the mean."""
    if isinstance(offset, Tensor) and isinstance(scale, Tensor):
        offset, scale = offset.to(labels), scale.to(labels)
    return torch.nan_to_num((labels - offset) / scale, nan=0.0)


def make_distance(
    data: TaskData, settings: Settings, reference: Reference, seed: int, team: Team, device: str
) -> Distance:
    """Return the distance that `align.distance` names, to the reference's features.

    OTDD wants classes. Labels of classification are classes; those of other tasks are clustered by k-means over the
    training rows, as ORCA does. Text without tags is clustered by its vectors. All workers get the same centres.
    """
    features = reference.features.to(device)
    if settings.align.distance != "otdd":
        return SampleDistance(SAMPLE_DISTANCES[settings.align.distance], features)
    tags = reference.classes
    if tags is None:
        centres = team.share(find_centres(reference.features, settings.seed))
        tags = torch.cdist(reference.features, centres).argmin(1)
    if data.task.is_classification:
        return LabelledDistance(features, tags)
    labels = read_labels(data, settings, seed, team)
    centres = find_centres(standardise(labels, data.label_offset, data.label_scale), seed)
    return LabelledDistance(features, tags, team.share(centres), data.label_offset, data.label_scale)


def read_labels(data: TaskData, settings: Settings, seed: int, team: Team) -> Tensor:
    """Return labels (n, C) of up to `MAX_LABELS` training rows of all workers, in the order of the first epoch."""
    size = settings.align.batch_size
    batches = make_batches(settings, data, size, seed, augment=False, max_batches=-(-MAX_LABELS // size), team=team)(0)
    own = [batch.labels[: batch.n_own] for batch in batches]
    return torch.cat([labels for step in zip(*team.gather(own), strict=True) for labels in step])[:MAX_LABELS]


def find_centres(points: Tensor, seed: int) -> Tensor:
    """Centres (k, C) of `points` (n, C) by k-means, k being `N_CLUSTERS`, or fewer where fewer points are different."""
    from sklearn.cluster import KMeans

    values = points.detach().cpu().numpy().astype(np.float64)
    k = min(N_CLUSTERS, len(np.unique(values, axis=0)))
    return torch.from_numpy(KMeans(k, n_init=10, random_state=seed).fit(values).cluster_centers_).to(points.dtype)
