"""The whole model: embedder, language model, linear predictor (spec 6.1), and how it is stored."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from l2g_ray.errors import UserError
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet, Predictor
from l2g_ray.models.language_model import LanguageModel
from l2g_ray.models.layers import masked_mean
from l2g_ray.models.stored import MODEL_SCHEMA, load_config


@dataclass(frozen=True)
class L2GConfig:
    """`combine` 'skip' keeps Predictor 1 in the sum and starts the language model's head at zero, so that joining the
    two never undoes stage 2; 'lm_only' is the paper's form."""

    embedder: EmbedderConfig
    combine: str = "skip"
    positions: str = "none"
    language_model: str = ""
    language_model_layers: int | None = None


class L2GModel(nn.Module):
    """Embedder + language model + masked mean + linear."""

    def __init__(self, config: L2GConfig, net: EmbedderNet, language_model: LanguageModel) -> None:
        super().__init__()
        self.config = config
        self.net = net
        self.language_model = language_model
        skip = config.combine == "skip"
        self.head = Predictor(config.embedder.width, config.embedder.n_outputs, zero=skip)
        # With skip, Predictor 1 already brings the labels' offset.
        offset = torch.zeros_like(net.predictor.offset) if skip else net.predictor.offset
        self.head.set_label_scale(offset, net.predictor.scale)
        if not skip:
            net.predictor.requires_grad_(False)

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Codes (batch, length) uint8 and lengths (batch,) to outputs (batch, n_outputs)."""
        return self.forward_one_hot(*self.net.encode(codes, lengths_bp))

    def forward_one_hot(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """One-hot (batch, channels, length), mask (batch, 1, length) or None, to outputs (batch, n_outputs)."""
        embedding = self.net.embedder(x, mask)
        hidden = self.language_model(embedding.tokens, embedding.token_mask)
        token_mask = None if embedding.token_mask is None else embedding.token_mask[..., None]
        outputs = self.head(masked_mean(hidden, token_mask, 1))
        return outputs + self.net.predict(embedding) if self.config.combine == "skip" else outputs


def save_model(model: L2GModel | EmbedderNet, folder: Path, extra: dict[str, Any] | None = None) -> None:
    """Write `model.safetensors` and `config.json` into an existing folder; no pickle, so a model is safe to load."""
    if isinstance(model, L2GModel):
        transformer = model.language_model.transformer
        lm = transformer.config.to_diff_dict() | {"model_type": transformer.config.model_type}
        config: dict[str, Any] = {
            "form": "l2g",
            "embedder": model.config.embedder.to_dict(),
            "combine": model.config.combine,
            "positions": model.config.positions,
            "language_model": model.config.language_model,
            "language_model_layers": model.language_model.n_layers,
            "transformer": json.loads(json.dumps(lm, default=str)),
        }
    else:
        config = {"form": "embedder_only", "embedder": model.config.to_dict()}
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"schema": MODEL_SCHEMA, **config, **(extra or {})}, indent=1))


def load_model(folder: Path) -> L2GModel | EmbedderNet:
    """The model that `save_model` wrote, in evaluation mode, without the original language model at hand.

    Raises UserError for a folder that holds no model, or one of another schema.
    """
    config = load_config(folder)
    try:
        state = load_file(str(folder / "model.safetensors"))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / 'model.safetensors'}: not readable ({error}); train the model again") from None
    net = EmbedderNet(EmbedderConfig.from_dict(config["embedder"]))
    model: L2GModel | EmbedderNet = net
    if config["form"] == "l2g":
        from transformers import AutoConfig, AutoModel

        lm_config = dict(config["transformer"])
        transformer = AutoModel.from_config(AutoConfig.for_model(lm_config.pop("model_type"), **lm_config))
        language_model = LanguageModel(transformer, config["positions"])
        model = L2GModel(
            L2GConfig(
                net.config,
                config["combine"],
                config["positions"],
                config["language_model"],
                config["language_model_layers"],
            ),
            net,
            language_model,
        )
    model.load_state_dict(state)
    return model.eval()
