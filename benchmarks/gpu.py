"""Steps of all stages on one GPU, beside its measured matrix rate and memory bandwidth; needs torch, transformers and pyarrow only.

`python -m benchmarks.gpu --out found.json` on a CUDA machine; neither Ray nor a network is needed, weights are
random. Elsewhere, and with `--smoke`, tiny models run the same code on the CPU: that shows that it works, no speed.
Sizes: RoBERTa-base (768 x 12) and MiniLM (384 x 6), sequences of 500 bp. Search is set beside the longer of two bounds:
its operations at the matrix rate, and its bytes (inputs and outputs of every operation, unfused) at the bandwidth.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from l2g_ray.atomic import write_json
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.models.form_choice import choose_forms
from l2g_ray.models.l2g import L2GConfig, L2GModel
from l2g_ray.models.language_model import LanguageModel
from l2g_ray.models.mixed_conv import FORMS, MixedConv1d, OperationSet, replace_convolutions
from l2g_ray.sequence import make_mask, one_hot
from l2g_ray.stages.distances import mmd, sample_rows

Step = Callable[[], Any]
Row = dict[str, Any]


@dataclass
class Bench:
    """Where and at which size is measured, and what was found."""

    device: str
    smoke: bool
    rounds: int
    matrix_rate: float = 0.0
    bandwidth: float = 0.0
    rows: list[Row] = field(default_factory=list)
    out: Path | None = None
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def length_bp(self) -> int:
        """Length of every sequence."""
        return 64 if self.smoke else 500

    def size(self, full: int) -> int:
        """Return a batch size, small in a smoke run."""
        return 4 if self.smoke else full

    def add(self, row: Row) -> None:
        """Keep a row and print it; whoever ends this process later, the file has it."""
        self.rows.append(row)
        values = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k != "what")
        print(f"{row['what']}: {', '.join(values)}", flush=True)
        if self.out:
            write_json(self.out, self.found)

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def time(self, step: Step) -> float:
        """Median seconds of a step after three to warm up."""
        for _ in range(1 if self.smoke else 3):
            step()
        seconds = []
        for _ in range(self.rounds):
            self.synchronise()
            begun = time.perf_counter()
            step()
            self.synchronise()
            seconds.append(time.perf_counter() - begun)
        return statistics.median(seconds)

    def record(
        self, what: str, step: Step, sequences: int, target: float | None = None, flops: float = 0.0, **more: Any
    ) -> float:
        """Add a row: ms, sequences a second, peak memory, and the share of the matrix rate where operations are given."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = self.time(step)
        row: Row = {"what": what, "ms": 1_000 * seconds, "sequences/s": sequences / seconds}
        if flops:
            row["of the matrix rate %"] = 100 * flops / seconds / self.matrix_rate
        if target is not None:
            row["target %"] = target
        if self.device == "cuda":
            row["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
        bounds = more.pop("bounds", {})
        if bounds:
            bound = max(bounds, key=lambda kind: bounds[kind])
            row |= {"bound": bound, "of the bound %": 100 * bounds[bound] / seconds}
        self.add(row | more)
        return seconds


def measure(smoke: bool, out: Path | None = None, limit_s: float = math.inf) -> dict[str, Any]:
    """Return all measurements, those of most value first; on a machine without CUDA a smoke run.

    `out` is written after every row. After `limit_s` seconds, or where a part takes longer than is left, a row says so.
    """
    begun = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() and not smoke else "cpu"
    bench = Bench(device, device == "cpu", 2 if device == "cpu" else 20, out=out)
    torch.manual_seed(0)
    _measure_bounds(bench)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU smoke run: not measured on a GPU"
    bounds = {"matrix TFLOP/s, bf16": bench.matrix_rate / 1e12, "memory GB/s": bench.bandwidth / 1e9}
    bench.found = {"device": name, "torch": torch.__version__, **bounds, "rows": bench.rows}
    sizes = ("roberta-base", "minilm")
    stages: list[tuple[str, Callable[[Bench], None], float]] = [("search", _search, 5)]
    for kind, part, least_s in (
        ("fine-tuning", _finetune, 5), ("training loop", _train_in_loop, 10), ("align", _align, 5),
        ("prediction", _predict, 5), ("trials side by side", _run_several, 40), ("torch.compile", _compile, 60),
    ):  # fmt: skip
        stages += [(f"{size}: {kind}", functools.partial(part, name=size), least_s) for size in sizes]
        if kind == "prediction":
            stages += [("forms", _compare_forms, 15), ("transfer", _transfer, 2)]
    for what, part, least_s in stages:
        left_s = limit_s - (time.perf_counter() - begun)
        if left_s < least_s * (not bench.smoke):
            bench.add({"what": what, "skipped": f"{max(0.0, left_s):.0f} s left of {limit_s:.0f} s"})
            continue
        try:
            part(bench)
        except Exception as error:  # one size that does not fit leaves the others measured
            bench.add({"what": what, "failed": f"{type(error).__name__}: {error}"[:300]})
        if device == "cuda":
            torch.cuda.empty_cache()
    return bench.found


def _measure_bounds(bench: Bench) -> None:
    n = 128 if bench.smoke else 8192
    a, b = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    bench.matrix_rate = 2 * n**3 / bench.time(lambda: a @ b)
    source = torch.empty(2**20 if bench.smoke else 2**28, device=bench.device)
    target = torch.empty_like(source)
    bench.bandwidth = 2 * 4 * source.numel() / bench.time(lambda: target.copy_(source))


def _autocast(bench: Bench) -> Any:
    return torch.autocast(bench.device, torch.bfloat16, cache_enabled=False)


def _draw_codes(bench: Bench, rows: int) -> tuple[Tensor, Tensor]:
    codes = torch.randint(0, 4, (rows, bench.length_bp), dtype=torch.uint8)
    return (codes.pin_memory() if bench.device == "cuda" else codes), torch.full((rows,), bench.length_bp)


def _encode(bench: Bench, codes: Tensor) -> Tensor:
    """uint8 codes of the host to one-hot (batch, 4, length) of the device: a byte a base travels, not sixteen."""
    codes = codes.to(bench.device, non_blocking=True)
    lengths = torch.full((len(codes),), bench.length_bp, device=bench.device)
    return one_hot(codes, make_mask(lengths, bench.length_bp))


def _transfer(bench: Bench) -> None:
    rows = bench.size(1024)
    codes, _ = _draw_codes(bench, rows)
    floats = torch.eye(4)[codes.long()].transpose(1, 2).contiguous()
    floats = floats.pin_memory() if bench.device == "cuda" else floats
    bench.record("transfer: uint8, one-hot on the device", lambda: _encode(bench, codes), rows)
    bench.record("transfer: float one-hot", lambda: floats.to(bench.device, non_blocking=True), rows)


def _make_net(bench: Bench, width: int, kernel_size: int = 7) -> EmbedderNet:
    channels = (8, 16, 24) if bench.smoke else (128, 256, width)
    config = EmbedderConfig(
        "resnet", channels, bench.length_bp, width, 512, 2, target_tokens=128, architecture=((kernel_size, 1),) * 9
    )
    return EmbedderNet(config).to(bench.device)


class _Bytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if "view" not in str(function) and function.is_view is False:
            leaves, _ = torch.utils._pytree.tree_flatten((args, kwargs, result))
            self.total += sum(x.numel() * x.element_size() for x in leaves if isinstance(x, Tensor))
        return result


def _count(step: Step) -> tuple[float, float]:
    """Operations and bytes of a step."""
    with FlopCounterMode(display=False) as flops:
        step()
    with _Bytes() as counted:
        step()
    return float(flops.get_total_flops()), float(counted.total)


def _search(bench: Bench) -> None:
    rows, operations = bench.size(128), OperationSet((3, 5, 7, 9, 11), (1, 3, 5, 7))
    codes, _ = _draw_codes(bench, rows)
    seconds = {}
    for name in ("search step", "plain step, kernel 11"):
        net = _make_net(bench, 32 if bench.smoke else 768, 11)
        forms = ""
        if name == "search step":
            replace_convolutions(net.embedder.backbone, operations)
            row = _encode(bench, codes[:1])
            chosen = choose_forms(net, lambda net=net, row=row: net.embedder(row), rows, "bf16")
            forms = " (" + ", ".join(sorted(set(chosen.values()))) + ")"
        step = _make_train_step(bench, net, lambda x, net=net: net.predict(net.embedder(x)), codes)
        flops, moved = _count(step)
        bounds = {"compute": flops / bench.matrix_rate, "memory": moved / bench.bandwidth}
        seconds[name] = bench.record(name + forms, step, rows, 70, flops, bounds=bounds)
    bench.add({"what": "search / plain", "ratio": seconds["search step"] / seconds["plain step, kernel 11"]})


def _make_train_step(bench: Bench, model: nn.Module, forward: Callable[[Tensor], Tensor], codes: Tensor) -> Step:
    labels = torch.randint(0, 2, (len(codes),), device=bench.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True, capturable=bench.device == "cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(bench):
            loss = nn.functional.cross_entropy(forward(_encode(bench, codes)).float(), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def _make_model(bench: Bench, name: str) -> L2GModel:
    """Embedder and encoder with random weights; SDPA is what `transformers` takes."""
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    base = name == "roberta-base"
    width, layers, inner = (768, 12, 3072) if base else (384, 6, 1536)
    if bench.smoke:
        width, layers, inner = 32, 2, 64
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": inner}
    sizes |= {"num_attention_heads": 2 if bench.smoke else 12, "max_position_embeddings": 514, "vocab_size": 100}
    config, kind = (RobertaConfig, RobertaModel) if base else (BertConfig, BertModel)
    language_model = LanguageModel(kind(config(**sizes), add_pooling_layer=False))
    net = _make_net(bench, width)
    return L2GModel(L2GConfig(net.config), net, language_model.to(bench.device)).to(bench.device).train()


def _align(bench: Bench, name: str) -> None:
    net = _make_net(bench, _make_model(bench, name).config.embedder.width)
    rows = bench.size(320)
    codes, _ = _draw_codes(bench, rows)
    features = torch.randn(3150, net.config.width, device=bench.device)
    labels = torch.randint(0, 2, (rows,), device=bench.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(bench):
            embedding = net.embedder(_encode(bench, codes))
            loss = nn.functional.cross_entropy(net.predict(embedding), labels)
            loss = loss + mmd(sample_rows(features, rows, generator), embedding.pooled_tokens())
        loss.backward()
        optimizer.step()

    bench.record(f"{name}: align step", step, rows, flops=_count(step)[0])


def _finetune(bench: Bench, name: str) -> None:
    rows = bench.size(128)
    codes, _ = _draw_codes(bench, rows)
    model = _make_model(bench, name)
    step = _make_train_step(bench, model, model.forward_one_hot, codes)
    flops = _count(step)[0]
    bench.record(f"{name}: fine-tuning step, bf16, eager", step, rows, 45, flops)
    if bench.device == "cuda":
        bench.record(f"{name}: fine-tuning step, bf16, CUDA graph", _capture(step), rows, 45, flops)


def _compile(bench: Bench, name: str) -> None:
    """Minutes, and nothing where there is no C++ compiler; a smoke run only traces."""
    rows = bench.size(128)
    codes, _ = _draw_codes(bench, rows)
    model = _make_model(bench, name)
    flops = _count(_make_train_step(bench, model, model.forward_one_hot, codes))[0]
    compiled = torch.compile(model.forward_one_hot, backend="eager" if bench.smoke else "inductor")
    step = _make_train_step(bench, model, compiled, codes)
    begun = time.perf_counter()
    step()
    bench.synchronise()
    first_s = time.perf_counter() - begun
    bench.record(f"{name}: fine-tuning step, bf16, torch.compile", step, rows, 45, flops, **{"first step s": first_s})
    if bench.device == "cuda":
        bench.record(f"{name}: fine-tuning step, bf16, torch.compile, CUDA graph", _capture(step), rows, 45, flops)


def _train_in_loop(bench: Bench, name: str) -> None:
    """Time the product's own training of a fine-tuning trial from a table in memory: one epoch, after one to warm up. Beside the
    bare step, what batches, schedule and bookkeeping cost."""
    import numpy as np
    import pyarrow as pa

    from l2g_ray.data.batches import InMemorySource, iter_batches
    from l2g_ray.stages.context import make_losses
    from l2g_ray.stages.loop import LoopSettings, Runtime, train
    from l2g_ray.tasks.schema import Task

    rows, steps = bench.size(128), 2 if bench.smoke else 30
    letters = np.random.default_rng(0).choice(list("ACGT"), (rows * steps, bench.length_bp))
    labels = pa.array(np.arange(len(letters)) % 2, pa.int64())
    source = InMemorySource(pa.table({"sequence": ["".join(row) for row in letters], "label": labels}))
    task = Task.model_validate({"bench": "x", "name": "x", "kind": "binary", "labels": ("a", "b")})
    model = _make_model(bench, name)
    result = train(
        model,
        torch.optim.AdamW([{"params": list(model.parameters()), "lr": 1e-5, "initial_lr": 1e-5}], fused=True),
        lambda step: 1.0,
        LoopSettings(2, steps, 0),
        Runtime(bench.device, "bf16"),
        batches=lambda epoch: iter_batches(
            source.tables(),
            kind="binary",
            batch_size=rows,
            length_bp=bench.length_bp,
            seed=0,
            epoch=epoch,
            rc_augment=True,
        ),
        losses=make_losses(task, torch.ones(2, device=bench.device)),
        validate=lambda: {"score": 0.0},
    )
    seconds = result.history[-1]["train_s"] / steps
    found = {
        "what": f"{name}: fine-tuning step in the training loop",
        "ms": 1_000 * seconds,
        "sequences/s": rows / seconds,
    }
    bench.add(found)


def _compare_forms(bench: Bench) -> None:
    """Time a mixed convolution, forward and backward, in each of its forms: a wide layer at two lengths, and a depthwise one."""
    operations = OperationSet((3, 5, 7, 9, 11), (1, 3, 5, 7))
    rows, width = bench.size(64), 8 if bench.smoke else 256
    for length, groups in ((bench.length_bp // 4, 1), (bench.length_bp, 1), (bench.length_bp, width)):
        layer = MixedConv1d(width, width, operations, groups=groups).to(bench.device)
        x = torch.randn(rows, width, length, device=bench.device, requires_grad=True)
        for form in [one for one in FORMS if one != "naive" and not (one == "blocks" and groups > 1)]:
            layer.form = form

            def step(layer: MixedConv1d = layer, x: Tensor = x) -> None:
                with _autocast(bench):
                    loss = layer(x).float().sum()
                loss.backward()

            kind = "depthwise" if groups > 1 else "dense"
            bench.record(f"mixed convolution, {kind}, {width} wide, {length} bp: {form}", step, rows)


def _capture(step: Step) -> Step:
    """Return the step as one CUDA graph, warmed up on a separate stream as torch's CUDA documentation asks."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _predict(bench: Bench, name: str) -> None:
    rows = bench.size(1024)
    codes, _ = _draw_codes(bench, rows)
    model = _make_model(bench, name).eval()

    def step() -> None:
        with torch.inference_mode(), _autocast(bench):
            model.forward_one_hot(_encode(bench, codes)).float().softmax(1).cpu()

    bench.record(f"{name}: prediction", step, rows, flops=_count(step)[0])


def _run_several(bench: Bench, name: str) -> None:
    """Measure the steps a second of 1, 2 and 4 trials at once: threads with a stream each, and processes."""
    steps, rows = (1, 4) if bench.smoke else (20, 32)
    for n_trials in (1, 2) if bench.smoke else (1, 2, 4):
        codes, _ = _draw_codes(bench, rows)
        models = [_make_model(bench, name) for _ in range(n_trials)]
        trials = [_make_train_step(bench, model, model.forward_one_hot, codes) for model in models]
        barrier = threading.Barrier(n_trials + 1)
        threads = [threading.Thread(target=_work, args=(bench, trial, steps, barrier)) for trial in trials]
        bench.add(_together(f"{name}: {n_trials} trials, streams", threads, barrier, n_trials * steps * rows))
        del models, trials
        context = multiprocessing.get_context("spawn")
        gate = context.Barrier(n_trials + 1)
        parts = (bench.device, bench.smoke, name, steps, rows, gate)
        workers = [context.Process(target=_work_apart, args=parts) for _ in range(n_trials)]
        bench.add(_together(f"{name}: {n_trials} trials, processes", workers, gate, n_trials * steps * rows))


def _together(what: str, workers: list[Any], barrier: Any, sequences: int) -> Row:
    for worker in workers:
        worker.start()
    barrier.wait(600)  # all are warm
    begun = time.perf_counter()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - begun
    return {"what": what, "ms": 1_000 * seconds, "sequences/s": sequences / seconds}


def _work(bench: Bench, step: Step, steps: int, barrier: Any) -> None:
    with torch.cuda.stream(torch.cuda.Stream()) if bench.device == "cuda" else contextlib.nullcontext():
        step()
        bench.synchronise()
        barrier.wait(600)
        for _ in range(steps):
            step()
        bench.synchronise()


def _work_apart(device: str, smoke: bool, name: str, steps: int, rows: int, barrier: Any) -> None:
    bench = Bench(device, smoke, 1)
    model = _make_model(bench, name)
    codes, _ = _draw_codes(bench, rows)
    _work(bench, _make_train_step(bench, model, model.forward_one_hot, codes), steps, barrier)


def run(options: Any) -> list[Row]:
    """Return the rows for `python -m benchmarks gpu`, all with the same columns."""
    return list(_square(measure(smoke=bool(options.quick))))


def _square(found: dict[str, Any]) -> Iterator[Row]:
    columns = list(dict.fromkeys(name for row in found["rows"] for name in row))
    for row in found["rows"]:
        yield {name: row.get(name, "") for name in columns} | {"device": found["device"]}


def main() -> None:
    """Measure, print a line a row, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny models on the CPU: that the script works")
    parser.add_argument("--out", type=Path, help="JSON file, written after every row")
    parser.add_argument("--limit-s", type=float, default=165, help="seconds after which what is left is skipped")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found = measure(options.smoke, options.out, options.limit_s)
    print(json.dumps({name: value for name, value in found.items() if name != "rows"}))
    sys.exit(any("failed" in row for row in found["rows"]))


if __name__ == "__main__":
    main()
