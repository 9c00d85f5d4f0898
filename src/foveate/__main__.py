"""``python -m foveate`` is the command ``foveate``."""

from foveate.lab.cli import main

if __name__ == "__main__":
    main()
