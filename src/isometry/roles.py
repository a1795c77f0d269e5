"""What each parameter of a known module is for: weight, bias, scale, embedding or slope."""

from typing import Literal

from torch import nn

from isometry.fans import NORMS, is_transposed_linear, known_fans, plain_name

Role = Literal["weight", "bias", "scale", "embedding", "slope"]
_AFFINE = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, *NORMS)


def role_of(module: nn.Module, name: str) -> Role | None:
    """What a module's own parameter is for, None where nobody knows.

    Args:
        module: The module that owns the parameter.
        name: The parameter's own name, without dots.

    Returns:
        "weight" (a linear map, with fans), "bias", "scale" (of a normalisation), "embedding" (a table of
        rows), "slope" (of a PReLU), or None.

    Example:
        >>> role_of(nn.LSTM(2, 3), "bias_ih_l0"), role_of(nn.LayerNorm(3), "weight")
        ('bias', 'scale')
    """
    name = plain_name(module, name)
    if isinstance(module, nn.PReLU):
        return "slope" if name == "weight" else None
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding" if name == "weight" else None
    if isinstance(module, NORMS) and name == "weight":
        return "scale"
    if _is_bias(module, name):
        return "bias"
    return "weight" if known_fans(module, name) is not None else None


def _is_bias(module: nn.Module, name: str) -> bool:
    if isinstance(module, _AFFINE) or is_transposed_linear(module):
        return name == "bias"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return name.startswith("bias_")
    return isinstance(module, nn.MultiheadAttention) and name in ("in_proj_bias", "bias_k", "bias_v")
