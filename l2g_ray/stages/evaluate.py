"""The ensemble's weights, fitted to held-out predictions, and the one look at the test split, with all metrics.

Wolpert 1992 (stacking); Caruana et al. 2004 (greedy selection). One weight an arm, so that few rows suffice and a weight
can be read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from l2g_ray.arms import ENSEMBLE, WITHOUT
from l2g_ray.config import Settings
from l2g_ray.counts import average_strands
from l2g_ray.data.batches import InMemorySource, read_labels
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.splits import Fold, cut_folds
from l2g_ray.errors import UserError
from l2g_ray.models.ensemble import Combination, to_evidence, to_predictions
from l2g_ray.models.l2g import load_model
from l2g_ray.stages.context import HELD_OUT, Context, predict_each_source
from l2g_ray.stages.loop import Runtime
from l2g_ray.stages.optim import compute_task_loss
from l2g_ray.tasks.metrics import compute_metrics
from l2g_ray.tasks.schema import Task, prediction_columns

# Inverse strength of the ridge on the weights, against the sum of the rows' losses (scikit-learn's C).
RIDGE_C = 0.1
# Arms that count for less than this share of all weights, or against the others, are left out: a model less to keep and run.
LEAST_SHARE = 0.03
GREEDY_STEPS = 25

Predictions = Mapping[str, np.ndarray]


class Stacker:
    """Evidence (n, n_outputs) of every arm and labels, as tensors; fits combinations of some arms on some rows."""

    def __init__(
        self, kind: str, predictions: Predictions, labels: np.ndarray, offset: torch.Tensor, scale: torch.Tensor
    ) -> None:
        self.kind, self.arms = kind, tuple(predictions)
        self.offset, self.scale = offset.double(), scale.double()
        self.predictions = {arm: torch.from_numpy(np.asarray(p)).double() for arm, p in predictions.items()}
        evidence = [to_evidence(kind, p, self.offset, self.scale) for p in self.predictions.values()]
        self.evidence = torch.stack(evidence)  # (arms, n, n_outputs)
        self.labels = torch.from_numpy(np.asarray(labels))

    def _loss(self, outputs: torch.Tensor, rows: np.ndarray | slice) -> torch.Tensor:
        labels = self.labels[rows]
        if self.kind == "regression":
            labels = (labels.double() - self.offset) / self.scale
        return compute_task_loss(self.kind, outputs, labels)

    def _combination(self, arms: tuple[str, ...], weights: Any, bias: Any) -> Combination:
        plain = (tuple(float(x) for x in values) for values in (weights, bias, self.offset, self.scale))
        return Combination(self.kind, arms, *plain)

    def _select(self, arms: tuple[str, ...]) -> torch.Tensor:
        return self.evidence[[self.arms.index(arm) for arm in arms]]

    def fit_stack(self, arms: tuple[str, ...], rows: np.ndarray | slice = slice(None)) -> Combination:
        """Ridge regression of the labels on the evidence: logistic, or of least squares for a regression.

        The arm that counts least is left out, and the others are fitted again, until all count.
        """
        while True:
            combination = self._fit_ridge(arms, rows)
            weights = combination.weights
            if len(arms) == 1 or min(weights) >= LEAST_SHARE * sum(abs(weight) for weight in weights):
                return combination
            least = arms[int(np.argmin(weights))]
            arms = tuple(arm for arm in arms if arm != least)

    def _fit_ridge(self, arms: tuple[str, ...], rows: np.ndarray | slice) -> Combination:
        evidence = self._select(arms)[:, rows]
        labels = self.labels[rows]
        n_rows = int(torch.isfinite(labels).reshape(len(labels), -1).any(1).sum())
        weights = torch.zeros(len(arms), dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(evidence.shape[2], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weights, bias], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
        )

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            outputs = torch.einsum("a,anc->nc", weights, evidence) + bias
            # The bias has a ridge too: with classes it is defined up to a constant only.
            loss = self._loss(outputs, rows) + (weights.square().sum() + bias.square().sum()) / (
                2 * RIDGE_C * max(1, n_rows)
            )
            loss.backward()
            return loss

        optimizer.step(closure)
        return self._combination(arms, weights.detach(), bias.detach())

    def fit_greedy(self, arms: tuple[str, ...], rows: np.ndarray | slice = slice(None)) -> Combination:
        """Add one arm after the other, with replacement, whichever lowers the loss of the mean most."""
        evidence = self._select(arms)[:, rows]
        counts, total = np.zeros(len(arms)), torch.zeros_like(evidence[0])
        best: tuple[float, np.ndarray] = (np.inf, counts)
        for step in range(1, GREEDY_STEPS + 1):
            losses = [float(self._loss((total + one) / step, rows)) for one in evidence]
            chosen = int(np.argmin(losses))
            counts[chosen] += 1
            total = total + evidence[chosen]
            if losses[chosen] < best[0]:
                best = losses[chosen], counts / step
        return self._combination(arms, best[1], torch.zeros(evidence.shape[2]))

    def fit_mean(self, arms: tuple[str, ...], rows: np.ndarray | slice = slice(None)) -> Combination:
        """Return all arms alike."""
        return self._combination(arms, np.full(len(arms), 1 / len(arms)), torch.zeros(self.evidence.shape[2]))

    def fit_best(self, arms: tuple[str, ...], rows: np.ndarray | slice = slice(None)) -> Combination:
        """Return the arm with the least loss, alone."""
        losses = [float(self._loss(one, rows)) for one in self._select(arms)[:, rows]]
        chosen = np.arange(len(arms)) == int(np.argmin(losses))
        return self._combination(arms, chosen.astype(float), torch.zeros(self.evidence.shape[2]))

    def fit(self, how: str, arms: tuple[str, ...] | None = None, rows: np.ndarray | slice = slice(None)) -> Combination:
        """Return a combination by its name in `ENSEMBLES`, of all arms unless some are named; those without weight
        are not in it.
        """
        found = ENSEMBLES[how](self, self.arms if arms is None else arms, rows)
        kept = [(arm, weight) for arm, weight in zip(found.arms, found.weights, strict=True) if weight]
        return replace(found, arms=tuple(arm for arm, _ in kept), weights=tuple(weight for _, weight in kept))

    def cross_fit(self, how: str, folds: np.ndarray, arms: tuple[str, ...] | None = None) -> np.ndarray:
        """Return predictions (n, n_outputs) for every row by a combination that was fitted to the rows of the other
        folds.
        """
        outputs = torch.zeros_like(self.evidence[0])
        for fold in np.unique(folds):
            inside = folds == fold
            combination = self.fit(how, arms, ~inside)
            outputs[inside] = combination.combine({a: self.predictions[a][inside] for a in combination.arms})
        return to_predictions(self.kind, outputs).numpy()


ENSEMBLES: dict[str, Callable[[Stacker, tuple[str, ...], np.ndarray | slice], Combination]] = {
    "stack": Stacker.fit_stack,
    "greedy": Stacker.fit_greedy,
    "mean": Stacker.fit_mean,
    "best": Stacker.fit_best,
}


# Arm and seed to predictions (n, n_outputs): those reported, and those of the given strand.
Outputs = dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]
# Parts of the validation rows that replace folds: the weights for one part are fitted to the others.
PARTS = 5


@dataclass(frozen=True)
class Contender:
    """One trained model: its arm, its seed, its folder, and the fold that it has not seen. The fold is None for a model
    that is no member of the ensemble."""

    arm: str
    seed: int
    folder: Path
    fold: int | None = None


def evaluate(
    prepared: PreparedTask,
    settings: Settings,
    runtime: Runtime,
    contenders: list[Contender],
    fold: Fold | None,
    out: Path,
) -> dict[str, Any]:
    """Combine the arms, predict the test split with every contender and the ensemble, return all metrics.

    Parameters
    ----------
    fold : any fold of the members' split; None where no contender is a member.
    out : gets `predictions.parquet`, a row a test sequence, arm and seed: the reported predictions (strand-averaged where the
        task allows it, the mean over the arm's folds) and, beside them, those of the given strand as `plain_*` columns; and
        `oof.parquet`, the same for held-out rows, with the ensemble's predictions by weights that were fitted to other
        folds, and those of the ensemble without each arm.

    Metrics are computed once, on all rows. `combinations` of the result has the ensemble of each seed.
    """
    task = prepared.task
    both = average_strands(settings, task)
    combinations: dict[int, Combination] = {}
    if fold is not None:  # before the test split is opened
        members = [one for one in contenders if one.fold is not None]
        combinations = combine_members(prepared, settings, members, fold, out)
    table = prepared.open_test()
    outputs, labels, took_s = _predict(task, settings, runtime, contenders, table, both)
    for seed, combination in combinations.items():
        strands = [{arm: torch.from_numpy(outputs[arm, seed][which]) for arm in combination.arms} for which in range(2)]
        reported, plain = (to_predictions(task.kind, combination.combine(one)).numpy() for one in strands)
        outputs[ENSEMBLE, seed] = reported, plain
    parts, metrics = [], []
    for (arm, seed), (reported, plain) in outputs.items():
        metrics.append(
            {
                "arm": arm,
                "seed": seed,
                "test": compute_metrics(task.kind, labels, reported, list(task.labels)),
                "test_plain": compute_metrics(task.kind, labels, plain, list(task.labels)),
            }
        )
        parts.append(_tabulate(task, table["id"], arm, seed, labels, reported, plain if both else None))
    pq.write_table(pa.concat_tables(parts), out / "predictions.parquet", compression="zstd")
    return {
        "strand_averaged": both,
        "n_test": len(table),
        "metrics": metrics,
        "predict_s": took_s,
        "combinations": {str(seed): combination.to_dict() for seed, combination in combinations.items()},
    }


def run(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    """Evaluate `args['contenders']`, whose models are the inputs of the same names."""
    contenders = [Contender(**named, folder=context.inputs[name]) for name, named in args["contenders"].items()]
    fold = Fold(**args["folds"]) if args["folds"] else None
    return evaluate(
        context.prepared, context.settings, context.runtime.for_predicting(), contenders, fold, context.work
    )


def _predict(
    task: Task, settings: Settings, runtime: Runtime, contenders: list[Contender], table: pa.Table, both: bool
) -> tuple[Outputs, np.ndarray, dict[str, float]]:
    """Return each arm's and seed's mean over its models, the labels, and the seconds that each arm's models took for
    one seed.
    """
    source, labels, size = InMemorySource(table), np.empty(0), settings.evaluate.batch_size
    predicted: dict[Path, tuple[np.ndarray, np.ndarray, float]] = {}  # a model may stand for several seeds
    found: dict[tuple[str, int], list[tuple[np.ndarray, np.ndarray, float]]] = {}
    for one in contenders:
        if one.folder not in predicted:
            begun = time.perf_counter()
            model = load_model(one.folder).to(runtime.device)
            strands, labels = predict_each_source(model, source, task, runtime, size, both)
            predicted[one.folder] = strands[-1], strands[0], time.perf_counter() - begun
        found.setdefault((one.arm, one.seed), []).append(predicted[one.folder])
    outputs = {
        key: (np.mean([reported for reported, _, _ in parts], 0), np.mean([plain for _, plain, _ in parts], 0))
        for key, parts in found.items()
    }
    return outputs, labels, {arm: sum(took for _, _, took in parts) for (arm, _), parts in found.items()}


def combine_members(
    prepared: PreparedTask, settings: Settings, members: list[Contender], fold: Fold, out: Path
) -> dict[int, Combination]:
    """Return the ensemble of each seed, by the members' predictions for held-out rows; writes `oof.parquet`.

    With folds, rows of the given validation split do not count: backbone, architecture and hyper-parameters were chosen on
    them. Without folds there are no others.
    """
    task, both = prepared.task, average_strands(settings, prepared.task)
    folds = fold.read(prepared)
    counted = np.arange(len(folds)) < prepared.n_rows("train") if fold.of else folds == 0
    rows = pa.concat_tables([prepared.table(split, ["id", "label"]) for split in ("train", "valid")])
    labels = read_labels(rows, task.kind).numpy()[counted]
    ids = rows["id"].filter(pa.array(counted))
    if fold.of:
        parts_of = folds[counted]
    else:
        parts_of = cut_folds(int(counted.sum()), PARTS, settings.seed, labels if task.is_classification else None)
    offset, scale = _scale_labels(task, labels)
    combinations, tables = {}, []
    for seed in dict.fromkeys(one.seed for one in members):
        arms = _read_held_out([one for one in members if one.seed == seed], folds, task.n_outputs, both)
        stacker = Stacker(task.kind, {arm: p[counted] for arm, p in arms.items()}, labels, offset, scale)
        combinations[seed] = stacker.fit(settings.ensemble)
        found: Mapping[str, np.ndarray] = {arm: p[counted] for arm, p in arms.items()} | {
            ENSEMBLE: stacker.cross_fit(settings.ensemble, parts_of)
        }
        if len(stacker.arms) > 1:
            for arm in stacker.arms:
                rest = tuple(other for other in stacker.arms if other != arm)
                found = {**found, f"{WITHOUT}{arm}": stacker.cross_fit(settings.ensemble, parts_of, rest)}
        for name, predictions in found.items():
            part = _tabulate(task, ids, name, seed, labels, predictions, None)
            tables.append(part.append_column("fold", pa.array(parts_of.astype(np.int8))))
    pq.write_table(pa.concat_tables(tables), out / "oof.parquet", compression="zstd")
    return combinations


def _read_held_out(members: list[Contender], folds: np.ndarray, n_outputs: int, both: bool) -> dict[str, np.ndarray]:
    """Arm to predictions (n, n_outputs) of the rows of all folds that it has a model for, NaN elsewhere.

    An arm whose predictions are not finite is left out.
    """
    arms: dict[str, np.ndarray] = {}
    for one in members:
        values = arms.setdefault(one.arm, np.full((len(folds), n_outputs), np.nan, np.float32))
        values[folds == one.fold] = np.load(one.folder / HELD_OUT)[int(both)]
    covered = np.isin(folds, [one.fold for one in members if one.fold is not None])
    finite = {arm: values for arm, values in arms.items() if np.isfinite(values[covered]).all()}
    if not finite:
        raise UserError(
            f"no arm ({', '.join(arms)}) has finite predictions for held-out rows; lower the learning rates, or add arms"
        )
    return finite


def _scale_labels(task: Task, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation (n_outputs,) of a regression's labels, 0 and 1 otherwise."""
    if task.kind != "regression":
        return torch.zeros(task.n_outputs), torch.ones(task.n_outputs)
    means, sds = np.nanmean(labels, 0), np.nanstd(labels, 0)
    return torch.from_numpy(np.nan_to_num(means)), torch.from_numpy(np.where(sds > 0, sds, 1.0))


def read_evaluated_rows(prepared: PreparedTask) -> pa.Table:
    """Return the test rows (id, sequence, label) for a picture of a model that is finished; nothing may be chosen by
    it.
    """
    return prepared.open_test()


def _tabulate(
    task: Task,
    ids: pa.ChunkedArray,
    arm: str,
    seed: int,
    labels: np.ndarray,
    reported: np.ndarray,
    plain: np.ndarray | None,
) -> pa.Table:
    n = len(reported)
    columns: dict[str, Any] = {
        "id": ids,
        "arm": pa.array([arm] * n),
        "seed": pa.array(np.full(n, seed, np.int64)),
    }
    if task.is_classification:
        columns["label"] = pa.array([task.labels[code] for code in labels])
    else:
        columns |= {f"label_{name}": labels[:, i] for i, name in enumerate(task.labels)}
    columns |= prediction_columns(task, reported)
    if plain is not None:
        columns |= {f"plain_{name}": values for name, values in prediction_columns(task, plain).items()}
    return pa.table(columns)
