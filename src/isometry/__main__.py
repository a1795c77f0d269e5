"""`python -m isometry` and the command `isometry`."""

import sys
from collections.abc import Sequence

from isometry.errors import MissingExtraError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows the command's name; None reads `sys.argv`.

    Returns:
        The exit code: 0, or 2 where the input cannot be used.

    Example:
        >>> main(["--version"])
        isometry ...
        0
    """
    try:
        from isometry import cli
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in ("typer", "rich", "click"):
            raise
        print(f"error: {MissingExtraError(error.name, 'cli')}", file=sys.stderr)
        return 2
    return cli.run(sys.argv[1:] if arguments is None else list(arguments))


if __name__ == "__main__":
    sys.exit(main())
