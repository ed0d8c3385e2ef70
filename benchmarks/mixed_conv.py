"""A mixed convolution in the form that is chosen here, beside the sum of its 20 convolutions: forward and backward.

The set is that of the Nucleotide Transformer tasks, 5 kernel sizes x 4 dilations; 16 rows. "Dense" layers mix channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import Options, compare, interleave
from l2g_ray.models.form_choice import choose_forms
from l2g_ray.models.mixed_conv import MixedConv1d, OperationSet

OPERATIONS = OperationSet((3, 5, 7, 9, 11), (1, 3, 5, 7))
LAYERS = {"4>128": (4, 128, 1), "32>32": (32, 32, 1), "128>128": (128, 128, 1), "128 depthwise": (128, 128, 128)}
ROWS = 16


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a layer and length."""
    torch.set_num_threads(options.threads)
    rows = []
    for name, (c_in, c_out, groups) in LAYERS.items():
        for length_bp in (300,) if options.quick else (300, 1_000):
            layer = MixedConv1d(c_in, c_out, OPERATIONS, groups=groups)
            x = torch.randn(ROWS, c_in, length_bp)
            chosen = choose_forms(layer, lambda layer=layer, x=x: layer(x[:1]), ROWS)[""]
            steps = {form: _step(layer, x, form) for form in (chosen, "naive")}
            found = interleave(steps, rounds=2 if options.quick else 3)
            ours, other = (1_000 * found[form]["median_s"] for form in (chosen, "naive"))
            target = 10 if groups > 1 else 2.5
            rows.append(compare(f"{name}, {length_bp} bp", ours, other, target) | {"form": chosen})
    return rows


def _step(layer: MixedConv1d, x: torch.Tensor, form: str) -> Callable[[], Any]:
    def step() -> Any:
        layer.form = form
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(layer(leaf).sum(), [leaf, *layer.parameters()])

    return step
