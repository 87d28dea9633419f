"""``python -m asyncflow`` is ``asyncflow``."""

from asyncflow.cli import main

if __name__ == "__main__":
    main()
