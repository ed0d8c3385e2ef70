"""LoRA on an encoder's linear layers, by the library peft (Hu et al., 2021): W + (alpha / rank) B A, of which A and B train.

The encoder is changed in place, so that it takes the same calls as before; merged, it has its own modules and the names of its
weights back, and nothing of what is stored tells of LoRA.
"""

from __future__ import annotations

import torch
from torch import nn


def add_lora(encoder: nn.Module, rank: int, alpha: float, seed: int) -> list[nn.Parameter]:
    """Give every linear layer of `encoder` its A (rank, in) and B (out, rank), and return these.

    B is 0 and A drawn from `seed`, so outputs are those from before. All other weights of `encoder` are frozen.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=linear)  # type: ignore[arg-type]  # a float is fine
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, encoder)
    return [p for name, p in encoder.named_parameters() if ".lora_" in name]


def merge_lora(encoder: nn.Module) -> None:
    """Add what LoRA has learned to the weights, and put the linear layers back in their places."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(encoder.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            encoder.set_submodule(name, module.get_base_layer())
