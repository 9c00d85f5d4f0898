"""``python -m foveate`` is the command ``foveate``."""

import sys


def main() -> None:
    """Entry point, which imports the command late: Ctrl-C while it is imported is one line, too."""
    try:
        from foveate.lab.cli import main as command

        command()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
