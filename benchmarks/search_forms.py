"""A step of the search with the form of each mixed convolution as measured, beside one form for all layers.

Widths, operations, pooling and optimiser of each preset, on a ResNet. `paper` has 128 rows a batch, for which a CPU takes
minutes: 16 rows are measured there, and no FFT.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import torch

from benchmarks.measure import Options, interleave
from benchmarks.search_step import make_step
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.presets import resolve
from l2g_ray.stages.loop import Runtime
from l2g_ray.stages.search import build_supernet, make_search_optimizer, set_forms

ONLY_BY_NAME = True
LANGUAGE_MODEL_WIDTH = 384
ROWS = {"paper": 16}


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a preset and length: medians in ms, and how much faster the choice is than the better single
    form.
    """
    torch.set_num_threads(options.threads)
    presets, lengths = (("smoke",), (200,)) if options.quick else (("smoke", "fast", "paper"), (200, 1000))
    before = os.environ.get("L2G_RAY_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["L2G_RAY_CACHE_DIR"] = folder  # measured again, on the machine as it is now
        try:
            return [_measure(preset, length_bp, options) for length_bp in lengths for preset in presets]
        finally:
            os.environ.pop("L2G_RAY_CACHE_DIR")
            if before is not None:
                os.environ["L2G_RAY_CACHE_DIR"] = before


def _measure(preset: str, length_bp: int, options: Options) -> dict[str, Any]:
    sides, used = {}, ""
    for form in ("auto", "by_dilation", "fft"):
        settings = resolve(preset, None, {"search.form": form, "search.enabled": True, "data.channels": 4})
        rows = ROWS.get(preset, settings.search.batch_size)
        channels = tuple(n or LANGUAGE_MODEL_WIDTH for n in settings.model.resnet_channels)
        net = EmbedderNet(
            EmbedderConfig(
                "resnet", channels, length_bp, LANGUAGE_MODEL_WIDTH, 512, 2,
                pool=settings.model.resnet_pool, architecture=((3, 1),) * 9, target_tokens=25,
            )
        )  # fmt: skip
        mixed = build_supernet(net, settings, seed=0)
        forms = set_forms(net, settings, length_bp, Runtime())
        if form == "auto":
            used = ", ".join(f"{list(forms.values()).count(one)} {one}" for one in sorted(set(forms.values())))
        optimizer = make_search_optimizer(net, mixed, settings.search)

        def scale(mixed: Any = mixed, stage: Any = settings.search) -> None:
            for layer in mixed.values():
                layer.scale_logit_gradient_(stage.gradient_scale, stage.field_penalty)

        sides[form] = make_step(net, optimizer, rows, length_bp, scale)
    if preset == "paper":
        del sides["fft"]
    found = interleave(sides, rounds=2 if options.quick else 10)
    medians = {form: 1_000 * one["median_s"] for form, one in found.items()}
    single = min(value for form, value in medians.items() if form != "auto")
    row = {"what": f"{preset}, {rows} x {length_bp} bp", **medians, "gain": single / medians["auto"], "forms": used}
    return row
