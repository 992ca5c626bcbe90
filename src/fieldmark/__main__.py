"""The entry of the command `fieldmark`, and of `python -m fieldmark`.

Nothing is imported before Ctrl-C is looked after.
"""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from fieldmark.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
