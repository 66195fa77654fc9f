"""Which processes a process has started, they and theirs, also those that lead sessions of their own."""

from pathlib import Path


def descendants(root: int) -> list[int]:
    """Process ids of ``root`` and all below it, from the top. Only ``root`` where there is no /proc."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text("utf-8", "replace")
        except OSError:
            continue  # it has ended
        parent = int(text.rpartition(")")[2].split()[1])  # after the name, which may hold anything: state, parent
        below.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found.extend(below.get(pid, []))
    return found
