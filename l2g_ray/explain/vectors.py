"""Embeddings of new sequences: what the embedder and the language model compute, by token or averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from l2g_ray.arms import ENSEMBLE
from l2g_ray.data.readers import iter_tables, name_input
from l2g_ray.data.table_writer import TableWriter, refuse_overwrite
from l2g_ray.errors import UserError
from l2g_ray.models.embedder import EmbedderNet, Embedding
from l2g_ray.models.ensemble import AverageModel
from l2g_ray.models.l2g import L2GModel
from l2g_ray.models.language_model import LanguageModel
from l2g_ray.models.layers import masked_mean
from l2g_ray.predict import BATCH_SIZE, CPU, STREAM_ROWS, Predictor, load_predictor, naming_memory
from l2g_ray.run_folder import Arm, choose_member
from l2g_ray.sequence import encode
from l2g_ray.stages.parts import RowsAtOnce

LAYERS = ("backbone", "tokens", "language_model")
# Arms with tokens. One of them represents an ensemble.
WITH_TOKENS = ("l2g", "embedder_only")
_COLUMN = "embedding_"


@dataclass(frozen=True)
class Point:
    """A model at one moment of its training. `language_model` is None where it is unknown or not needed."""

    name: str
    net: EmbedderNet
    language_model: LanguageModel | None

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that it has, first to last."""
        return LAYERS[:-1] if self.language_model is None else LAYERS


def take_first(model: torch.nn.Module | None) -> torch.nn.Module | None:
    """Return the model itself, or the first of the fold models that it averages."""
    return model.members[0] if isinstance(model, AverageModel) else model


def embed(
    point: Point,
    sequences: pa.Array | pa.ChunkedArray,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], None] = lambda done: None,
    device: torch.device = CPU,
    *,
    layers: Sequence[str] | None = None,
    per_token: bool = False,
) -> dict[str, np.ndarray]:
    """Embed n clean sequences, each on the strand given.

    Parameters
    ----------
    batch_size : sequences at once on `device`; halved where they do not fit into memory.
    layers : which of the point's layers; all by default.
    per_token : return each position of a layer instead of their mean.

    Returns
    -------
    By layer the masked means over positions (n, width) float32; `per_token` (n, positions, width), where positions beyond
    the end of a sequence are NaN.
    """
    wanted = point.layers if layers is None else layers
    parts: dict[str, list[np.ndarray]] = {layer: [] for layer in wanted}
    at_once, done = RowsAtOnce(batch_size), 0
    net = point.net.to(device)
    language_model = None if point.language_model is None else point.language_model.to(device)

    def compute(size: int) -> dict[str, np.ndarray]:
        codes, lengths = (torch.from_numpy(x).to(device) for x in encode(sequences.slice(done, size)))
        embedding = net.embedder(*net.encode(codes, lengths))
        mask = embedding.token_mask
        hidden = None
        if language_model is not None and "language_model" in wanted:
            hidden = language_model(embedding.tokens, mask)
        if per_token:
            found = _take_positions(embedding, hidden)
        else:
            found = {"backbone": embedding.pooled_features(), "tokens": embedding.pooled_tokens()}
            if hidden is not None:
                found["language_model"] = masked_mean(hidden, None if mask is None else mask[..., None], 1)
        return {layer: found[layer].float().cpu().numpy() for layer in wanted}

    with torch.inference_mode(), naming_memory(device, net.config.length_bp):
        while done < len(sequences):
            found = at_once.attempt(compute, len(sequences) - done)
            for layer, values in found.items():
                parts[layer].append(values)
            done += len(values)
            progress(done)
    return {layer: _join(values) for layer, values in parts.items()}


def _take_positions(embedding: Embedding, hidden: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return positions (batch, positions, width) by layer, NaN where there is padding."""
    feature_mask = None if embedding.feature_mask is None else embedding.feature_mask[:, 0]
    layers = {
        "backbone": (embedding.features.transpose(1, 2), feature_mask),
        "tokens": (embedding.tokens, embedding.token_mask),
    }
    if hidden is not None:
        layers["language_model"] = (hidden, embedding.token_mask)
    return {
        layer: values if mask is None else values.masked_fill(mask[..., None] == 0, torch.nan)
        for layer, (values, mask) in layers.items()
    }


def _join(parts: list[np.ndarray]) -> np.ndarray:
    """Join along the rows; shorter position axes are filled with NaN."""
    if not parts or parts[0].ndim == 2:
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
    longest = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(p, ((0, 0), (0, longest - p.shape[1]), (0, 0)), constant_values=np.nan) for p in parts]
    )


class SequenceEmbedder:
    """One layer of an arm, ready to embed sequences of a file or a table.

    `layer`: by default the last that the arm has, `language_model` for l2g and `tokens` for embedder_only. An ensemble is
    represented by the one of these two arms with the larger weight, an arm of several fold models by the first of them.

    Raises UserError for an arm without embeddings, or a layer that it does not have.
    """

    def __init__(
        self,
        arm: Arm,
        layer: str | None = None,
        device: str | torch.device = "auto",
        batch_size: int | None = None,
    ) -> None:
        chosen = choose_member(arm, (WITH_TOKENS,), "embeddings") if arm.name == ENSEMBLE else arm
        self.predictor: Predictor = load_predictor(chosen, device, batch_size)
        model = take_first(self.predictor.model)
        if isinstance(model, L2GModel):
            self.point = Point(chosen.name, model.net, model.language_model)
        elif isinstance(model, EmbedderNet):
            self.point = Point(chosen.name, model, None)
        else:
            raise UserError(
                f"{chosen.folder}: the arm '{chosen.name}' has no embeddings; choose one of {', '.join(WITH_TOKENS)}"
            )
        self.layer = layer or self.point.layers[-1]
        if self.layer not in self.point.layers:
            raise UserError(
                f"layer '{self.layer}': the arm '{chosen.name}' has none; choose one of {', '.join(self.point.layers)}"
            )

    def facts(self) -> dict[str, str]:
        """Return what a file of embeddings records about their origin."""
        return {**self.predictor.facts(), "layer": self.layer}

    def iter_arrays(
        self,
        source: Path | pa.Table,
        *,
        per_token: bool = False,
        sequence_column: str | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Iterator[tuple[pa.ChunkedArray, np.ndarray]]:
        """Yield ids (n,) and embeddings, as `embed` returns them, for at most `STREAM_ROWS` rows at a time.

        Raises UserError for a faulty input; it names the row.
        """
        done = 0
        column = sequence_column or self.predictor.task.sequence_column
        for table in iter_tables(source, batch_rows=STREAM_ROWS, sequence_column=column):
            clean = self.predictor.clean(table["sequence"], name_input(source), done + 1)
            yield (
                table["id"],
                embed(
                    self.point,
                    clean,
                    self.predictor.batch_size,
                    _shift(progress, done),
                    self.predictor.device,
                    layers=(self.layer,),
                    per_token=per_token,
                )[self.layer],
            )
            done += len(table)

    def embed(
        self,
        source: Path | pa.Table,
        *,
        per_token: bool = False,
        sequence_column: str | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> np.ndarray:
        """Return the embeddings of all rows as one array. Raises as `iter_arrays`."""
        found = self.iter_arrays(source, per_token=per_token, sequence_column=sequence_column, progress=progress)
        return _join([values for _, values in found])


def embed_file(
    embedder: SequenceEmbedder,
    source: Path,
    target: Path,
    *,
    per_token: bool = False,
    sequence_column: str | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Stream the embeddings of a file into a CSV, TSV or Parquet file; returns the number of sequences.

    Columns: `id`, then `embedding_0`, `embedding_1`, ...; with `per_token` a row for each position of a sequence, and
    `token`, counted from 0, after `id`. The file appears only when complete and records the model and the layer.

    Raises UserError for an output that is the input, or a faulty input.
    """
    refuse_overwrite([source], [target])
    n = 0
    with TableWriter(target, embedder.facts()) as writer:
        for ids, values in embedder.iter_arrays(
            source, per_token=per_token, sequence_column=sequence_column, progress=progress
        ):
            writer.write(_tabulate(ids, values))
            n += len(ids)
    return n


def _tabulate(ids: pa.ChunkedArray, values: np.ndarray) -> pa.Table:
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"id": ids}
    if values.ndim == 3:
        rows, tokens = np.nonzero(~np.isnan(values).all(2))
        columns = {"id": ids.take(pa.array(rows)), "token": pa.array(tokens)}
        values = values[rows, tokens]
    return pa.table(columns | {f"{_COLUMN}{i}": pa.array(column) for i, column in enumerate(values.T)})


def _shift(progress: Callable[[int], None], before: int) -> Callable[[int], None]:
    return lambda done: progress(before + done)
