"""Fine-tune with and without enough memory, and print what came out; see `test_gpu`.

This is a separate process, since a limit on a GPU's memory lasts as long as the process. On a CPU, which has no such limit, the model itself
refuses more than half a batch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from every_stage import TRIAL, make_settings
from torch import nn
from toys import make_data, make_task, plant, tiny_config, tiny_reference

from l2g_ray.models.l2g import L2GModel
from l2g_ray.stages import finetune as stage
from l2g_ray.stages.context import build_net
from l2g_ray.stages.loop import Runtime


def main(device: str, language_model: str) -> None:
    rows = 4096 if device == "cuda" else 512
    # The backbone has no batch norm, whose statistics are those of a micro-batch; so both runs compute the same.
    settings = make_settings(Path(language_model), "sgd", model__target_tokens=64)
    data = make_data(make_task(), plant(2 * rows, 512), plant(40, 512, seed=9))
    config = tiny_config(data, settings, "orca")
    state = build_net(config, data, tiny_reference(), 5).state_dict()
    trial = TRIAL.__class__(**TRIAL.to_dict() | {"batch_size": rows})

    def train() -> dict[str, Any]:
        result = stage.finetune(
            data, settings, tiny_reference(), Runtime(device), config=config, embedder_state=state, trial=trial, seed=3
        )
        names = [name for name, value in result.best_state.items() if value.is_floating_point()]
        return {
            "losses": [row["train_loss"] for row in result.history],
            "micro_batches": result.history[-1].get("micro_batches", 1),
            "weights": [float(result.best_state[name].double().norm()) for name in names],
        }

    found: dict[str, Any] = {"enough": train()}
    if device == "cuda":
        found["bytes"] = torch.cuda.max_memory_allocated()
        found["limit"] = int(0.7 * found["bytes"])
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(found["limit"] / torch.cuda.mem_get_info()[1])
    else:
        build = stage.build_model

        def refusing(*args: Any, **kwargs: Any) -> nn.Module:
            model = build(*args, **kwargs)
            assert isinstance(model, L2GModel)
            model.language_model.register_forward_pre_hook(refuse)
            return model

        def refuse(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if len(args[0]) > rows // 2:
                raise torch.OutOfMemoryError

        stage.build_model = refusing  # type: ignore[assignment]
    found["little"] = train()
    if device == "cuda":
        found["little_bytes"] = torch.cuda.max_memory_reserved()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
