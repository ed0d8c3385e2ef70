"""The whole model: embedder, language model, linear predictor (paper, "Fine-tuning"), and how it is stored."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from l2g_ray.arms import BASELINES
from l2g_ray.errors import UserError
from l2g_ray.models.baselines import Baseline, BaselineConfig, DeepSTARR, SmallCNN
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet, make_token_predictor
from l2g_ray.models.ensemble import AverageModel, Combination, Ensemble
from l2g_ray.models.language_model import (
    TOKENIZER_FOLDER,
    GenomicLM,
    LanguageModel,
    build_genomic_lm,
    describe_genomic_lm,
)
from l2g_ray.models.layers import Composed
from l2g_ray.models.locate import MODEL_SCHEMA, load_config


@dataclass(frozen=True)
class L2GConfig:
    """`combine` 'skip' keeps Predictor 1 in the sum and starts the language model's head at zero, so that joining the
    two never undoes stage 2; 'lm_only' is the paper's form."""

    embedder: EmbedderConfig
    combine: str = "skip"
    positions: str = "none"
    language_model: str = ""
    language_model_layers: int | None = None


class L2GModel(Composed):
    """Embedder + language model + a predictor that reads its last layer."""

    def __init__(self, config: L2GConfig, net: EmbedderNet, language_model: LanguageModel) -> None:
        super().__init__()
        self.config = config
        self.net = net
        self.language_model = language_model
        skip = config.combine == "skip"
        self.head = make_token_predictor(config.embedder, net.embedder.n_tokens, zero=skip)
        # With skip, Predictor 1 already brings the labels' offset.
        offset = torch.zeros_like(net.predictor.offset) if skip else net.predictor.offset
        self.head.set_label_scale(offset, net.predictor.scale)
        if not skip:
            net.predictor.requires_grad_(False)

    @property
    def in_channels(self) -> int:
        """Channels of the one-hot input."""
        return self.net.in_channels

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Map codes (batch, length) uint8 and lengths (batch,) to outputs (batch, n_outputs)."""
        return self.forward_one_hot(*self.net.encode(codes, lengths_bp))

    def forward_one_hot(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map one-hot (batch, channels, length), mask (batch, 1, length) or None, to outputs (batch, n_outputs)."""
        embedding = self.net.embedder(x, mask)
        hidden = self.language_model(embedding.tokens, embedding.token_mask)
        outputs = self.head.read(hidden, embedding.token_mask)
        return outputs + self.net.predict(embedding) if self.config.combine == "skip" else outputs


Model = L2GModel | EmbedderNet | Baseline | SmallCNN | DeepSTARR | GenomicLM | AverageModel | Ensemble


def save_model(model: Model, folder: Path, arm: str = "") -> None:
    """Write `model.safetensors` and `config.json` into an existing folder; no pickle, so a model is safe to load.

    An ensemble has a folder for each of its arms instead of weights. `arm`: the model's name in a run.
    """
    named = {"arm": arm} if arm else {}
    if isinstance(model, Ensemble):
        described = {"form": "ensemble", "both_strands": model.both_strands, "combination": model.combination.to_dict()}
        for name, member in model.arms.items():
            (folder / name).mkdir()
            save_model(member, folder / name, name)  # type: ignore[arg-type]
        (folder / "config.json").write_text(json.dumps({"schema": MODEL_SCHEMA, **named, **described}, indent=1))
        return
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"schema": MODEL_SCHEMA, **named, **_describe(model)}, indent=1))
    if isinstance(model, GenomicLM):
        model.tokenizer.save_pretrained(str(folder / TOKENIZER_FOLDER))


def _describe(model: nn.Module) -> dict[str, Any]:
    if isinstance(model, AverageModel):
        return {"form": "average", "kind": model.kind, "members": [_describe(member) for member in model.members]}
    if isinstance(model, Baseline):
        return {"form": "baseline", "baseline": model.config.to_dict()}
    if isinstance(model, GenomicLM):
        return describe_genomic_lm(model)
    if isinstance(model, EmbedderNet):
        return {"form": "embedder_only", "embedder": model.config.to_dict()}
    if not isinstance(model, L2GModel):
        form = next(name for name, kind in BASELINES.items() if kind.net and isinstance(model, resolve_name(kind.net)))
        return {"form": form, form: model.config.to_dict()}  # type: ignore[operator, union-attr]
    transformer = model.language_model.transformer
    lm = transformer.config.to_diff_dict() | {"model_type": transformer.config.model_type}
    return {
        "form": "l2g",
        "embedder": model.config.embedder.to_dict(),
        "combine": model.config.combine,
        "positions": model.config.positions,
        "language_model": model.config.language_model,
        "language_model_layers": model.language_model.n_layers,
        "transformer": json.loads(json.dumps(lm, default=str)),
    }


def load_model(folder: Path) -> Model:
    """Return the model that `save_model` wrote, in evaluation mode, without the original language model at hand.

    Raises UserError for a folder that holds no model, or one of another schema.
    """
    config = load_config(folder)
    if config["form"] == "ensemble":
        try:
            combination, both_strands = Combination(**config["combination"]), bool(config["both_strands"])
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{folder / 'config.json'}: describes no ensemble ({error}); copy the folder again"
            ) from None
        return Ensemble(
            combination, {name: load_model(folder / name) for name in combination.arms}, both_strands
        ).eval()
    try:
        state = load_file(str(folder / "model.safetensors"))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / 'model.safetensors'}: not readable ({error}); train the model again") from None
    try:
        model = build_genomic_lm(config, folder) if config["form"] == "genomic_lm" else _build(config, state)
        model.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: config.json and model.safetensors are not of one model ({reason}); copy the folder again"
        ) from None
    return model.eval()


def _build(config: dict[str, Any], state: dict[str, torch.Tensor]) -> Model:
    """Build the model of a config, with new weights; sizes that the config lacks come from the state."""
    if config["form"] == "average":
        return AverageModel(
            config["kind"],
            [_build(one, _part(state, f"members.{i}.")) for i, one in enumerate(config["members"])],
        )
    if config["form"] == "baseline":
        columns = state.get("features.columns")
        n_columns = None if columns is None else len(columns)
        return Baseline(BaselineConfig(**config["baseline"]), len(state.get("boosters", ())), n_columns)
    if (kind := BASELINES.get(config["form"])) and kind.net:
        net_type = resolve_name(kind.net)
        return net_type(net_type.config_type(**config[config["form"]]))  # type: ignore[no-any-return]
    net = EmbedderNet(EmbedderConfig.from_dict(config["embedder"]))
    if config["form"] == "embedder_only":
        return net
    from transformers import AutoConfig, AutoModel

    lm_config = dict(config["transformer"])
    transformer = AutoModel.from_config(AutoConfig.for_model(lm_config.pop("model_type"), **lm_config))
    return L2GModel(
        L2GConfig(
            net.config,
            config["combine"],
            config["positions"],
            config["language_model"],
            config["language_model_layers"],
        ),
        net,
        LanguageModel(transformer, config["positions"]),
    )


def _part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
