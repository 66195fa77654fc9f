"""How a node that is behind catches up: published rounds it has missed, or the whole state from another node."""
