"""Write a whole model by canonical parameter name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from torch import nn

from isometry.errors import NotFoundError
from isometry.names import canonical_name
from isometry.sampling.distributions import Distribution
from isometry.sampling.fill import fill_keyed_


def write_(model: nn.Module, distributions: Mapping[str, Distribution], *, seed: int = 0) -> None:
    """Write the parameters named in `distributions`; all names are checked before the first write."""
    parameters = {canonical_name(name): p for name, p in model.named_parameters()}
    for name in distributions:
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise NotFoundError(f"the model has no parameter named {name!r}{hint}")
    for name, parameter in parameters.items():
        if name in distributions:
            fill_keyed_(parameter, distributions[name], seed=seed, name=name)
