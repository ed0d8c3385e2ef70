"""Motifs of networks that were trained here: planted ones are found, and none where the labels were shuffled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from l2g_ray.explain import databases as truth
from l2g_ray.explain import motifs
from l2g_ray.explain.attribution import Attributions, attribute
from l2g_ray.explain.databases import match_motifs
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.sequence import encode

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("single_thread")]
ROWS, LENGTH_BP, EPOCHS, BATCH = 800, 80, 12, 32
WEIGHTS = {"TGACTCAT": 1.0, "AGATAAGA": 0.7}
RC = str.maketrans("ACGT", "TGCA")


@dataclass(frozen=True)
class Planted:
    """Sequences as `codes`, `lengths_bp` and `values` (n,): the sum of their sites' weights, and a little noise."""

    codes: np.ndarray
    lengths_bp: np.ndarray
    values: np.ndarray
    sites: list[truth.Site]


@pytest.fixture(scope="module")
def planted() -> Planted:
    """Up to three sites a sequence, on either strand, in separate windows, away from the ends."""
    generator = np.random.default_rng(0)
    texts, sites, values = [], [], []
    for row in range(ROWS):
        letters = generator.choice(list("ACGT"), LENGTH_BP)
        value = generator.normal(0, 0.1)
        for window in generator.permutation(np.arange(14, LENGTH_BP - 26, 12))[: generator.integers(0, 4)]:
            start = int(window + generator.integers(0, 4))
            motif = list(WEIGHTS)[generator.integers(0, 2)]
            strand = "+-"[generator.integers(0, 2)]
            letters[start : start + 8] = list(motif if strand == "+" else motif.translate(RC)[::-1])
            sites.append(truth.Site(row, motif, start, start + 8, strand, "value"))
            value += WEIGHTS[motif]
        texts.append("".join(letters))
        values.append(value)
    return Planted(*encode(texts), np.array(values, np.float32), sites)


def explain_trained(data: Planted, values: np.ndarray) -> Attributions:
    """Contributions in a small network that was trained on these values (n,)."""
    torch.manual_seed(0)
    net = EmbedderNet(EmbedderConfig("resnet", (16, 24, 32), LENGTH_BP, 32, 64, 1, target_tokens=8, pool=2))
    codes, lengths_bp, wanted = (torch.from_numpy(each) for each in (data.codes, data.lengths_bp, values))
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, EPOCHS * (ROWS // BATCH))
    for _ in range(EPOCHS):
        for rows in torch.randperm(ROWS).split(BATCH):
            loss = (net(codes[rows], lengths_bp[rows])[:, 0] - wanted[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    # Learned, or learned by heart.
    assert float(loss.detach()) < 0.3 * values.var()
    return attribute(net.eval(), data.codes, data.lengths_bp, torch.ones(1), n_references=4)


def find_planted(found: Attributions, data: Planted) -> dict[str, float]:
    """The least q-value of each planted motif among what is found."""
    discovered = motifs.discover_motifs(found, motifs.MotifSettings(*motifs.choose_seqlet(found.lengths_bp)))
    known = truth.build_motifs(data.sites, data.codes, "planted")
    least = dict.fromkeys(WEIGHTS, 1.0)
    for match in match_motifs([motif.ppm for motif in discovered.motifs], known):
        least[match.target.name] = min(least[match.target.name], match.q_value)
    return least


def test_every_planted_motif_is_found(planted: Planted) -> None:
    found = explain_trained(planted, planted.values)
    assert np.median(found.completeness_errors) < 1e-4
    told = truth.measure_share(found, truth.cover(planted.sites, found.codes.shape))
    assert told["mass"] >= 0.8
    assert told["expected"] < 0.3
    assert all(q < 0.05 for q in find_planted(found, planted).values())


def test_none_is_found_where_the_labels_were_shuffled(planted: Planted) -> None:
    shuffled = np.random.default_rng(1).permutation(planted.values)
    found = explain_trained(planted, shuffled)
    told = truth.measure_share(found, truth.cover(planted.sites, found.codes.shape))
    assert told["mass"] < told["expected"] + 0.1
    assert all(q >= 0.05 for q in find_planted(found, planted).values())
