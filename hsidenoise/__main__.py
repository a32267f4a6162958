"""``python -m hsidenoise`` is the command line."""

from hsidenoise.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
