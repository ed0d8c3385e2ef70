"""One unit of work in a process of its own: read inputs, call one stage function, store what it found.

Its spec (see `job`) is run by a Ray task, by Tune, by Ray Train, or in a test without Ray.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from l2g_ray.atomic import replacing
from l2g_ray.config import Settings
from l2g_ray.counts import default_architecture
from l2g_ray.data.batches import Source
from l2g_ray.data.dataset import PreparedTask, ShardSource, open_prepared
from l2g_ray.data.folds import Fold, SelectedRows
from l2g_ray.errors import UserError
from l2g_ray.models.corpus import find_corpus
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.models.l2g import Model, load_model, save_model
from l2g_ray.models.language_model import load_transformer
from l2g_ray.models.reference import write_reference
from l2g_ray.models.team import ALONE, Team
from l2g_ray.orchestrate.board import stamp_row
from l2g_ray.orchestrate.guard import StallWatch, forget_stall, persist
from l2g_ray.orchestrate.shared_store import open_store
from l2g_ray.orchestrate.store import Store
from l2g_ray.redaction import redact
from l2g_ray.stages.align import train_aligned
from l2g_ray.stages.baseline import NotApplicable, fit_baseline
from l2g_ray.stages.cnn import build_cnn, train_cnn
from l2g_ray.stages.common import (
    Reference,
    TaskData,
    build_net,
    make_embedder_config,
    make_label_scale,
    predict_source,
    read_reference,
)
from l2g_ray.stages.deepstarr import build_deepstarr, train_deepstarr
from l2g_ray.stages.embedder_only import train_embedder_only
from l2g_ray.stages.evaluate import HELD_OUT, Contender, evaluate
from l2g_ray.stages.finetune import FinetuneTrial, build_model, finetune
from l2g_ray.stages.genomic_lm import tune_genomic_lm
from l2g_ray.stages.loop import Report, Runtime, TrainResult
from l2g_ray.stages.pretrain import pretrain
from l2g_ray.stages.search import search_architecture
from l2g_ray.stages.select import train_backbone


@dataclass(frozen=True)
class Context:
    """What a stage function gets: the task's data, settings, reference, runtime, and the folder for its files."""

    prepared: PreparedTask
    data: TaskData
    settings: Settings
    language_model: Reference | None
    runtime: Runtime
    work: Path
    inputs: dict[str, Path]
    # The language model after continued pre-training, where there was any.
    pretrained: Path | None = None

    @property
    def reference(self) -> Reference:
        """What the stage needs of the language model; all stages but `pretrain`, `baseline` and `evaluate` have one."""
        assert self.language_model is not None
        return self.language_model


# Stages whose models are arms: each keeps what it predicts for the rows that are held out.
ARM_STAGES = frozenset({"baseline", "embedder_only", "refit"})


def load_data(
    prepared: PreparedTask, train: Source | None = None, valid: Source | None = None, fold: Fold | None = None
) -> TaskData:
    """Training and validation rows, streamed from the shards unless sources are given; with a fold, the rows of the other
    folds and its own."""
    task = prepared.task
    outputs = prepared.manifest["splits"]["train"].get("outputs", {})
    means, sds = ([outputs.get(label, {}).get(name) for label in task.labels] for name in ("mean", "sd"))
    offset, scale = make_label_scale(task, means, sds)
    lengths = prepared.length_range()
    train = train or ShardSource(tuple(prepared.shard_paths("train")), prepared.n_rows("train"))
    valid = valid or ShardSource(tuple(prepared.shard_paths("valid")), prepared.n_rows("valid"))
    held_out = fold is not None and fold.of > 0
    if fold is not None and held_out:
        inside = fold.read(prepared) == fold.number
        train, valid = SelectedRows((train, valid), ~inside), SelectedRows((train, valid), inside)
    return TaskData(
        task=task,
        train=train,
        valid=valid,
        length_bp=lengths[1],
        fixed_length=lengths[0] == lengths[1],
        label_offset=offset,
        label_scale=scale,
        held_out=held_out,
    )


def run_job(
    spec: dict[str, Any],
    report: Report,
    train: Source | None = None,
    valid: Source | None = None,
    team: Team = ALONE,
) -> dict[str, Any]:
    """Run a job to its end, or go on with one that was interrupted, and store the result.

    A finished job only reports its history again; rows of one that runs also say when it began (`began_at`) and when
    they were reported (`at`), in seconds since 1970. All workers of a `team` call this; the first one holds the lock and
    writes the result.
    """
    wait_s = Settings.model_validate(spec["settings"]).cluster.storage_wait_s
    store = open_store(Path(spec["root"]), spec.get("remote"), wait_s)
    told: set[int] = set()

    def report_once(row: dict[str, Any]) -> None:
        if row["epoch"] not in told:  # what is called again tells its first epochs again
            told.add(row["epoch"])
            report(row)

    with contextlib.ExitStack() as held:
        found = None
        if team.is_first:
            held.enter_context(store.locked(spec["stage"], spec["key"]))
            found = store.find(spec["stage"], spec["key"]) or store.find_unshared(spec["stage"], spec["key"])
        values = team.share(found.values if found else None)
        if values is None:
            try:
                if team.size > 1:  # one of several cannot begin again alone: Ray Train starts all of them again
                    return _run_locked(spec, report, store, train, valid, team)
                return persist(store.root, lambda: _run_locked(spec, report_once, store, train, valid, team), wait_s)
            except Exception as error:
                text = str(error)
                if redact(text) == text:
                    raise
                # Ray writes it to its logs.
                if isinstance(error, UserError):
                    raise UserError(redact(text)) from None
                raise RuntimeError(f"{type(error).__name__}: {redact(text)}") from None
    for row in values.get("history", []):
        report(row)
    return values


def _run_locked(
    spec: dict[str, Any], report: Report, store: Store, train: Source | None, valid: Source | None, team: Team
) -> dict[str, Any]:
    torch.set_num_threads(int(spec["threads"]))
    work = store.open_work(spec["stage"], spec["key"])
    settings = Settings.model_validate(spec["settings"])
    began_at, wall, cpu = time.time(), time.perf_counter(), time.process_time()
    if team.is_first:
        forget_stall(work)
    with StallWatch(settings.cluster.stall_limit_s if team.is_first else None, work) as watch:

        def report_alive(row: dict[str, Any]) -> None:
            watch.beat()
            store.save_state(spec["stage"], spec["key"])
            report(stamp_row(row, began_at))

        runtime = Runtime(spec["device"], spec["precision"], report_alive, work / "state.pt", team)
        pretrained = spec.get("pretrained") if spec["stage"] in ("reference", "trial", "refit") else None
        if pretrained:
            store.need(Path(pretrained))
        if spec["stage"] == "reference":
            values = _reference(settings, work, spec["data_dir"], pretrained)
        else:
            prepared = open_prepared(spec["prepared"])
            for folder in (*filter(None, [spec.get("reference")]), *spec["inputs"].values()):
                store.need(Path(folder))
            fold = Fold(**spec["args"]["fold"]) if "fold" in spec["args"] else None
            context = Context(
                prepared,
                load_data(prepared, train, valid, fold),
                settings,
                read_reference(Path(spec["reference"]), spec["reference_facts"]) if "reference" in spec else None,
                runtime,
                work,
                {name: Path(folder) for name, folder in spec["inputs"].items()},
                Path(pretrained) if pretrained else None,
            )
            values = STAGES[spec["stage"]](context, spec["args"])
            if fold is not None and spec["stage"] in ARM_STAGES and team.is_first and "skipped" not in values:
                _predict_held_out(context)
    # A stage that trains counts its epochs itself, those before an interruption too.
    values = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu} | values
    gpus = spec.get("gpus", 0.0) * team.size
    values["gpu_s"] = values["wall_s"] * gpus if spec["device"] == "cuda" else 0.0
    values |= {"began_at": began_at, "ended_at": time.time()}
    if not team.is_first:
        return values
    return store.commit(spec["stage"], spec["key"], values).values


def _predict_held_out(context: Context) -> None:
    """Keep the predictions (2, n, n_outputs) of the stored model for the held-out rows: of the given strand, and of both."""
    runtime, task, valid = replace(context.runtime, team=ALONE), context.prepared.task, context.data.valid
    model = load_model(context.work).to(runtime.device)
    size = context.settings.evaluate.batch_size
    strands = [predict_source(model, valid, task, runtime, size, rc_average=both)[0] for both in (False, True)]
    np.save(context.work / HELD_OUT, np.stack(strands).astype(np.float32))


def _summary(training: TrainResult, inherited_epochs: int = 0) -> dict[str, Any]:
    own = training.history[inherited_epochs:]
    return {
        "score": training.best_score,
        "best_epoch": training.best_epoch,
        "history": training.history,
        "epochs": len(own),
        "cpu_s": sum(row["cpu_s"] for row in own),
        "wall_s": sum(row["wall_s"] for row in own),
    }


def _save_net(context: Context, config: EmbedderConfig, training: TrainResult) -> None:
    if not context.runtime.team.is_first:
        return
    net = EmbedderNet(config)
    net.load_state_dict(training.best_state)
    save_model(net, context.work)


def _embedder_state(folder: Path) -> tuple[EmbedderConfig, dict[str, torch.Tensor]]:
    net = load_model(folder)
    assert isinstance(net, EmbedderNet)
    return net.config, net.state_dict()


def _config(context: Context, args: dict[str, Any]) -> EmbedderConfig:
    architecture = [(int(k), int(d)) for k, d in args["architecture"]]
    return make_embedder_config(context.settings, context.data, context.reference, args["backbone"], architecture)


def _reference(settings: Settings, work: Path, data_dir: str | None, pretrained: str | None) -> dict[str, Any]:
    align = settings.align
    name, init = pretrained or settings.model.language_model, "pretrained" if pretrained else settings.reference_init
    transformer = load_transformer(name, init, settings.seed)
    corpus, described = find_corpus(align.source, align.source_path, Path(data_dir) if data_dir else None)
    facts = write_reference(work, transformer, name, corpus, align.per_class, settings.seed)
    return facts | {"described": described}


def _pretrain(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    model, training = pretrain(context.data, context.settings, context.runtime, args["seed"])
    model.save(context.work)
    return _summary(training)


def _select(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    training = train_backbone(
        context.data,
        context.settings,
        context.reference,
        context.runtime,
        backbone=args["backbone"],
        architecture=[(int(k), int(d)) for k, d in args["architecture"]],
        seed=args["seed"],
    )
    return _summary(training) | {"backbone": args["backbone"]}


def _search(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    if not default_architecture(args["backbone"]):  # ORCA has nothing to search
        return {"score": None, "history": [], "architecture": []}
    found = search_architecture(
        context.data, context.settings, context.reference, context.runtime, backbone=args["backbone"], seed=args["seed"]
    )
    return _summary(found.training) | {"architecture": found.architecture, "forms": found.forms}


def _warmup(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    last = context.settings.align.task_only_epochs
    training = train_aligned(
        context.data,
        context.settings,
        context.reference,
        context.runtime,
        config=_config(context, args),
        alpha=0.0,
        seed=args["seed"],
        last_epoch=last,
    )
    if context.runtime.team.is_first:
        (context.work / "state.pt").replace(context.work / "warm.pt")
    return _summary(training)


def _align(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    state, team = context.runtime.state_path, context.runtime.team
    warm = context.inputs.get("warmup")
    if team.is_first and state is not None and warm is not None and not state.exists():
        with replacing(state) as temporary:
            shutil.copyfile(warm / "warm.pt", temporary)
    team.wait()
    config = _config(context, args)
    if not context.settings.align.enabled:
        save_model(build_net(config, context.data, context.reference, args["seed"]), context.work)
        return {"score": None, "alpha": args["alpha"], "history": []}
    training = train_aligned(
        context.data,
        context.settings,
        context.reference,
        context.runtime,
        config=config,
        alpha=args["alpha"],
        seed=args["seed"],
    )
    _save_net(context, config, training)
    inherited = context.settings.align.task_only_epochs if warm is not None else 0
    return _summary(training, inherited) | {"alpha": args["alpha"]}


def _embedder_only(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    config = _config(context, args)
    training = train_embedder_only(
        context.data, context.settings, context.reference, context.runtime, config=config, seed=args["seed"]
    )
    _save_net(context, config, training)
    return _summary(training)


def _finetune(context: Context, args: dict[str, Any]) -> tuple[TrainResult, EmbedderConfig, dict[str, torch.Tensor]]:
    trial = FinetuneTrial(**args["trial"])
    config, state = _embedder_state(context.inputs[f"align:{trial.alpha}"])
    training = finetune(
        context.data,
        context.settings,
        context.reference,
        context.runtime,
        config=config,
        embedder_state=state,
        trial=trial,
        seed=args["seed"],
        pretrained=context.pretrained,
    )
    return training, config, state


def _trial(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    return _summary(_finetune(context, args)[0])


def _refit(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    training, config, state = _finetune(context, args)
    if not context.runtime.team.is_first:
        return _summary(training)
    model = build_model(
        context.data,
        context.settings,
        context.reference,
        config=config,
        embedder_state=state,
        seed=args["seed"],
        pretrained=context.pretrained,
    )
    model.load_state_dict(training.best_state)
    save_model(model, context.work)
    return _summary(training)


def _baseline(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    try:
        model, values = _fit_baseline(context, args["name"], args["seed"], args.get("strength"))
    except NotApplicable as reason:
        return {"skipped": str(reason)}
    save_model(model, context.work)
    return values | {"name": args["name"]}


def _fit_baseline(context: Context, name: str, seed: int, strength: float | None) -> tuple[Model, dict[str, Any]]:
    data, settings, runtime = context.data, context.settings, context.runtime
    if name == "genomic_lm":
        tuned = tune_genomic_lm(data, settings, runtime, seed)
        return tuned.model, _summary(tuned.training) | {"chosen": {"lr": tuned.lr, **_chosen_epochs(tuned.training)}}
    net: Model
    if name == "cnn":
        training, net = train_cnn(data, settings, runtime, seed), build_cnn(data, settings, seed)
    elif name == "deepstarr":
        training, net = train_deepstarr(data, settings, runtime, seed), build_deepstarr(data, seed)
    else:
        fitted = fit_baseline(name, data, settings, runtime, seed, strength)
        return fitted.model, {"score": fitted.score, "chosen": fitted.chosen}
    net.load_state_dict(training.best_state)
    return net, _summary(training) | {"chosen": _chosen_epochs(training)}


def _chosen_epochs(training: TrainResult) -> dict[str, int]:
    return {"epochs": training.best_epoch + 1}


def _evaluate(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    contenders = [Contender(**named, folder=context.inputs[name]) for name, named in args["contenders"].items()]
    fold = Fold(**args["folds"]) if args["folds"] else None
    return evaluate(context.prepared, context.settings, context.runtime, contenders, fold, context.work)


STAGES: dict[str, Callable[[Context, dict[str, Any]], dict[str, Any]]] = {
    "pretrain": _pretrain,
    "select": _select,
    "search": _search,
    "warmup": _warmup,
    "align": _align,
    "embedder_only": _embedder_only,
    "trial": _trial,
    "refit": _refit,
    "baseline": _baseline,
    "evaluate": _evaluate,
}
