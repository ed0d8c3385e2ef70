"""Embedder and language model: acceptance C1-C7, and that a stored model is the same model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_language_model
from toys import narrow

from l2g_ray.config import BACKBONES
from l2g_ray.counts import default_architecture
from l2g_ray.errors import UserError
from l2g_ray.models.backbones import ResNet, searchable_layers
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet, Predictor
from l2g_ray.models.l2g import L2GConfig, L2GModel, load_model, save_model
from l2g_ray.models.language_model import LanguageModel, load_transformer
from l2g_ray.models.layers import MaskedBatchNorm1d, MaskedMaxPool1d, masked_mean
from l2g_ray.models.locate import locate
from l2g_ray.sequence import reverse_complement

# Lengths and target lengths of all tasks ; the prime ones collapsed to 1-9 tokens in the official code.
LENGTHS = [(200, 128), (200, 64), (249, 256), (300, 128), (400, 128), (500, 512), (500, 128), (600, 128), (1000, 512)]
PRIME_LENGTHS = [(251, 128), (573, 128), (593, 128), (802, 128), (4707, 128)]
OFFICIAL_UNET_TOKENS = {
    (200, 128): 100, (200, 64): 50, (249, 256): 249, (300, 128): 100, (400, 128): 100, (500, 512): 500, (500, 128): 125,
    (600, 128): 120, (1000, 512): 500,
}  # fmt: skip


def make_config(backbone: str = "resnet", length_bp: int = 60, **changes: object) -> EmbedderConfig:
    values = {
        "backbone": backbone, "channels": narrow(backbone), "length_bp": length_bp, "width": 16, "max_tokens": 64, "n_outputs": 3,
        "target_tokens": 16, "architecture": tuple(default_architecture(backbone)),
    }  # fmt: skip
    return EmbedderConfig(**(values | changes))


def make_codes(rows: int, length_bp: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 4, (rows, length_bp), generator=generator, dtype=torch.uint8)
    return codes, torch.full((rows,), length_bp)


@pytest.mark.parametrize(("length_bp", "target"), LENGTHS + PRIME_LENGTHS)
@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_c1_shapes_of_every_backbone_and_task_length(backbone: str, length_bp: int, target: int) -> None:
    net = EmbedderNet(make_config(backbone, length_bp, target_tokens=target, max_tokens=512)).eval()
    with torch.no_grad():
        tokens = net.embedder(*net.encode(*make_codes(1, length_bp))).tokens
    n = net.embedder.n_tokens
    assert tokens.shape == (1, n, 16)
    out_length = net.embedder.backbone.out_length(length_bp)
    assert n <= min(target, 512)
    assert n * net.embedder.stride >= out_length, "no position is lost"
    assert n >= min(target, out_length) // 2, "a prime length does not collapse"
    if backbone == "unet" and (length_bp, target) in OFFICIAL_UNET_TOKENS:
        assert n == OFFICIAL_UNET_TOKENS[length_bp, target]


@pytest.mark.parametrize("length_bp", [200, 500, 1000, 4707])
def test_c1_full_token_resnet_keeps_every_base_up_to_the_limit(length_bp: int) -> None:
    net = EmbedderNet(make_config("resnet", length_bp, channels=(6, 8, 16), full_tokens=True, max_tokens=512))
    assert net.embedder.n_tokens == (length_bp if length_bp <= 512 else -(-length_bp // -(-length_bp // 512)))
    assert (net.embedder.projection is None) == (length_bp <= 512)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_c2_inputs_embeds_equal_the_token_path(tmp_path: Path, family: str) -> None:
    folder = make_tiny_language_model(tmp_path, family)
    transformer = load_transformer(str(folder))
    ids = torch.randint(5, 64, (3, 12))
    words = transformer.embeddings.word_embeddings(ids).detach()
    mask = torch.ones(3, 12)
    mask[1, 8:] = 0  # right padding
    ids_padded = ids.masked_fill(mask == 0, transformer.config.pad_token_id)
    with torch.no_grad():
        by_token = transformer(input_ids=ids_padded, attention_mask=mask.long()).last_hidden_state
        by_embedding = LanguageModel(load_transformer(str(folder)), positions="lm")(words, mask)
    assert (by_token - by_embedding)[mask.bool()].abs().max() <= 1e-5


def test_c2_left_padding_is_never_produced() -> None:
    # With left padding the token path would number positions differently, so the embedder pads on the right only.
    net = EmbedderNet(make_config(length_bp=60)).eval()
    codes, lengths = make_codes(4, 60)
    lengths = torch.tensor([60, 31, 7, 1])
    mask = net.embedder(*net.encode(codes, lengths)).token_mask
    assert mask is not None
    assert (mask.diff(dim=1) <= 0).all()
    assert (mask.sum(1) >= 1).all()


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_c3_embedding_output_straight_to_the_encoder(tmp_path: Path, family: str) -> None:
    folder = make_tiny_language_model(tmp_path, family)
    transformer = load_transformer(str(folder))
    ids = torch.randint(5, 64, (2, 10))
    with torch.no_grad():
        by_token = transformer(input_ids=ids).last_hidden_state
        straight = LanguageModel(load_transformer(str(folder)), positions="none")(transformer.embeddings(input_ids=ids))
    assert (by_token - straight).abs().max() <= 1e-5


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_c4_pooling_is_the_masked_mean_and_ignores_extra_padding(backbone: str) -> None:
    net = EmbedderNet(make_config(backbone, 96, target_tokens=12, pool=2)).double().eval()
    for module in net.modules():  # statistics that are not the identity
        if isinstance(module, MaskedBatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    codes, _ = make_codes(3, 96)
    lengths = torch.tensor([50, 37, 64])
    codes = codes.masked_fill(torch.arange(96)[None] >= lengths[:, None], 4)
    with torch.no_grad():
        x, mask = net.encode(codes, lengths)
        wide = net.embedder(x.double(), None if mask is None else mask.double())
        x, mask = net.encode(codes[:, :64], lengths)
        narrow = net.embedder(x.double(), None if mask is None else mask.double())
    assert wide.token_mask is not None
    explicit = torch.stack([t[m.bool()].mean(0) for t, m in zip(wide.tokens, wide.token_mask)])
    assert (wide.pooled_tokens() - explicit).abs().max() <= 1e-6
    assert (wide.pooled_tokens() - narrow.pooled_tokens()).abs().max() <= 1e-5
    assert (wide.pooled_features() - narrow.pooled_features()).abs().max() <= 1e-5


def test_pooling_by_position_adds_what_a_token_is_worth_at_its_place() -> None:
    predictor = Predictor(5, 2, pooling="by_position", n_places=4).double()
    predictor.set_label_scale(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    tokens = torch.randn(3, 6, 5, dtype=torch.float64)  # two more than there are places
    lengths = torch.tensor([6, 3, 5])
    mask = (torch.arange(6)[None] < lengths[:, None]).double()
    plain = predictor.read(tokens, mask)
    assert torch.equal(plain, predictor(masked_mean(tokens, mask[..., None], 1))), "begins as the mean"
    torch.nn.init.normal_(predictor.places)
    for row, n in enumerate(lengths):
        worth = sum((predictor.places[i] @ tokens[row, i] for i in range(min(4, int(n)))), torch.zeros(2)) / n
        torch.testing.assert_close(predictor.read(tokens, mask)[row], plain[row] + worth * predictor.scale)
        alone = predictor.read(tokens[row : row + 1, :n], None)
        torch.testing.assert_close(alone[0], predictor.read(tokens, mask)[row])


def test_mean_max_reads_the_mean_and_the_max_of_real_tokens() -> None:
    predictor = Predictor(5, 2, pooling="mean_max").double().eval()
    tokens = torch.randn(3, 6, 5, dtype=torch.float64) - 10  # padding, which is zero, is larger than any token
    lengths = torch.tensor([6, 3, 5])
    mask = (torch.arange(6)[None] < lengths[:, None]).double()
    tokens = tokens * mask[..., None]
    for row, n in enumerate(lengths):
        real = tokens[row, :n]
        expected = predictor.linear(torch.cat([real.mean(0), real.amax(0)]))
        torch.testing.assert_close(predictor.read(tokens, mask)[row], expected)
        torch.testing.assert_close(predictor.read(real[None], None)[0], expected)


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
@pytest.mark.parametrize("reads", ["tokens", "backbone"])
def test_mean_max_ignores_extra_padding(backbone: str, reads: str) -> None:
    net = EmbedderNet(make_config(backbone, 96, target_tokens=12, pool=2, predictor_reads=reads, pooling="mean_max"))
    codes, _ = make_codes(3, 96)
    lengths = torch.tensor([50, 37, 64])
    codes = codes.masked_fill(torch.arange(96)[None] >= lengths[:, None], 4)
    with torch.no_grad():
        together = net.eval()(codes, lengths)
        torch.testing.assert_close(net(codes[:, :64], lengths), together, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net(codes[1:2, :37], lengths[1:2]), together[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("combine", ["skip", "lm_only"])
@pytest.mark.parametrize(("pooling", "forgets"), [("mean", True), ("mean_max", True), ("by_position", False)])
def test_pooling_by_position_tells_where_a_motif_stands(
    tiny_lm: Path, combine: str, pooling: str, forgets: bool
) -> None:
    """The language model's head too, which reads what a model without positions cannot order."""
    model = make_model(tiny_lm, make_config(pooling=pooling), combine=combine).eval()
    for predictor in (model.head, model.net.predictor):
        if predictor.places is not None:
            torch.nn.init.normal_(predictor.places)
        hidden = torch.randn(1, model.net.embedder.n_tokens, 16)
        moved = predictor.read(hidden.flip(1), None)
        assert torch.allclose(moved, predictor.read(hidden, None), atol=1e-5) == forgets


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_c4_a_short_sequence_alone_equals_the_same_in_a_padded_batch(backbone: str, tiny_lm: Path) -> None:
    model = make_model(tiny_lm, make_config(backbone, 96)).eval()
    codes, lengths = make_codes(2, 96)
    lengths = torch.tensor([96, 41])
    with torch.no_grad():
        together = model(codes, lengths)[1]
        alone = model(codes[1:, :41], lengths[1:])[0]
    assert (together - alone).abs().max() <= 1e-5


@pytest.mark.parametrize("causal", [False, True])
def test_c5_reach_of_one_changed_base(causal: bool) -> None:
    torch.manual_seed(0)
    backbone = ResNet(4, (6, 8, 10), [(3, 1)] * 9, causal=causal).eval()
    x = torch.randn(1, 4, 200)
    changed = x.clone()
    changed[0, :, 100] += 1
    with torch.no_grad():
        difference = (backbone(changed)[0] - backbone(x)[0]).abs().sum((0, 1))
    touched = difference.nonzero().flatten()
    reach = 18 if causal else 9  # nine layers of k = 3
    assert touched.max() == 100 + reach
    assert touched.min() == (100 if causal else 100 - reach)


@pytest.mark.parametrize(("positions", "equivariant"), [("none", True), ("lm", False)])
def test_c6_without_positions_the_encoder_is_permutation_equivariant(
    tiny_lm: Path, positions: str, equivariant: bool
) -> None:
    language_model = LanguageModel(load_transformer(str(tiny_lm)), positions).eval()
    tokens = torch.randn(2, 9, 16)
    order = torch.randperm(9)
    with torch.no_grad():
        difference = (language_model(tokens)[:, order] - language_model(tokens[:, order])).abs().max()
    assert (difference <= 1e-5) == equivariant


def test_c7_strand_averaged_outputs_are_equal_for_both_strands(tiny_lm: Path) -> None:
    model = make_model(tiny_lm, make_config(length_bp=80)).eval()
    codes, lengths = make_codes(4, 80)
    lengths = torch.tensor([80, 80, 33, 50])
    codes = codes.masked_fill(torch.arange(80)[None] >= lengths[:, None], 4)
    flipped = reverse_complement(codes, lengths)
    with torch.no_grad():
        plain, other = model(codes, lengths), model(flipped, lengths)
        again = model(reverse_complement(flipped, lengths), lengths)
    assert (plain - other).abs().max() > 1e-4, "the network itself is not symmetric"
    assert ((plain + other) / 2 - (other + again) / 2).abs().max() <= 1e-6


def make_model(folder: Path, config: EmbedderConfig, combine: str = "lm_only", layers: int | None = None) -> L2GModel:
    torch.manual_seed(1)
    language_model = LanguageModel(load_transformer(str(folder)), "none", layers)
    model = L2GModel(L2GConfig(config, combine, language_model=str(folder)), EmbedderNet(config), language_model)
    with torch.no_grad():
        model.head.linear.weight.normal_()
    return model


def test_skip_starts_as_the_embedder_alone(tiny_lm: Path) -> None:
    config = make_config()
    net = EmbedderNet(config)
    net.predictor.set_label_scale(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0]))
    language_model = LanguageModel(load_transformer(str(tiny_lm)))
    model = L2GModel(L2GConfig(config, "skip"), net, language_model).eval()
    codes, lengths = make_codes(5, 60)
    with torch.no_grad():
        assert torch.equal(model(codes, lengths), net(codes, lengths))


def test_a_stored_model_predicts_the_same_without_the_original(tiny_lm: Path, tmp_path: Path) -> None:
    codes, lengths = make_codes(3, 60)
    for name, model in {
        "l2g": make_model(tiny_lm, make_config(), layers=1).eval(),
        "net": EmbedderNet(make_config("unet")).eval(),
        "by_position": make_model(tiny_lm, make_config(pooling="by_position")).eval(),
        "mean_max": make_model(tiny_lm, make_config(pooling="mean_max")).eval(),
    }.items():
        (tmp_path / name).mkdir()
        save_model(model, tmp_path / name)
        with torch.no_grad():
            assert torch.equal(load_model(tmp_path / name)(codes, lengths), model(codes, lengths))
    assert {p.name for p in (tmp_path / "l2g").iterdir()} == {"config.json", "model.safetensors"}


def test_a_model_of_another_schema_is_refused(tiny_lm: Path, tmp_path: Path) -> None:
    save_model(EmbedderNet(make_config()), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"schema": 99}))
    with pytest.raises(UserError, match="schema 99"):
        load_model(tmp_path)


def test_masked_batch_norm_equals_plain_norm_of_the_real_positions() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 10)
    lengths = torch.tensor([10, 4, 7, 1])
    mask = (torch.arange(10)[None] < lengths[:, None])[:, None].float()
    masked, plain = MaskedBatchNorm1d(3), torch.nn.BatchNorm1d(3)
    real = torch.cat([row[:, :n].T for row, n in zip(x, lengths)])  # (positions, channels)
    expected = plain(real)
    found = torch.cat([row[:, :n].T for row, n in zip(masked(x, mask), lengths)])
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(masked.running_var, plain.running_var, atol=1e-6)
    assert torch.allclose(masked.running_mean, plain.running_mean, atol=1e-6)


@pytest.mark.parametrize(("which", "share"), [("all", 1.0), ("none", 0.0)])
def test_trainable_layers(tiny_lm: Path, which: str, share: float) -> None:
    language_model = LanguageModel(load_transformer(str(tiny_lm)))
    language_model.set_trainable(which)
    flags = [p.requires_grad for p in language_model.parameters()]
    assert sum(flags) / len(flags) == share


def test_top_half_trains_the_upper_layers_and_all_norms(tiny_lm: Path) -> None:
    language_model = LanguageModel(load_transformer(str(tiny_lm)))
    language_model.set_trainable("top_half")
    trained = {name for name, p in language_model.named_parameters() if p.requires_grad}
    assert all("layer.1." in name or "LayerNorm" in name for name in trained)
    assert any("layer.0." in name and "LayerNorm" in name for name in trained)


def test_architecture_order_is_that_of_the_layers() -> None:
    pairs = [(3, 1), (5, 3), (7, 5), (9, 7), (11, 1), (3, 3), (5, 5), (7, 7), (9, 1)]
    net = EmbedderNet(make_config(architecture=tuple(pairs)))
    found = [(m.kernel_size[0], m.dilation[0]) for _, m in searchable_layers(net.embedder.backbone)]
    assert found == pairs
    assert EmbedderConfig.from_dict(json.loads(json.dumps(net.config.to_dict()))) == net.config


@pytest.mark.parametrize(("name", "words"), [
    ("./nowhere", "no such folder"),
    ("someone/some-model-that-is-not-cached", "cannot be reached"),
])  # fmt: skip
def test_an_unreachable_model_says_what_to_do(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        locate(name)


def test_a_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=32)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="GPT2Model is not supported"):
        load_transformer(str(tmp_path))


def test_random_init_is_seeded_and_not_the_weights(tiny_lm: Path) -> None:
    def weights(init: str, seed: int) -> torch.Tensor:
        return load_transformer(str(tiny_lm), init, seed).encoder.layer[0].output.dense.weight

    assert torch.equal(weights("random", 3), weights("random", 3))
    assert not torch.equal(weights("random", 3), weights("random", 4))
    assert not torch.equal(weights("random", 3), weights("pretrained", 3))


def test_masked_mean_of_nothing_is_zero() -> None:
    assert torch.equal(masked_mean(torch.ones(1, 3, 2), torch.zeros(1, 3, 1), 1), torch.zeros(1, 2))


def test_label_scale_gives_predictions_in_label_units() -> None:
    net = EmbedderNet(dataclasses.replace(make_config(), n_outputs=1))
    net.predictor.set_label_scale(torch.tensor([100.0]), torch.tensor([10.0]))
    with torch.no_grad():
        values = net.eval()(*make_codes(64, 60))
    assert 95 < float(values.mean()) < 105


def test_pooling_by_one_keeps_real_positions_and_zeroes_padding() -> None:
    x, mask = torch.randn(2, 3, 5), torch.ones(2, 1, 5)
    mask[1, :, 3:] = 0
    pooled, pooled_mask = MaskedMaxPool1d(1)(x, mask)
    assert torch.equal(pooled, x * mask)
    assert pooled_mask is mask
    assert torch.equal(MaskedMaxPool1d(1)(x)[0], x)
