"""Fine-tuning with MiniLM, beside a plain transformers + DataLoader loop in fp32, and beside the matrix rate.

Ours is the loop's step on batches of `iter_batches`. The plain side is the same model as `transformers` loads it, a
DataLoader that shuffles, pads to the longest and turns letters into one-hot floats, AdamW as torch gives it, and the loss
read at every step. Dropout 0.1, fp32 and one thread on both sides; ours also under bf16 autocast, which pays on some CPUs. An operation counts when it is a product or a
convolution, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Options, compare, interleave, measure_matrix_rate
from benchmarks.synthetic import draw_table
from l2g_ray.config import OptimSettings
from l2g_ray.data.batches import Batch, iter_batches
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.models.l2g import L2GConfig, L2GModel
from l2g_ray.models.language_model import LanguageModel, load_transformer
from l2g_ray.sequence import make_mask
from l2g_ray.stages.loop import LoopSettings, Runtime, train
from l2g_ray.stages.optim import make_optimizer

BATCH_SIZE, DROPOUT = 32, 0.1


def run(options: Options) -> list[dict[str, Any]]:
    """Return a row a set of sequences: seconds of an epoch over the same rows, operations a second beside the matrix
    rate.
    """
    torch.set_num_threads(options.threads)
    generator = np.random.default_rng(0)
    n_rows = (1 if options.quick else 6) * BATCH_SIZE
    sets = {
        "25 tokens (200 bp)": (draw_table(generator, n_rows, 200), 200, 25),
        "128 tokens (512 bp)": (draw_table(generator, n_rows // 6, 512), 512, 128),
        "6 to 31 tokens (71 to 802 bp)": (_draw_lengths(generator, n_rows), 802, 32),
    }
    rows = []
    for name, (table, length_bp, tokens) in sets.items():
        ours, plain = _make_ours(table, length_bp, tokens), _make_plain(table, length_bp, tokens)
        sides = {"ours": ours, "other": plain, "bf16": _make_ours(table, length_bp, tokens, "bf16")}
        with FlopCounterMode(display=False) as counter:
            ours()
        found = interleave(sides, rounds=1 if options.quick else 3)
        seconds, other, halved = (found[side]["median_s"] for side in sides)
        peak = measure_matrix_rate()
        share = counter.get_total_flops() / seconds / peak
        row = compare(name, seconds / len(table) * 1_000, other / len(table) * 1_000, 1.8, "ms/sequence")
        row |= {"GFLOP/s": counter.get_total_flops() / seconds / 1e9, "of the fp32 product %": 100 * share}
        row |= {">= 50 %": "yes" if share >= 0.5 else "no"}
        rows.append(row | {"ours bf16 ms/sequence": halved / len(table) * 1_000, "ratio bf16": other / halved})
    rates = {precision: measure_matrix_rate(precision) / 1e9 for precision in ("fp32", "bf16")}
    for row in rows:
        row["product GFLOP/s fp32, bf16"] = ", ".join(f"{rate:.0f}" for rate in rates.values())
    return rows


def _draw_lengths(generator: np.random.Generator, n_rows: int) -> pa.Table:
    """Lengths as spread as in human_ensembl_regulatory, 71 to 802 bp."""
    table = draw_table(generator, n_rows, 802)
    lengths = generator.integers(71, 803, n_rows)
    cut = [text[:n] for text, n in zip(table["sequence"].to_pylist(), lengths.tolist(), strict=True)]
    return table.set_column(1, "sequence", pa.array(cut, pa.large_string()))


def _make_model(length_bp: int, tokens: int) -> L2GModel:
    torch.manual_seed(0)
    config = EmbedderConfig(
        "resnet", (32, 64, 96), length_bp, 384, 512, 2, pool=2, target_tokens=tokens, architecture=((7, 1),) * 9
    )
    model = L2GModel(L2GConfig(config), EmbedderNet(config), LanguageModel(load_transformer("minilm")))
    model.language_model.set_dropout(DROPOUT)
    return model.train()


def _make_ours(table: pa.Table, length_bp: int, tokens: int, precision: str = "fp32") -> Callable[[], Any]:
    model = _make_model(length_bp, tokens)
    optimizer = make_optimizer(OptimSettings(), [(model.parameters(), 1e-5)])

    def losses(group: list[Batch], epoch: int) -> Iterator[torch.Tensor]:
        for batch in group:
            yield nn.functional.cross_entropy(model(batch.codes, batch.lengths_bp), batch.labels)

    def batches(epoch: int) -> Iterator[Batch]:
        return iter_batches(
            [table], kind="binary", batch_size=BATCH_SIZE, seed=0, epoch=epoch, rc_augment=True, bucket_batches=50
        )

    def epoch() -> None:
        train(
            model,
            optimizer,
            lambda step: 1.0,
            LoopSettings(1, 1, seed=0),
            Runtime(precision=precision),
            batches=batches,
            losses=losses,
            validate=lambda: {"score": 0.0},
        )

    return epoch


class _Plain(nn.Module):
    """The same embedder, the encoder as `transformers` runs it, and a linear head."""

    def __init__(self, length_bp: int, tokens: int) -> None:
        super().__init__()
        self.net, self.head = _make_model(length_bp, tokens).net, nn.Linear(384, 2)
        self.encoder = load_transformer("minilm").encoder

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        embedding = self.net.embedder(x, mask)
        attention = None
        if embedding.token_mask is not None:
            attention = (1 - embedding.token_mask[:, None, None, :]) * torch.finfo(torch.float32).min
        hidden = self.encoder(embedding.tokens, attention_mask=attention).last_hidden_state
        return self.head(hidden.mean(1)) + self.net.predict(embedding)


def _make_plain(table: pa.Table, length_bp: int, tokens: int) -> Callable[[], Any]:
    model = _Plain(length_bp, tokens).train()
    rows = list(zip(table["sequence"].to_pylist(), table["label"].to_pylist(), strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def collate(batch: list[tuple[str, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        width = max(len(text) for text, _ in batch)
        codes = np.full((len(batch), width), 4)
        for row, (text, _) in zip(codes, batch, strict=True):
            row[: len(text)] = _CODES[np.frombuffer(text.encode(), np.uint8)]
        x = torch.eye(5, 4)[torch.from_numpy(codes)].transpose(1, 2).contiguous()
        lengths = torch.tensor([len(text) for text, _ in batch])
        return x, make_mask(lengths, width)[:, None].float(), torch.tensor([label for _, label in batch])

    def epoch() -> None:
        for x, mask, labels in DataLoader(rows, BATCH_SIZE, shuffle=True, collate_fn=collate):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x, None if mask.all() else mask), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss.item()

    return epoch


_CODES = np.full(256, 4)
_CODES[list(b"ACGT")] = range(4)
