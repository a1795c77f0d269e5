"""Real architectures with their own default initialisation, built offline, small but of realistic shape.

Text models have 12 layers of width 192. Image models have their published widths: convolutional networks at
128 pixels, so that the last of five halvings leaves 4 of them, those of patches at 64, Swin at 56 and 224.
All run in training mode, as they come from their constructors. Needs the dependency group `corpus`
(transformers, timm, torchvision); an architecture whose library is missing is left out of `available()`.

Each entry builds a fresh model and draws fresh inputs on every call, both from torch's global generator.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchvision_import import import_torchvision
from unet import UNet

WIDTH, LAYERS, HEADS, TOKENS, VOCABULARY, BATCH = 192, 12, 6, 48, 1000, 4

Inputs = Callable[[], object]


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        name: Short name, unique.
        library: What it is built from: torch, torchvision, timm or transformers.
        build: Returns a fresh model in training mode.
        inputs: Returns fresh inputs, a tuple or a dict.
        loss: Returns a fresh loss of the output; None for a unit gradient at every output.
    """

    name: str
    library: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    loss: Callable[[Any], Tensor] | None = None


# --- inputs -------------------------------------------------------------------------------------------------


def images(size: int = 128, batch: int = BATCH, channels: int = 3) -> Inputs:
    """Normal pixels."""
    return lambda: (torch.randn(batch, channels, size, size),)


def tokens(**more: Callable[[], Tensor]) -> Inputs:
    """Uniform token ids, and further arguments by name."""
    return lambda: {"input_ids": ids()} | {name: draw() for name, draw in more.items()}


def ids(length: int = TOKENS) -> Tensor:
    """Uniform token ids."""
    return torch.randint(3, VOCABULARY, (BATCH, length))


def sequence(width: int = WIDTH, length: int = TOKENS) -> Inputs:
    """Normal vectors, batch first."""
    return lambda: (torch.randn(BATCH, length, width),)


# --- torch.nn -----------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A recurrent layer stack with a head on its last state, as in text classifiers."""

    def __init__(self, kind: type[nn.RNNBase], layers: int = 2, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.body = kind(WIDTH, 256, num_layers=layers, batch_first=True, **options)
        self.head = nn.Linear(512 if options.get("bidirectional") else 256, 10)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Classify the sequence by its last output."""
        hidden, _ = self.body(self.embedding(input_ids))
        return self.head(hidden[:, -1])


class Seq2Seq(nn.Module):
    """nn.Transformer between two embeddings and a head, with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(VOCABULARY, WIDTH)
        self.body = nn.Transformer(WIDTH, HEADS, 6, 6, 4 * WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the logits of the next target token."""
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=target.device)
        return self.head(self.body(self.source(source), self.target(target), tgt_mask=mask))


def mlp(activation: type[nn.Module], depth: int = 12) -> nn.Module:
    """Return a plain network of linear layers."""
    layers: list[nn.Module] = [nn.Linear(64, 256)]
    for _ in range(depth - 2):
        layers += [activation(), nn.Linear(256, 256)]
    return nn.Sequential(*layers, activation(), nn.Linear(256, 10))


def _encoder(pre_norm: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, batch_first=True, norm_first=pre_norm)
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)


def _vectors() -> tuple[Tensor]:
    return (torch.randn(64, 64),)


TORCH = (
    Entry("mlp_relu", "torch", lambda: mlp(nn.ReLU), _vectors),
    Entry("mlp_tanh", "torch", lambda: mlp(nn.Tanh), _vectors),
    Entry("transformer", "torch", Seq2Seq, lambda: {"source": ids(), "target": ids(40)}),
    Entry("transformer_encoder", "torch", lambda: _encoder(False), sequence()),
    Entry("transformer_encoder_prenorm", "torch", lambda: _encoder(True), sequence()),
    Entry("lstm", "torch", lambda: Recurrent(nn.LSTM), tokens()),
    Entry("lstm_bidirectional", "torch", lambda: Recurrent(nn.LSTM, bidirectional=True), tokens()),
    Entry("gru", "torch", lambda: Recurrent(nn.GRU), tokens()),
    Entry("rnn", "torch", lambda: Recurrent(nn.RNN), tokens()),
    Entry("unet", "torch", UNet, images(64)),
)


# --- torchvision and timm -----------------------------------------------------------------------------------


def _torchvision(name: str, inputs: Inputs | None = None, **options: Any) -> Entry:
    def build() -> nn.Module:
        models = import_torchvision().models
        found: nn.Module = models.get_model(name, weights=None, **options)
        return found

    return Entry(f"{name}", "torchvision", build, inputs or images())


def _timm(name: str, inputs: Inputs | None = None, **options: Any) -> Entry:
    def build() -> nn.Module:
        import_torchvision()  # timm imports it
        import timm

        found: nn.Module = timm.create_model(name, pretrained=False, **options)
        return found

    short = re.sub(r"_(patch\d+|window\d+|224|32|100)(?=_|$)", "", name)
    return Entry(f"timm_{short}", "timm", build, inputs or images())


TORCHVISION = (
    _torchvision("resnet18"),
    _torchvision("resnet50"),
    _torchvision("densenet121"),
    _torchvision("mobilenet_v2"),
    _torchvision("mobilenet_v3_large"),
    _torchvision("efficientnet_b0"),
    _torchvision("convnext_tiny"),
    _torchvision("swin_t", images(224)),
    _torchvision("squeezenet1_1"),
    _torchvision("shufflenet_v2_x1_0"),
    _torchvision("googlenet", init_weights=True),
    _torchvision("regnet_y_400mf"),
)

TIMM = (
    _timm("vit_tiny_patch16_224", images(64), img_size=64),
    _timm("deit3_small_patch16_224", images(64), img_size=64),
    _timm("swin_tiny_patch4_window7_224", images(56), img_size=56),
    _timm("convnext_tiny"),
    _timm("mixer_s16_224", images(64), img_size=64),
    _timm("resmlp_12_224", images(64), img_size=64),
    _timm("gmlp_s16_224", images(64), img_size=64),
    _timm("efficientnet_b0"),
    _timm("mobilenetv3_large_100"),
    _timm("resnet50d"),
    _timm("resnext50_32x4d"),
    _timm("nf_resnet50"),
    _timm("regnetx_008"),
    _timm("poolformer_s12"),
    _timm("beit_base_patch16_224", images(64), img_size=64, embed_dim=192, num_heads=3),
    _timm("cait_xxs24_224", images(64), img_size=64),
    _timm("ghostnet_100"),
)


# --- transformers -------------------------------------------------------------------------------------------

_DECODER = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": WIDTH // HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ENCODER = {k: v for k, v in _DECODER.items() if k not in ("head_dim", "num_key_value_heads")} | {
    "intermediate_size": 4 * WIDTH
}
_LM = "AutoModelForCausalLM"


def _transformers(
    name: str,
    inputs: Inputs | None = None,
    head: str = "AutoModel",
    attention: str | None = None,
    label: str = "",
    **options: Any,
) -> Entry:
    def build() -> nn.Module:
        import_torchvision()
        import transformers

        config = transformers.AutoConfig.for_model(name, **options)
        how = {} if attention is None else {"attn_implementation": attention}
        found: nn.Module = getattr(transformers, head).from_config(config, **how)
        return found.train()

    return Entry(label or name.replace("-", "_"), "transformers", build, inputs or tokens())


def _text(*overrides: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for one in overrides:
        result |= one
    return result | options


_GPT2 = {
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": 128,
    "vocab_size": VOCABULARY,
    "use_cache": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEADS_OF_WIDTH = {
    k: v for k, v in _DECODER.items() if k != "head_dim"
}  # some configurations know no head_dim
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_VISION = {"image_size": 64, "patch_size": 8, "hidden_size": WIDTH, "num_attention_heads": HEADS}
_BOTH = {
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 4 * WIDTH,
    "decoder_ffn_dim": 4 * WIDTH,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
_T5 = {
    "d_model": WIDTH,
    "d_kv": WIDTH // HEADS,
    "d_ff": 4 * WIDTH,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "vocab_size": VOCABULARY,
    "use_cache": False,
}
_WHISPER = {"num_mel_bins": 40, "max_source_positions": 48, "max_target_positions": 64}
_DEEPSEEK = {
    "moe_intermediate_size": WIDTH,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 64,
    "q_lora_rank": 96,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "num_key_value_heads": HEADS,
}


def _speech() -> dict[str, Tensor]:
    return {"input_features": torch.randn(BATCH, 40, 96), "decoder_input_ids": ids(32)}


def _waves() -> dict[str, Tensor]:
    return {"input_values": torch.randn(BATCH, 6400)}


def _pixels() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(BATCH, 3, 64, 64)}


_GEMMA = {"sliding_window": 16, "query_pre_attn_scalar": 32}
_PAIR = tokens(decoder_input_ids=lambda: ids(32))

TRANSFORMERS = (
    _transformers("gpt2", head=_LM, **_GPT2),
    _transformers("gpt2", head=_LM, attention="eager", label="gpt2_eager", **_GPT2),
    _transformers("llama", head=_LM, **_DECODER),
    _transformers("mistral", head=_LM, **_text(_DECODER, sliding_window=16)),
    _transformers("qwen2", head=_LM, **_HEADS_OF_WIDTH),
    _transformers("qwen3", head=_LM, **_DECODER),
    _transformers("gemma2", head=_LM, **_text(_DECODER, _GEMMA)),
    _transformers("gemma3_text", head=_LM, **_text(_DECODER, _GEMMA)),
    _transformers("olmo2", head=_LM, **_HEADS_OF_WIDTH),
    _transformers("cohere", head=_LM, **_HEADS_OF_WIDTH),
    _transformers("mixtral", head=_LM, **_text(_DECODER, _EXPERTS)),
    _transformers("deepseek_v3", head=_LM, **_text(_HEADS_OF_WIDTH, _DEEPSEEK)),
    _transformers("gpt_neox", head=_LM, **_ENCODER),
    _transformers(
        "bloom",
        head=_LM,
        hidden_size=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        vocab_size=VOCABULARY,
        use_cache=False,
    ),
    _transformers(
        "opt", head=_LM, **_text(_ENCODER, ffn_dim=4 * WIDTH, word_embed_proj_dim=WIDTH, init_std=0.02)
    ),
    _transformers(
        "mamba", head=_LM, hidden_size=WIDTH, num_hidden_layers=LAYERS, vocab_size=VOCABULARY, use_cache=False
    ),
    _transformers("bert", **_ENCODER),
    _transformers("bert", attention="eager", label="bert_eager", **_ENCODER),
    _transformers("modernbert", **_text(_ENCODER, local_attention=16, cls_token_id=1, sep_token_id=2)),
    _transformers(
        "distilbert", dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, hidden_dim=4 * WIDTH, vocab_size=VOCABULARY
    ),
    _transformers("electra", **_text(_ENCODER, embedding_size=96)),
    _transformers(
        "deberta-v2",
        **_text(_ENCODER, relative_attention=True, position_buckets=32, pos_att_type=["p2c", "c2p"]),
    ),
    _transformers("t5", _PAIR, **_T5),
    _transformers("bart", _PAIR, **_BOTH),
    _transformers("whisper", _speech, **_text(_BOTH, _WHISPER)),
    _transformers("wav2vec2", _waves, **_text(_ENCODER, conv_dim=(96,) * 7)),
    _transformers("vit", _pixels, **_text(_VISION, num_hidden_layers=LAYERS, intermediate_size=4 * WIDTH)),
    _transformers("dinov2", _pixels, **_text(_VISION, num_hidden_layers=LAYERS)),
)

CORPUS = (*TORCH, *TORCHVISION, *TIMM, *TRANSFORMERS)
_NEEDS = {"torch": (), "torchvision": ("torchvision",), "timm": ("timm", "torchvision")} | {
    "transformers": ("transformers",)
}


def available() -> tuple[Entry, ...]:
    """Return the entries whose library is installed."""
    return tuple(e for e in CORPUS if all(importlib.util.find_spec(need) for need in _NEEDS[e.library]))
