"""Transformers: that of L2G with its layers and LoRA, and genomic language models with their own tokenizers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from l2g_ray.errors import UserError
from l2g_ray.extras import need
from l2g_ray.models.embedder import Predictor
from l2g_ray.models.layers import Composed, Dropout, drop, masked_mean
from l2g_ray.models.locate import locate
from l2g_ray.sequence import decode, send


def add_lora(encoder: nn.Module, rank: int, alpha: float, seed: int) -> list[nn.Parameter]:
    """Give every linear layer of `encoder` its A (rank, in) and B (out, rank), and return these.

    B is 0 and A drawn from `seed`, so outputs are those from before. All other weights of `encoder` are frozen.
    """
    need("lora", "finetune.train_layers=[lora]", "peft")
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


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Load without transformers' reports and progress bars."""
    # Reports about the unused pooler, and a progress bar over 100 tensors, are no news to anybody.
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def load_transformer(name: str, init: str = "pretrained", seed: int = 0, masked: bool = False) -> Any:
    """Return a `transformers` encoder in evaluation mode, float32; `masked`: with its head for masked modelling
    around it.

    `init` 'random' keeps the architecture and draws new weights from `seed` (the paper's weights ablation).
    Raises UserError where the model cannot be had or is no encoder that reads `inputs_embeds`.
    """
    folder = locate(name)
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    kind = AutoModelForMaskedLM if masked else AutoModel
    with quiet_loading():
        try:
            if init == "random":
                config = AutoConfig.from_pretrained(folder)
                with torch.random.fork_rng():
                    torch.manual_seed(seed)
                    model = kind.from_config(config)
            else:
                model = kind.from_pretrained(folder, dtype=torch.float32)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"language model '{name}': cannot be loaded ({reason}); give another folder or hub id"
            ) from None
    encoder = model.base_model
    if not (hasattr(encoder, "embeddings") and hasattr(getattr(encoder, "encoder", None), "layer")):
        raise UserError(
            f"language model '{name}': a {type(model).__name__} is not supported; use an encoder of the BERT, RoBERTa or MPNet family"
        )
    return model.eval()


def load_tokenizer(name: str, remedy: str) -> Any:
    """Return the fast tokenizer of a language model. Raises UserError, which ends with `remedy`, where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(locate(name), use_fast=True, add_prefix_space=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"language model '{name}': it has no tokenizer ({str(error).splitlines()[0]}); {remedy}"
        ) from None


class PassThrough(Composed):
    """Stands where the embedding layer was: tokens reach the encoder as they are, without positions."""

    def forward(self, inputs_embeds: torch.Tensor, **ignored: Any) -> torch.Tensor:
        """Return inputs_embeds (batch, N, D)."""
        return inputs_embeds


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as `transformers` calls it: SDPA, but for dropout on a CPU, where SDPA's own is several times slower.

    query, key, value (batch, heads, N, width); the result is (batch, N, heads, width).
    """
    if not dropout or query.device.type != "cpu" or torch.compiler.is_compiling():
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)
    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.transpose(2, 3)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = drop(scores.softmax(-1), dropout).to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), None


def speed_up(transformer: Any) -> None:
    """Exchange dropout and attention for the forms that are fast on a CPU; weights and their names stay."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if transformer.config._attn_implementation == "sdpa":
        AttentionInterface.register("l2g", attend)
        AttentionMaskInterface.register("l2g", sdpa_mask)
        transformer.set_attn_implementation("l2g")
    for module in list(transformer.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))


class LanguageModel(Composed):
    """Encoder layers of a text model that read an embedder's tokens.

    `positions` 'none' hands the tokens straight to the encoder, so that order is known through the CNN alone (official
    code); 'lm' sends them through the model's own embedding layer as `inputs_embeds`, which adds its position and type
    embeddings and normalises again. `layers` is the number of first layers to keep.
    """

    def __init__(self, transformer: Any, positions: str = "none", layers: int | None = None) -> None:
        super().__init__()
        embeddings = transformer.embeddings
        offset = getattr(embeddings, "padding_idx", -1) + 1 if hasattr(embeddings, "padding_idx") else 0
        self.max_tokens = int(transformer.config.max_position_embeddings) - offset
        self.width = int(transformer.config.hidden_size)
        self.norm_eps = float(embeddings.LayerNorm.eps)
        self.positions = positions
        stack = transformer.encoder.layer
        if layers is not None and layers > len(stack):
            raise UserError(
                f"model.language_model_layers is {layers}, but the language model has {len(stack)} layers; lower it"
            )
        self.n_layers = layers or len(stack)
        transformer.encoder.layer = nn.ModuleList(list(stack)[: self.n_layers])
        transformer.config.num_hidden_layers = self.n_layers
        transformer.pooler = None
        if positions == "none":
            transformer.embeddings = PassThrough()
        else:
            embeddings.word_embeddings = None  # never read with inputs_embeds, and the largest matrix of all
        speed_up(transformer)
        self.transformer = transformer

    def set_dropout(self, p: float) -> None:
        """Dropout probability of every layer (hidden and attention)."""
        for module in self.transformer.modules():
            if isinstance(module, nn.Dropout):
                module.p = p
            elif isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = p

    def set_trainable(self, which: str) -> None:
        """Let 'all' weights train, the 'top_half' of the layers (and all norms), only 'norms', or 'none'."""
        first = self.n_layers - (self.n_layers + 1) // 2
        top = {id(p) for layer in self.transformer.encoder.layer[first:] for p in layer.parameters()}
        norms = {id(p) for m in self.transformer.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
        wanted = {"all": None, "top_half": top | norms, "norms": norms, "none": set()}[which]
        for parameter in self.transformer.parameters():
            parameter.requires_grad_(wanted is None or id(parameter) in wanted)

    def add_lora(self, rank: int, alpha: float, seed: int) -> None:
        """Freeze all weights and let low-rank additions to the layers' linear maps train; outputs stay as they are."""
        added = add_lora(self.transformer.encoder, rank, alpha, seed)
        self.transformer.requires_grad_(False)
        for parameter in added:
            parameter.requires_grad_(True)

    def merge_lora(self) -> None:
        """Make the low-rank additions part of the weights, under whose names they are then stored."""
        merge_lora(self.transformer.encoder)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (batch, N, D) and mask (batch, N), 1 = real, to the last hidden state (batch, N, D)."""
        attention = None if mask is None else self._make_attention_mask(tokens, mask)
        return self.transformer(inputs_embeds=tokens, attention_mask=attention).last_hidden_state

    def _make_attention_mask(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return what the layers take, (batch, 1, N, N). `transformers` leaves such a mask as it is; of (batch, N) it
        would ask whether anything is masked, for which the host waits for the device.
        """
        real = mask.bool()
        # A row without tokens attends to its padding, for a softmax over nothing is no number.
        real = real | ~real.any(1, keepdim=True)
        wide = real[:, None, None, :].expand(-1, -1, mask.shape[1], -1)
        if self.transformer.config._attn_implementation != "eager":
            return wide
        lowest = torch.finfo(tokens.dtype).min  # MPNet adds its mask
        return torch.zeros(wide.shape, dtype=tokens.dtype, device=tokens.device).masked_fill(~wide, lowest)


TOKENIZER_FOLDER = "tokenizer"


class GenomicLM(nn.Module):
    """Tokenizer, encoder, masked mean over tokens, linear.

    `words_bp` 0: the tokenizer reads the sequence as it is; k: overlapping k-mers with blanks between them (DNABERT).
    `max_tokens`: longer inputs are cut at the right end.
    """

    reads_text = True  # so that training gives it letters of the host

    def __init__(self, transformer: Any, tokenizer: Any, n_outputs: int, words_bp: int = 0) -> None:
        super().__init__()
        self.transformer, self.tokenizer, self.words_bp = transformer, tokenizer, words_bp
        limits = [getattr(transformer.config, "max_position_embeddings", None), tokenizer.model_max_length]
        offset = 2 if getattr(transformer.config, "model_type", "") in ("roberta", "esm") else 0
        self.max_tokens = min([limit - offset for limit in limits if limit and limit < 1_000_000] or [512])
        self.n_outputs = n_outputs
        self.predictor = Predictor(int(transformer.config.hidden_size), n_outputs)

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Map codes (batch, length) uint8 and lengths (batch,), best on the host, to outputs (batch, n_outputs)."""
        sequences = decode(codes.cpu().numpy(), lengths_bp.cpu().numpy())
        if k := self.words_bp:
            sequences = [" ".join(s[i : i + k] for i in range(max(1, len(s) - k + 1))) for s in sequences]
        coded = self.tokenizer(
            sequences, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        device = self.predictor.linear.weight.device
        # Without padding no mask, of which `transformers` would ask whether it masks anything.
        mask = None if bool(coded["attention_mask"].all()) else send(coded["attention_mask"], device)
        hidden = self.transformer(input_ids=send(coded["input_ids"], device), attention_mask=mask).last_hidden_state
        return self.predictor(masked_mean(hidden, None if mask is None else mask[..., None], 1))


def load_genomic_lm(name: str, n_outputs: int, words_bp: int = 0) -> GenomicLM:
    """Return a pre-trained model and its tokenizer, with a new predictor.

    Raises UserError where either cannot be had, or the model wants to bring its own code.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = locate(name)
    with quiet_loading():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            transformer = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"genomic model '{name}': cannot be loaded with its tokenizer ({reason}); give a model of a family that "
                "transformers itself has"
            ) from None
    return GenomicLM(transformer, tokenizer, n_outputs, words_bp)


def describe_genomic_lm(model: GenomicLM) -> dict[str, Any]:
    """Return what `build_genomic_lm` needs beside the tokenizer's files and the weights."""
    transformer = model.transformer
    config = transformer.config.to_diff_dict() | {"model_type": transformer.config.model_type}
    return {
        "form": "genomic_lm",
        "n_outputs": model.n_outputs,
        "words_bp": model.words_bp,
        "transformer": json.loads(json.dumps(config, default=str)),
    }


def build_genomic_lm(config: dict[str, Any], folder: Path) -> GenomicLM:
    """Return the model of a stored config, with new weights and the tokenizer of the model's folder."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    described = dict(config["transformer"])
    transformer = AutoModel.from_config(AutoConfig.for_model(described.pop("model_type"), **described))
    tokenizer = AutoTokenizer.from_pretrained(str(folder / TOKENIZER_FOLDER), trust_remote_code=False)
    return GenomicLM(transformer, tokenizer, config["n_outputs"], config["words_bp"])
