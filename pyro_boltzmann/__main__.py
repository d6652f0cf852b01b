"""``python -m pyro_boltzmann``: the command line."""

from pyro_boltzmann.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
