"""``python -m hsidenoise`` is the command line."""

from hsidenoise.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
