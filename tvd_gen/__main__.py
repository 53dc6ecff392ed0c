"""`python -m tvd_gen`, and `torchrun ... -m tvd_gen` for several processes."""

from tvd_gen.cli import main

if __name__ == "__main__":
    main()
