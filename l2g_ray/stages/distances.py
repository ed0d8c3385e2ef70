"""The distances of stage 2 between text and DNA, by the name in `align.distance`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from l2g_ray.config import Settings
from l2g_ray.models.team import Team
from l2g_ray.stages.common import Reference, TaskData, make_batches
from l2g_ray.stages.coral import coral
from l2g_ray.stages.mmd import mmd, sample_rows
from l2g_ray.stages.otdd import fit_gaussians, otdd

# Classes where there are none, of labels or of text: ORCA's number for labels.
N_CLUSTERS = 10
# Rows whose labels are clustered.
MAX_LABELS = 10_000


class Distance(Protocol):
    """A distance of DNA to the text."""

    def classify(self, labels: Tensor) -> Tensor | None:
        """The classes (n,) int64 of a batch's labels; None where the distance does not ask for them."""
        ...

    def __call__(self, target: Tensor, classes: Tensor | None, generator: torch.Generator) -> Tensor:
        """The distance of embedded rows `target` (n, D), a scalar; `generator` draws as many rows of the text."""
        ...


class SampleDistance:
    """A distance of two samples, whatever their labels; `features` (n, D) are the text's."""

    def __init__(self, measure: Callable[[Tensor, Tensor], Tensor], features: Tensor) -> None:
        self.measure, self.features = measure, features

    def classify(self, labels: Tensor) -> Tensor | None:
        """None: labels play no part."""
        return None

    def __call__(self, target: Tensor, classes: Tensor | None, generator: torch.Generator) -> Tensor:
        """The distance of `target` (n, D) to as many rows of the text, drawn with replacement."""
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
        """The labels themselves, or the nearest centre of each row's labels; a missing label counts as the mean."""
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
    """Labels (n, C) float with NaN = missing, in standard deviations from the mean; a missing one is the mean."""
    if isinstance(offset, Tensor) and isinstance(scale, Tensor):
        offset, scale = offset.to(labels), scale.to(labels)
    return torch.nan_to_num((labels - offset) / scale, nan=0.0)


def make_distance(
    data: TaskData, settings: Settings, reference: Reference, seed: int, team: Team, device: str
) -> Distance:
    """The distance that `align.distance` names, to the reference's features.

    OTDD wants classes. Labels of classification are classes; those of other tasks are clustered by k-means over the
    training rows, as ORCA does. Text without tags is clustered by its vectors. All workers get the same centres.
    """
    features = reference.features.to(device)
    if settings.align.distance != "otdd":
        return SampleDistance({"mmd": mmd, "coral": coral}[settings.align.distance], features)
    tags = reference.classes
    if tags is None:
        centres = team.share(find_centres(reference.features, settings.seed))
        tags = torch.cdist(reference.features, centres).argmin(1)
    if data.task.is_classification:
        return LabelledDistance(features, tags)
    labels = read_labels(data, settings, seed)
    centres = find_centres(standardise(labels, data.label_offset, data.label_scale), seed)
    return LabelledDistance(features, tags, team.share(centres), data.label_offset, data.label_scale)


def read_labels(data: TaskData, settings: Settings, seed: int) -> Tensor:
    """Labels (n, C) of up to `MAX_LABELS` training rows, in the order of the first epoch."""
    kept, n = [], 0
    for batch in make_batches(settings, data, settings.align.batch_size, seed, augment=False)(0):
        kept.append(batch.labels)
        n += len(batch.labels)
        if n >= MAX_LABELS:
            break
    return torch.cat(kept)[:MAX_LABELS]


def find_centres(points: Tensor, seed: int) -> Tensor:
    """Centres (k, C) of `points` (n, C) by k-means, k being `N_CLUSTERS`, or fewer where fewer points are different."""
    from sklearn.cluster import KMeans

    values = points.detach().cpu().numpy().astype(np.float64)
    k = min(N_CLUSTERS, len(np.unique(values, axis=0)))
    return torch.from_numpy(KMeans(k, n_init=10, random_state=seed).fit(values).cluster_centers_).to(points.dtype)
