from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2g_ray.counts import count_batches
from l2g_ray.data.batches import Batch, InMemorySource, iter_batches, iter_evaluation_batches
from l2g_ray.sequence import decode


def make_table(n_rows: int, low: int = 20, high: int = 30, outputs: int = 0) -> pa.Table:
    generator = np.random.default_rng(n_rows)
    lengths = generator.integers(low, high + 1, n_rows)
    sequences = ["".join(generator.choice(list("ACGT"), n)) for n in lengths]
    if outputs:
        values = pa.array(generator.normal(size=n_rows * outputs).astype(np.float32))
        labels = pa.FixedSizeListArray.from_arrays(values, outputs)
    else:
        labels = pa.array(generator.integers(0, 3, n_rows))
    return pa.table({"id": [str(i) for i in range(n_rows)], "sequence": sequences, "label": labels})


def equal(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(one, other)
        for name in ("codes", "lengths_bp", "labels", "row_index")
    )


@settings(max_examples=40, deadline=None)
@given(
    n_rows=st.integers(1, 60),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    batch_size=st.integers(1, 17),
    window=st.integers(1, 70),
    outputs=st.sampled_from([0, 2]),
)
def test_batches_do_not_depend_on_how_the_stream_is_cut(
    n_rows: int, cuts: list[int], batch_size: int, window: int, outputs: int
) -> None:
    table = make_table(n_rows, outputs=outputs)
    edges = sorted({0, n_rows, *(min(cut, n_rows) for cut in cuts)})
    pieces = [table.slice(a, b - a) for a, b in pairwise(edges)]
    options = {
        "kind": "regression" if outputs else "multiclass",
        "batch_size": batch_size,
        "seed": 3,
        "epoch": 1,
        "shuffle_window_rows": window,
        "rc_augment": True,
        "shift_bp": 3,
    }
    whole = list(iter_batches([table], **options))
    assert equal(whole, list(iter_batches(pieces, **options)))
    evaluated = list(iter_evaluation_batches([table], kind=options["kind"], batch_size=batch_size))
    assert equal(evaluated, list(iter_evaluation_batches(pieces, kind=options["kind"], batch_size=batch_size)))
    seen = torch.cat([batch.row_index for batch in whole])
    assert sorted(seen.tolist()) == list(range(n_rows))


def test_rows_keep_their_labels_and_lengths() -> None:
    table = make_table(50)
    for batch in iter_batches([table], kind="multiclass", batch_size=16, seed=0, epoch=0):
        rows = table.take(batch.row_index.numpy())
        assert decode(batch.codes.numpy(), batch.lengths_bp.numpy()) == rows["sequence"].to_pylist()
        assert batch.labels.tolist() == rows["label"].to_pylist()
        assert batch.labels.dtype == torch.int64
        assert batch.codes.dtype == torch.uint8
        assert batch.codes.shape[1] == batch.lengths_bp.max()


def test_regression_labels_are_float_rows_with_nan_for_missing() -> None:
    values = pa.array(np.array([1, np.nan, 3, 4], np.float32))
    table = pa.table({"sequence": ["ACGT", "AC"], "label": pa.FixedSizeListArray.from_arrays(values, 2)})
    (batch,) = iter_evaluation_batches([table], kind="regression", batch_size=8)
    assert batch.labels.dtype == torch.float32
    assert torch.allclose(batch.labels, torch.tensor([[1, torch.nan], [3, 4]]), equal_nan=True)


def test_seed_and_epoch_change_the_order_and_the_augmentation() -> None:
    table = make_table(64, 25, 25)

    def batches(**changed) -> list[Batch]:
        options = {"seed": 0, "epoch": 0, "rc_augment": True, "shift_bp": 3} | changed
        return list(iter_batches([table], kind="multiclass", batch_size=32, **options))

    assert equal(batches(), batches())
    for changed in ({"seed": 1}, {"epoch": 1}):
        assert not equal(batches(), batches(**changed))
    plain = batches(rc_augment=False, shift_bp=0)
    assert torch.equal(plain[0].row_index, batches()[0].row_index)
    assert not torch.equal(plain[0].codes, batches()[0].codes)


def test_augmentation_rates() -> None:
    table = make_table(2000, 25, 25)
    options = {"kind": "multiclass", "batch_size": 500, "seed": 0, "epoch": 0}
    pairs = zip(iter_batches([table], **options), iter_batches([table], rc_augment=True, **options))
    flipped = torch.cat([(a.codes != b.codes).any(1) for a, b in pairs]).float().mean()
    assert 0.45 < flipped < 0.55
    pairs = zip(iter_batches([table], **options), iter_batches([table], shift_bp=3, **options))
    moved = torch.cat([(a.codes != b.codes).any(1) for a, b in pairs]).float().mean()
    assert moved == pytest.approx(6 / 7, abs=0.04)


def test_windows_bound_the_shuffle() -> None:
    table = make_table(40)
    seen = torch.cat(
        [
            b.row_index
            for b in iter_batches([table], kind="multiclass", batch_size=8, seed=0, epoch=0, shuffle_window_rows=10)
        ]
    )
    assert seen.tolist() != list(range(40))
    assert (seen // 10).tolist() == [i // 10 for i in range(40)]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("n_rows", "batch_size"), [(0, 4), (1, 4), (8, 4), (9, 4), (10, 4), (3, 1), (5, 8)])
def test_counted_batches_are_the_batches(n_rows: int, batch_size: int, drop_last: bool) -> None:
    table = make_table(10).slice(0, n_rows)
    found = list(iter_batches([table], kind="multiclass", batch_size=batch_size, seed=0, epoch=0, drop_last=drop_last))
    assert len(found) == count_batches(n_rows, batch_size, drop_last)
    if drop_last and batch_size > 1:
        assert all(len(batch.codes) > 1 for batch in found)


def test_width_and_number_of_batches_can_be_set() -> None:
    table = make_table(20)
    found = list(iter_batches([table], kind="multiclass", batch_size=4, seed=0, epoch=0, length_bp=22, max_batches=3))
    assert [batch.codes.shape for batch in found] == [(4, 22)] * 3
    assert max(batch.lengths_bp.max() for batch in found) == 22


def test_rows_without_labels_are_batched() -> None:
    source = InMemorySource(make_table(5).select(["sequence"]))
    (batch,) = iter_evaluation_batches(source.tables(), kind="binary", batch_size=8)
    assert len(batch.labels) == 0
    assert source.n_rows == 5
