"""OTDD: values that are known, gradients, classes of tasks and texts that have none, and training with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ot
import pytest
import torch
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment
from toys import make_data, make_task, plant, regression_table, tiny_config, tiny_reference, tiny_settings, toy_data

from l2g_ray.data.batches import iter_batches
from l2g_ray.models import embedder
from l2g_ray.models.layers import MaskedBatchNorm1d
from l2g_ray.models.team import ALONE
from l2g_ray.stages.align import make_joint_losses, train_aligned
from l2g_ray.stages.context import Reference, build_net, read_reference
from l2g_ray.stages.distances import (
    Gaussian,
    LabelledDistance,
    find_centres,
    fit_gaussians,
    make_distance,
    otdd,
    squared_bures_wasserstein,
)
from l2g_ray.stages.loop import Runtime

pytestmark = pytest.mark.usefixtures("single_thread")


def draw(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + shift


def labelled_reference() -> Reference:
    """Return two hundred rows of four tags, each around a different centre."""
    plain = tiny_reference()
    classes = torch.arange(4).repeat_interleave(50)
    features = plain.features * 0.3 + torch.randn(4, 16, generator=torch.Generator().manual_seed(8))[classes]
    return Reference(16, 64, 1e-12, plain.norm_weight, plain.norm_bias, features, classes)


# ---- values ----------------------------------------------------------------------------------------------------------


def test_points_in_two_classes_by_hand() -> None:
    """Source 0 | 2 and target 1 | 5, a class a point: W2 between classes is the points' distance, so d^2 is twice |x - y|^2,
    and the cheapest coupling is 0-1, 2-5: (2 * 1 + 2 * 9) / 2 = 10."""
    source, target = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])
    classes = torch.tensor([0, 1])
    assert float(otdd(source, classes, target, classes)) == pytest.approx(10.0, rel=1e-6)


def test_labels_decide_where_features_do_not() -> None:
    """Both sets have rows at -1 and 1. Where one class has both and the other set's classes have one each, rows meet rows
    at no cost, but labels do not: W2((N(0, 1), N(+-1, 0)))^2 = 1 + 1."""
    rows = torch.tensor([[-1.0], [1.0]])
    together, apart = torch.tensor([0, 0]), torch.tensor([0, 1])
    assert float(otdd(rows, apart, rows, apart)) == pytest.approx(0.0, abs=1e-6)
    assert float(otdd(rows, together, rows, apart)) == pytest.approx(2.0, rel=1e-6)


def test_identical_data_sets_are_at_zero_whatever_their_order() -> None:
    rows, classes = draw(60, 5, 0), torch.arange(60) % 3
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    assert float(otdd(rows, classes, rows, classes)) == pytest.approx(0.0, abs=1e-9)
    # The names of classes mean nothing.
    assert float(otdd(rows, classes, rows[order], (2 - classes)[order])) == pytest.approx(0.0, abs=1e-9)


def test_gaussians_in_one_dimension_have_the_closed_form() -> None:
    """W2(N(m, s^2), N(n, t^2))^2 = (m - n)^2 + (s - t)^2."""
    a = Gaussian(torch.tensor([1.0]), torch.tensor([[2.0]]))
    b = Gaussian(torch.tensor([-2.0]), torch.tensor([[0.0], [3.0], [4.0]]))
    assert float(squared_bures_wasserstein(a, b)) == pytest.approx(9.0 + 9.0)


@pytest.mark.parametrize(("n", "m"), [(80, 70), (300, 9)])
def test_gaussians_equal_pots_distance(n: int, m: int) -> None:
    x, y = draw(n, 6, 0), draw(m, 6, 1, shift=2.0)
    (a,), (b,) = fit_gaussians(x, torch.zeros(n).long()), fit_gaussians(y, torch.zeros(m).long())
    assert len(a.factor) == 6
    covariances = [np.cov(z.numpy().T, bias=True) for z in (x, y)]
    expected = ot.gaussian.bures_wasserstein_distance(x.mean(0).numpy(), y.mean(0).numpy(), *covariances) ** 2
    assert float(squared_bures_wasserstein(a, b)) == pytest.approx(expected, rel=1e-6)


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def test_gaussians_of_fewer_rows_than_dimensions_equal_the_definition() -> None:
    """Covariances without full rank, of whose roots POT's distance finds no eigenvalues."""
    x, y = draw(4, 12, 0), draw(5, 12, 1, shift=2.0)
    (a,), (b,) = fit_gaussians(x, torch.zeros(4).long()), fit_gaussians(y, torch.zeros(5).long())
    first, second = (np.cov(z.numpy().T, bias=True) for z in (x, y))
    apart = np.trace(first + second - 2 * root(root(first) @ second @ root(first)))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + apart
    assert float(squared_bures_wasserstein(a, b)) == pytest.approx(float(expected), rel=1e-6)


def test_equals_the_cheapest_assignment() -> None:
    """By a double loop over pairs, POT's Gaussians, and SciPy's assignment in the place of a coupling."""
    x, y = draw(24, 3, 0), draw(24, 3, 1, shift=0.5)
    cx, cy = torch.arange(24) % 2, torch.arange(24) % 3

    def moments(rows: torch.Tensor, classes: torch.Tensor, label: int) -> tuple[np.ndarray, np.ndarray]:
        own = rows[classes == label].numpy()
        return own.mean(0), np.cov(own.T, bias=True)

    cost = np.zeros((24, 24))
    for i in range(24):
        for j in range(24):
            (mx, sx), (my, sy) = moments(x, cx, int(cx[i])), moments(y, cy, int(cy[j]))
            apart = ot.gaussian.bures_wasserstein_distance(mx, my, sx, sy) ** 2
            cost[i, j] = ((x[i] - y[j]) ** 2).sum() + apart
    expected = cost[linear_sum_assignment(cost)].mean()
    assert float(otdd(x, cx, y, cy)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("source", "classes", "message"),
    [(torch.zeros(3, 2), torch.zeros(3), "expected"), (torch.zeros(3, 4), torch.zeros(2), "a class a row")],
)
def test_invalid_inputs(source: torch.Tensor, classes: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        otdd(source, classes.long(), torch.zeros(5, 4), torch.zeros(5).long())


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [3, 14])  # covariances of full rank, and of few rows
def test_gradients_equal_finite_differences(d: int) -> None:
    x, y = draw(12, d, 0), draw(10, d, 1, shift=0.3).requires_grad_()
    cx, cy = torch.arange(12) % 3, torch.arange(10) % 2
    assert torch.autograd.gradcheck(lambda rows: otdd(x, cx, rows, cy), (y,), eps=1e-6, atol=1e-5)


def test_gradients_are_finite_where_rows_coincide() -> None:
    rows = torch.zeros(6, 4, requires_grad=True)
    otdd(draw(8, 4, 0).float(), torch.arange(8) % 2, rows, torch.tensor([0, 0, 0, 0, 0, 1])).backward()
    assert rows.grad is not None
    assert bool(torch.isfinite(rows.grad).all())
    assert float(rows.grad.abs().sum()) > 0


def test_descending_it_moves_each_class_to_its_place() -> None:
    """Two clusters far from where the text's are: the distance falls to that of samples of one distribution."""
    x = torch.cat([draw(40, 2, 0) * 0.1, draw(40, 2, 1) * 0.1 + 4])
    classes = torch.arange(80) // 40
    start = torch.randn(80, 2, generator=torch.Generator().manual_seed(3)).double() - 3 + classes[:, None]
    rows = torch.nn.Parameter(start)
    optimizer = torch.optim.Adam([rows], lr=0.2)
    values = []
    for _ in range(120):
        loss = otdd(x, classes, rows, classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.02 * values[0]
    means = rows.detach().view(2, 40, 2).mean(1)
    assert math.dist(*means.tolist()) == pytest.approx(math.dist(*x.view(2, 40, 2).mean(1).tolist()), rel=0.1)


# ---- classes ---------------------------------------------------------------------------------------------------------


def test_tags_are_read_in_the_order_of_the_features(tmp_path: Path) -> None:
    plain = tiny_reference()
    tensors = {name: getattr(plain, name) for name in ("norm_weight", "norm_bias", "features")}
    save_file(tensors, str(tmp_path / "reference.safetensors"))
    facts: dict[str, Any] = {"width": 16, "max_tokens": 64, "norm_eps": 1e-12, "classes": {"O": 150, "B-PER": 50}}
    classes = read_reference(tmp_path, facts).classes
    assert classes is not None
    assert classes.tolist() == [0] * 150 + [1] * 50
    for without in ({"text": 200}, {}):
        assert read_reference(tmp_path, facts | {"classes": without}).classes is None


def make_labels(rows: int, columns: list[list[float]]) -> Any:
    import pyarrow as pa

    values = np.array(columns, dtype=np.float32)[np.arange(rows) % len(columns)]
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return pa.table({"sequence": plant(rows)["sequence"], "label": column})


def test_labels_of_other_kinds_become_classes() -> None:
    """A regression's values fall into ten classes along their range; label sets of a multi-label task keep apart."""
    data, settings = make_data(make_task("regression"), regression_table(400), regression_table(40)), tiny_settings()
    settings = settings.model_copy(update={"align": settings.align.model_copy(update={"distance": "otdd"})})
    distance = make_distance(data, settings, labelled_reference(), 0, ALONE, "cpu")
    gc = torch.tensor([[20.0, -0.9], [20.0, -0.9], [80.0, -0.3], [math.nan, math.nan]])
    classes = distance.classify(gc)
    assert classes is not None
    assert classes[0] == classes[1] != classes[2]
    assert classes[3] == distance.classify(data.label_offset[None])

    sets = [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    task = make_task().model_copy(update={"kind": "multilabel", "labels": ("a", "b", "c")})
    data = make_data_of(task, make_labels(200, sets))
    found = make_distance(data, settings, labelled_reference(), 0, ALONE, "cpu").classify(torch.tensor(sets))
    assert found is not None
    assert len(found.unique()) == 4, "as many classes as label sets, where these are fewer than ten"


def make_data_of(task: Any, table: Any) -> Any:
    from l2g_ray.data.batches import InMemorySource
    from l2g_ray.stages.context import TaskData

    n = task.n_outputs
    return TaskData(task, InMemorySource(table), InMemorySource(table), 60, True, torch.zeros(n), torch.ones(n))


def test_text_without_tags_is_clustered() -> None:
    reference = labelled_reference()
    settings = tiny_settings(align__distance="otdd")
    plain = Reference(**{**vars(reference), "classes": None})
    distance = make_distance(toy_data(), settings, plain, 0, ALONE, "cpu")
    assert isinstance(distance, LabelledDistance)
    assert len(distance.gaussians) == 10
    assert len(find_centres(torch.tensor([[1.0], [1.0], [2.0]]), 0)) == 2


# ---- in stage 2 ------------------------------------------------------------------------------------------------------


def test_does_not_depend_on_the_scale_of_the_text() -> None:
    target, classes = torch.randn(30, 16, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 2
    reference = labelled_reference()
    assert reference.classes is not None
    values = [
        float(LabelledDistance(c * reference.features, reference.classes)(c * target, classes, torch.Generator()))
        for c in (1.0, 0.03)
    ]
    assert values[1] == pytest.approx(values[0], rel=1e-4)


def align(seed: int, report: Callable[[dict[str, Any]], None] = lambda row: None, **changes: Any) -> Any:
    data = toy_data()
    settings = tiny_settings(
        align__distance="otdd", align__beta=0.0, align__task_only_epochs=0, align__alphas=[1.0], **changes
    )
    runtime = Runtime(report=report)
    return train_aligned(
        data, settings, labelled_reference(), runtime, config=tiny_config(data, settings), alpha=1.0, seed=seed
    )


def test_falls_under_training_and_the_seed_decides() -> None:
    first, second, other = (align(seed, align__epochs=6, align__optim__lr=3e-3) for seed in (3, 3, 4))
    losses = [row["train_loss"] for row in first.history]
    assert losses[-1] < 0.9 * losses[0]
    assert losses == [row["train_loss"] for row in second.history]
    assert all(torch.equal(first.best_state[k], second.best_state[k]) for k in first.best_state)
    assert losses != [row["train_loss"] for row in other.history]


@pytest.mark.parametrize("micro_batches", [2, 3])
def test_micro_batches_equal_the_group(micro_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients, classes of all micro-batches together; batch norm frozen."""
    monkeypatch.setattr(embedder, "_MEAN_MAX_DROPOUT", 0.0)
    data, settings = toy_data(), tiny_settings(align__task_only_epochs=0, align__distance="otdd")
    group = list(iter_batches(data.train.tables(), kind="binary", batch_size=16, seed=0, epoch=0))[:2]
    pieces = [piece for batch in group for piece in batch.split(micro_batches)]
    distance = make_distance(data, settings, labelled_reference(), 0, ALONE, "cpu")
    found = []
    for parts in (group, pieces):
        net = build_net(tiny_config(data, settings), data, tiny_reference(), 0).train()
        for module in net.modules():
            if isinstance(module, MaskedBatchNorm1d):
                module.eval()
        torch.manual_seed(4)
        value = 0.0
        for compute in make_joint_losses(data, distance, settings.align, torch.ones(2), alpha=1.0)(net, parts, 1):
            loss = compute()
            loss.backward()
            value += float(loss.detach())
        found.append((value, [p.grad for p in net.parameters()]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    for small, large in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-4)
