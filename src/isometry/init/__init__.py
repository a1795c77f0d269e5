"""In-place initialisers of one tensor, with the names and arguments of `torch.nn.init`.

A tensor is (out, in, *taps) unless the keywords `in_axis`, `out_axis`, `batch_axis` or `groups` (blocks
stacked on the first axis: a convolution's groups, a recurrent layer's gates) say otherwise. The standard
deviation asked for is the one drawn, in every dtype and truncated or not; half precisions are drawn in
float32 and rounded. Where a result differs from torch's on purpose the function says so.
"""

from isometry.init.orthogonal import delta_orthogonal_, mirrored_, orthogonal_
from isometry.init.plain import constant_, normal_, ones_, trunc_normal_, uniform_, zeros_
from isometry.init.scaling import (
    kaiming_normal_,
    kaiming_uniform_,
    lecun_normal_,
    lecun_uniform_,
    variance_scaling_,
    xavier_normal_,
    xavier_uniform_,
)
from isometry.init.special import chrono_, dirac_, eye_, icnr_, identity_, siren_uniform_, sparse_

__all__ = [
    "chrono_",
    "constant_",
    "delta_orthogonal_",
    "dirac_",
    "eye_",
    "icnr_",
    "identity_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "lecun_normal_",
    "lecun_uniform_",
    "mirrored_",
    "normal_",
    "ones_",
    "orthogonal_",
    "siren_uniform_",
    "sparse_",
    "trunc_normal_",
    "uniform_",
    "variance_scaling_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]
