"""What is known of backbones without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Backbone:
    """What is known of an embedder's backbone without torch; its widths are `<name>_channels` of `ModelSettings`, if it has layers.

    `net`: `module:class` of the network. `costs`: `module:class` of its layers as formulas, for plans. `kernel_size`: of all
    `n_layers` layers before any search.
    """

    net: str
    costs: str
    kernel_size: int
    n_layers: int


BACKBONES = {
    "resnet": Backbone("l2g_ray.models.backbones:ResNet", "l2g_ray.plan.network:ResNetCosts", 3, 9),
    "unet": Backbone("l2g_ray.models.backbones:UNet", "l2g_ray.plan.network:UNetCosts", 3, 18),
    "deepsea": Backbone("l2g_ray.models.backbones:DeepSEA", "l2g_ray.plan.network:DeepSEACosts", 8, 3),
    "orca": Backbone("l2g_ray.models.backbones:Orca", "l2g_ray.plan.network:OrcaCosts", 1, 0),
}
