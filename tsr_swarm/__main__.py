"""``python -m tsr_swarm``: the same as ``tsr-swarm``."""

from tsr_swarm.cli.main import main

if __name__ == "__main__":
    main()
