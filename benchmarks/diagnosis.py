"""Which of the architectures of `corpus.py` are called ill as they come from their constructors.

A diagnosis that cries wolf is of no use: these train. Told from the predicted signal alone. Needs the
dependency group `corpus`.

    python benchmarks/diagnosis.py [--only NAME ...]
"""

from __future__ import annotations

import argparse
import warnings

import torch

from corpus import available
from isometry import predict
from isometry.diagnosis.checks import found


def main() -> None:
    """Print what is found, a line for each architecture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], help="these architectures")
    names = parser.parse_args().only
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ill = 0
    entries = [entry for entry in available() if not names or entry.name in names]
    for entry in entries:
        torch.manual_seed(0)
        profile = predict(entry.build, entry.inputs(), loss=entry.loss)
        told = list(found(profile, profile))
        ill += bool(told)
        print(f"{entry.name}: {'; '.join(told) or 'healthy'}", flush=True)
    print(f"{ill} of {len(entries)} are called ill")


if __name__ == "__main__":
    main()
