"""Simple models fitted to the training rows: what a method must beat to be worth its cost.

Regularisation is chosen on validation by the task's metric, trees stop early on validation. The test split is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch

from l2g_ray.config import Settings
from l2g_ray.counts import use_rc
from l2g_ray.data.batches import Source, iter_evaluation_batches
from l2g_ray.models.baselines import Baseline, BaselineConfig, Features
from l2g_ray.sequence import reverse_complement
from l2g_ray.stages.common import TaskData, predict_source
from l2g_ray.stages.loop import Runtime
from l2g_ray.stages.metrics import score
from l2g_ray.tasks.metrics import find_metric

FIT_BATCH_ROWS = 512
# Inverse strengths of the penalty (scikit-learn's C); ridge takes their inverses.
STRENGTHS = (0.1, 1.0, 10.0, 100.0)
# Above so many outputs (DeepSEA has 919) one strength is taken for granted, and trees are left out.
MANY_OUTPUTS = 20
BOOSTING = {"learning_rate": 0.1, "num_leaves": 31, "min_data_in_leaf": 20, "feature_fraction": 0.3}
BOOSTING_ROUNDS, BOOSTING_PATIENCE = 500, 30
_ABSENT = -30.0  # logit of a class without a training row


@dataclass(frozen=True)
class Fitted:
    """A fitted baseline, its validation score (maximised), and what was chosen."""

    model: Baseline
    score: float
    chosen: dict[str, Any]


def fit_baseline(name: str, data: TaskData, settings: Settings, runtime: Runtime, seed: int) -> Fitted:
    """Fit one baseline: majority, kmer_linear, one_hot_linear or kmer_boosting.

    majority: class frequencies, or means of the training labels. kmer_linear: TF-IDF of k-mers (spec/published_results:
    the 6-mer LR) and logistic or ridge regression. one_hot_linear: the same on one-hot of the padded sequence, trained on
    both strands where the task allows it. kmer_boosting: LightGBM on k-mer counts.
    Where strands are the same example, a k-mer and its reverse complement are one feature.

    Raises ValueError for an unknown name, NotApplicable for a task that the baseline is not made for.
    """
    if name not in FORMS:
        raise ValueError(f"no baseline '{name}'; there are {', '.join(FORMS)}")
    form, features = FORMS[name]
    if form == "boosting" and data.task.n_outputs > MANY_OUTPUTS:
        raise NotApplicable(f"{name}: one set of trees an output is too many for {data.task.n_outputs} outputs")
    both = use_rc(settings, data.task)
    config = BaselineConfig(
        form=form,
        features=features,
        n_outputs=data.task.n_outputs,
        length_bp=data.length_bp,
        k=settings.baselines.k,
        canonical=both,
    )
    rows = _read(config, data.train, data, settings.baselines.max_train_rows, seed, both and features == "one_hot")
    valid = _read(config, data.valid, data, None, seed, False)
    fitted: Callable[..., tuple[Baseline, dict[str, Any]]] = {
        "constant": _fit_constant,
        "linear": _fit_linear,
        "boosting": _fit_boosting,
    }[form]
    model, chosen = fitted(config, rows, valid, data, seed)
    predictions, labels = predict_source(model, data.valid, data.task, runtime)
    sign = find_metric(data.task.metric).sign
    value = sign * score(data.task.kind, data.task.metric, labels, predictions)
    return Fitted(model.eval(), value, chosen | {"train_rows": rows.labels.shape[0]})


FORMS = {
    "majority": ("constant", "none"),
    "kmer_linear": ("linear", "tfidf"),
    "one_hot_linear": ("linear", "one_hot"),
    "kmer_boosting": ("boosting", "kmer"),
}


class NotApplicable(Exception):
    """This baseline is not made for this task."""


@dataclass(frozen=True)
class _Rows:
    features: scipy.sparse.csr_matrix
    labels: np.ndarray
    idf: np.ndarray | None = None


def _read(config: BaselineConfig, source: Source, data: TaskData, most: int | None, seed: int, flip: bool) -> _Rows:
    """Features as they are counted (before TF-IDF weights) and labels of a split, or of `most` rows of it."""
    plain = Features(BaselineConfig(**(config.to_dict() | {"features": _counted(config.features)})))
    parts, labels = [], []
    wanted = _draw(source.n_rows, most, seed)
    for batch in iter_evaluation_batches(source.tables(), kind=data.task.kind, batch_size=FIT_BATCH_ROWS):
        kept = torch.from_numpy(wanted[batch.row_index.numpy()])
        codes, lengths, label = batch.codes[kept], batch.lengths_bp[kept], batch.labels[kept].numpy()
        strands = [codes, reverse_complement(codes, lengths)] if flip else [codes]
        for strand in strands:
            parts.append(scipy.sparse.csr_matrix(plain(strand, lengths).numpy()))
            labels.append(label)
    return _Rows(scipy.sparse.vstack(parts, format="csr"), np.concatenate(labels))


def _counted(features: str) -> str:
    return "kmer" if features == "tfidf" else features


def _draw(n_rows: int, most: int | None, seed: int) -> np.ndarray:
    wanted = np.ones(n_rows, dtype=bool)
    if most is not None and n_rows > most:
        wanted[:] = False
        wanted[np.random.default_rng(seed).choice(n_rows, most, replace=False)] = True
    return wanted


def _fit_constant(
    config: BaselineConfig, rows: _Rows, valid: _Rows, data: TaskData, seed: int
) -> tuple[Baseline, dict[str, Any]]:
    model = Baseline(config)
    labels = rows.labels
    if data.task.is_classification:
        share = np.bincount(labels, minlength=config.n_outputs) / len(labels)
        bias = np.where(share > 0, np.log(np.maximum(share, 1e-300)), _ABSENT)
    else:
        known = np.isfinite(labels)
        mean = np.where(known, labels, 0).sum(0) / np.maximum(known.sum(0), 1)
        bias = mean
        if data.task.kind == "multilabel":
            inside = np.clip(mean, 1e-6, 1 - 1e-6)
            bias = np.log(inside / (1 - inside))
    model.bias.copy_(torch.from_numpy(bias))  # type: ignore[operator]
    return model, {}


def _fit_linear(
    config: BaselineConfig, rows: _Rows, valid: _Rows, data: TaskData, seed: int
) -> tuple[Baseline, dict[str, Any]]:
    idf = None
    x, x_valid = rows.features, valid.features
    if config.features == "tfidf":
        from sklearn.feature_extraction.text import TfidfTransformer

        weighting = TfidfTransformer().fit(x)
        idf, x, x_valid = weighting.idf_, weighting.transform(x), weighting.transform(x_valid)
    sign = find_metric(data.task.metric).sign
    best: tuple[float, float, np.ndarray, np.ndarray] | None = None
    for strength in STRENGTHS if config.n_outputs <= MANY_OUTPUTS else (1.0,):
        weight, bias = _solve(x, rows.labels, data, strength)
        outputs = torch.from_numpy(np.asarray(x_valid @ weight.T) + bias)
        value = sign * score(data.task.kind, data.task.metric, valid.labels, _activate(data.task.kind, outputs))
        value = value if np.isfinite(value) else -np.inf  # an undefined metric must not win by NaN
        if best is None or value > best[0]:
            best = value, strength, weight, bias
    assert best is not None
    model = Baseline(config)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(best[2]))  # type: ignore[operator]
        model.bias.copy_(torch.from_numpy(best[3]))  # type: ignore[operator]
        if idf is not None:
            model.features.idf.copy_(torch.from_numpy(idf))  # type: ignore[operator]
    return model, {"C": best[1]}


def _activate(kind: str, outputs: torch.Tensor) -> np.ndarray:
    from l2g_ray.stages.losses import to_predictions

    return to_predictions(kind, outputs).numpy()


def _solve(x: Any, labels: np.ndarray, data: TaskData, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n_outputs, n_features) and biases of one strength."""
    from sklearn.linear_model import LogisticRegression, Ridge

    n_outputs = data.task.n_outputs
    weight, bias = np.zeros((n_outputs, x.shape[1])), np.zeros(n_outputs)
    if data.task.is_classification:
        classes = np.unique(labels)
        if len(classes) < 2:
            bias[:] = np.where(np.arange(n_outputs) == classes[0], 0.0, _ABSENT)
            return weight, bias
        model = LogisticRegression(C=strength, max_iter=1000).fit(x, labels)
        bias[:] = _ABSENT
        bias[classes] = model.intercept_ if len(classes) > 2 else [0.0, model.intercept_[0]]
        weight[classes] = model.coef_ if len(classes) > 2 else np.stack([0 * model.coef_[0], model.coef_[0]])
        return weight, bias
    for output, known in _known(labels):
        target = labels[known, output]
        if data.task.kind == "regression":
            if len(target):
                fit = Ridge(alpha=1 / strength, solver="lsqr").fit(x[known], target)
                weight[output], bias[output] = fit.coef_, fit.intercept_
        elif 0 < target.sum() < len(target):
            fit = LogisticRegression(C=strength, max_iter=1000).fit(x[known], target)
            weight[output], bias[output] = fit.coef_[0], fit.intercept_[0]
        else:
            bias[output] = _ABSENT if not target.any() else -_ABSENT
    return weight, bias


def _known(labels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for output in range(labels.shape[1]):
        yield output, np.flatnonzero(np.isfinite(labels[:, output]))


def _fit_boosting(
    config: BaselineConfig, rows: _Rows, valid: _Rows, data: TaskData, seed: int
) -> tuple[Baseline, dict[str, Any]]:
    kind, n_outputs = data.task.kind, config.n_outputs
    if data.task.is_classification:
        objective = {"objective": "binary"} if n_outputs == 2 else {"objective": "multiclass", "num_class": n_outputs}
        boosters = [_boost(objective, rows.features, rows.labels, valid.features, valid.labels, seed)]
    else:
        objective = {"objective": "binary" if kind == "multilabel" else "regression"}
        boosters = []
        seen = dict(_known(valid.labels))
        for output, known in _known(rows.labels):
            check = seen[output]
            boosters.append(
                _boost(
                    objective,
                    rows.features[known],
                    rows.labels[known, output],
                    valid.features[check],
                    valid.labels[check, output],
                    seed,
                )
            )
    model = Baseline(config)
    model.set_boosters([booster.model_to_string(num_iteration=booster.best_iteration) for booster in boosters])
    return model, {"rounds": [booster.current_iteration() for booster in boosters]}


def _boost(objective: dict[str, Any], x: Any, y: np.ndarray, x_valid: Any, y_valid: np.ndarray, seed: int) -> Any:
    import lightgbm

    parameters = BOOSTING | objective | {"seed": seed, "verbosity": -1, "deterministic": True, "force_row_wise": True}
    parameters["num_threads"] = torch.get_num_threads()
    train = lightgbm.Dataset(x, y, free_raw_data=False)
    if not len(y_valid):  # no label of this output in validation: nothing to stop by
        return lightgbm.train(parameters, train, BOOSTING_PATIENCE)
    held = lightgbm.Dataset(x_valid, y_valid, reference=train, free_raw_data=False)
    stop = lightgbm.early_stopping(BOOSTING_PATIENCE, verbose=False)
    return lightgbm.train(parameters, train, BOOSTING_ROUNDS, valid_sets=[held], callbacks=[stop])
