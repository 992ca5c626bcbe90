"""The entry of the command `fieldmark`, and of `python -m fieldmark`.

Nothing of fieldmark is imported before Ctrl-C is looked after.
"""

import os
import sys


def main() -> None:
    """Run the command line."""
    os.environ["FIELDMARK_OWN"] = "1"  # `backend` looks for it
    try:
        from fieldmark.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
