"""Simple models fitted to the training rows: members of the ensemble, and what a method must beat to be worth its cost.

The strength of a penalty is chosen by the loss on validation. The test split is not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import nn

from l2g_ray.arms import find_baseline
from l2g_ray.config import Settings
from l2g_ray.counts import use_rc
from l2g_ray.data.batches import Source, iter_evaluation_batches
from l2g_ray.models.baselines import MANY_OUTPUTS, Baseline, BaselineConfig
from l2g_ray.models.l2g import save_model
from l2g_ray.sequence import reverse_complement
from l2g_ray.stages.context import Context, TaskData, predict_source, summarise
from l2g_ray.stages.loop import Runtime, TrainResult
from l2g_ray.stages.optim import compute_task_loss
from l2g_ray.tasks.metrics import signed_score
from l2g_ray.tasks.schema import Task

FIT_BATCH_ROWS = 4096
# Entries of a training matrix, at 8 bytes: more rows than fit are drawn from at random.
MOST_ENTRIES = 120_000_000
# Inverse strengths of the penalty (scikit-learn's C) by features; ridge takes their inverses.
STRENGTHS = {
    "tfidf": (0.1, 1.0, 10.0, 100.0),
    "one_hot": (0.1, 1.0, 10.0, 100.0),
    "gapped": (3.0, 10.0, 30.0, 100.0),
    "places": (1.0, 3.0, 10.0, 30.0),
}
# The only strength above `MANY_OUTPUTS` outputs (DeepSEA has 919).
ONE_STRENGTH = 1.0
# A fixed number of small steps on few features each: nothing to stop by, so that validation rows choose nothing.
BOOSTING = {
    "learning_rate": 0.05,
    "num_leaves": 15,
    "feature_fraction": 0.1,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "max_bin": 15,
    "lambda_l2": 1.0,
}
_ABSENT = -30.0  # logit of a class without a training row


class NotApplicable(Exception):
    """This baseline is not made for this task."""


@dataclass(frozen=True)
class Fitted:
    """A fitted baseline, its validation score (maximised), and what was chosen."""

    model: Baseline
    score: float
    chosen: dict[str, Any]


def fit_baseline(
    name: str, data: TaskData, settings: Settings, runtime: Runtime, seed: int, strength: float | None = None
) -> Fitted:
    """Fit one baseline of this module. `strength`: of a linear model's penalty; None: the one with the least loss on validation.

    majority: class frequencies, or means of the training labels. kmer_linear: TF-IDF of k-mers; gapped_kmer: of gapped
    patterns (`models.kmers.GAPPED`); positional_kmer: of words and their places; one_hot_linear: one-hot of the padded
    sequence, trained on both strands where the task allows it. All with logistic or ridge regression. kmer_boosting:
    LightGBM on counts of 1- to 6-mers. Where strands are the same example, a k-mer and its reverse complement are one feature.

    Raises UserError for an unknown name.
    """
    options = find_baseline(name).options
    form, features = options["form"], options["features"]
    both = use_rc(settings, data.task)
    config = BaselineConfig(
        form=form,
        features=features,
        n_outputs=data.task.n_outputs,
        length_bp=data.length_bp,
        k=settings.baselines.k,
        canonical=both,
    )
    model = Baseline(config)
    most = min(settings.baselines.max_train_rows, MOST_ENTRIES // max(1, model.features.count_entries()))
    x, labels = _read_training(model, data, _draw(data.train.n_rows, most, seed), both and features == "one_hot")
    chosen: dict[str, Any] = {}
    if form == "constant":
        _fit_constant(model, labels, data)
    elif form == "linear":
        strengths = STRENGTHS[features] if data.task.n_outputs <= MANY_OUTPUTS else (ONE_STRENGTH,)
        chosen["C"] = _fit_linear(model, x, labels, data, strengths if strength is None else (strength,))
    else:
        _fit_boosting(model, x, labels, data, seed, settings.baselines.boosting_rounds)
    predictions, known = predict_source(model, data.valid, data.task, runtime)
    value = signed_score(data.task.kind, data.task.metric, known, predictions)
    return Fitted(model.eval(), value, chosen | {"train_rows": len(labels)})


def _read_training(model: Baseline, data: TaskData, wanted: np.ndarray, flip: bool) -> tuple[Any, np.ndarray]:
    """Fit the model's features to the `wanted` training rows; returns features and labels, of both strands with `flip`."""
    parts: list[list[Any]] = []
    labels = []
    for codes, lengths, label in _iter_rows(data.train, data, wanted):
        for strand in [codes, reverse_complement(codes, lengths)] if flip else [codes]:
            parts.append(model.features.count(strand))
            labels.append(label)
    blocks = [scipy.sparse.vstack(column, format="csr") for column in zip(*parts, strict=True)]
    del parts
    model.features.fit(blocks)
    return model.features.weigh(blocks), np.concatenate(labels)


def _iter_rows(
    source: Source, data: TaskData, wanted: np.ndarray
) -> Iterator[tuple[torch.Tensor, torch.Tensor, np.ndarray]]:
    for batch in iter_evaluation_batches(source.tables(), kind=data.task.kind, batch_size=FIT_BATCH_ROWS):
        kept = torch.from_numpy(wanted[batch.row_index.numpy()])
        yield batch.codes[kept], batch.lengths_bp[kept], batch.labels[kept].numpy()


def _draw(n_rows: int, most: int, seed: int) -> np.ndarray:
    wanted = np.ones(n_rows, dtype=bool)
    if n_rows > most:
        wanted[:] = False
        wanted[np.random.default_rng(seed).choice(n_rows, most, replace=False)] = True
    return wanted


def _fit_constant(model: Baseline, labels: np.ndarray, data: TaskData) -> None:
    if data.task.is_classification:
        share = np.bincount(labels, minlength=data.task.n_outputs) / len(labels)
        bias = np.where(share > 0, np.log(np.maximum(share, 1e-300)), _ABSENT)
    else:
        known = np.isfinite(labels)
        bias = np.where(known, labels, 0).sum(0) / np.maximum(known.sum(0), 1)
        if data.task.kind == "multilabel":
            inside = np.clip(bias, 1e-6, 1 - 1e-6)
            bias = np.log(inside / (1 - inside))
    model.bias.copy_(torch.from_numpy(bias))


def _fit_linear(model: Baseline, x: Any, labels: np.ndarray, data: TaskData, strengths: tuple[float, ...]) -> float:
    """Set weights and bias; returns the strength whose loss on validation is least."""
    everything = np.ones(data.valid.n_rows, dtype=bool)
    rows = [(model.features(codes), label) for codes, _, label in _iter_rows(data.valid, data, everything)]
    x_valid = scipy.sparse.vstack([features for features, _ in rows], format="csr")
    known = torch.from_numpy(np.concatenate([label for _, label in rows]))
    best: tuple[float, float, np.ndarray, np.ndarray] | None = None
    for strength in strengths:
        weight, bias = _solve(x, labels, data, strength)
        outputs = torch.from_numpy(np.asarray(x_valid @ weight.T) + bias)
        loss = float(compute_task_loss(data.task.kind, outputs, known, data.label_scale))
        if best is None or loss < best[0]:
            best = loss, strength, weight, bias
    assert best is not None
    model.weight = torch.from_numpy(best[2].astype(np.float32))
    model.bias.copy_(torch.from_numpy(best[3]))
    return best[1]


def _solve(x: Any, labels: np.ndarray, data: TaskData, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (n_outputs, n_features) and biases of one strength."""
    from sklearn.linear_model import LogisticRegression, Ridge

    def fit(rows: Any, classes: np.ndarray) -> Any:
        # Few, exact steps: scikit-learn's default stops early on many weak features.
        return LogisticRegression(C=strength, solver="newton-cg", tol=1e-4, max_iter=1000).fit(rows, classes)

    n_outputs = data.task.n_outputs
    weight, bias = np.zeros((n_outputs, x.shape[1])), np.zeros(n_outputs)
    if data.task.is_classification:
        classes = np.unique(labels)
        if len(classes) < 2:
            bias[:] = np.where(np.arange(n_outputs) == classes[0], 0.0, _ABSENT)
            return weight, bias
        model = fit(x, labels)
        bias[:] = _ABSENT
        bias[classes] = model.intercept_ if len(classes) > 2 else [0.0, model.intercept_[0]]
        weight[classes] = model.coef_ if len(classes) > 2 else np.stack([0 * model.coef_[0], model.coef_[0]])
        return weight, bias
    for output, known in _known(labels):
        target = labels[known, output]
        if data.task.kind == "regression":
            if len(target):
                ridge = Ridge(alpha=1 / strength, solver="lsqr").fit(x[known], target)
                weight[output], bias[output] = ridge.coef_, ridge.intercept_
        elif 0 < target.sum() < len(target):
            model = fit(x[known], target)
            weight[output], bias[output] = model.coef_[0], model.intercept_[0]
        else:
            bias[output] = _ABSENT if not target.any() else -_ABSENT
    return weight, bias


def _known(labels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for output in range(labels.shape[1]):
        yield output, np.flatnonzero(np.isfinite(labels[:, output]))


def _fit_boosting(model: Baseline, x: Any, labels: np.ndarray, data: TaskData, seed: int, rounds: int) -> None:
    n_outputs = data.task.n_outputs
    if data.task.is_classification:
        objective = {"objective": "binary"} if n_outputs == 2 else {"objective": "multiclass", "num_class": n_outputs}
        boosters = [_boost(objective, x, labels, seed, rounds)]
    else:
        objective = {"objective": "binary" if data.task.kind == "multilabel" else "regression"}
        boosters = [
            _boost(objective, x[known], labels[known, output], seed, rounds) for output, known in _known(labels)
        ]
    model.set_boosters([booster.model_to_string() for booster in boosters])


def _boost(objective: dict[str, Any], x: Any, y: np.ndarray, seed: int, rounds: int) -> Any:
    import lightgbm

    parameters = BOOSTING | objective | {"seed": seed, "verbosity": -1, "deterministic": True, "force_row_wise": True}
    parameters["num_threads"] = torch.get_num_threads()
    return lightgbm.train(parameters, lightgbm.Dataset(x, y), rounds)


def run(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    """Fit the baseline `args['name']` and keep its model; returns why as `skipped` where it is not made for the task."""
    name = args["name"]
    try:
        refuse_unfit(name, context.settings, context.data.task)
        model, values = find_baseline(name).load_fit()(context, args)
    except NotApplicable as reason:
        return {"skipped": f"{name}: {reason}"}
    save_model(model, context.work)
    return values | {"name": name}


def refuse_unfit(name: str, settings: Settings, task: Task) -> None:
    """Raise NotApplicable for a task that the baseline is not made for."""
    kind = find_baseline(name)
    if kind.few_outputs and task.n_outputs > MANY_OUTPUTS:
        raise NotApplicable(kind.few_outputs.format(n=task.n_outputs))
    if kind.one_strand and use_rc(settings, task):
        raise NotApplicable(kind.one_strand)


def fit(context: Context, args: dict[str, Any]) -> tuple[Baseline, dict[str, Any]]:
    """Fit a baseline of this module."""
    fitted = fit_baseline(
        args["name"], context.data, context.settings, context.runtime, args["seed"], args.get("strength")
    )
    return fitted.model, {"score": fitted.score, "chosen": fitted.chosen}


def keep_best(net: nn.Module, training: TrainResult) -> dict[str, Any]:
    """Give a network the weights of its training; returns the values of its result."""
    net.load_state_dict(training.best_state)
    return summarise(training) | {"chosen": count_chosen(training)}


def count_chosen(training: TrainResult) -> dict[str, Any]:
    """Return the length of training that was chosen."""
    return {"epochs": training.best_epoch + 1}
