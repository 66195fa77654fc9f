"""Draw the monitor's last screen of a recorded run as an SVG of 120 x 40 cells. No clock, so the same file each time.

python -m tests.bench.screenshot [RECORDED_RUN.jsonl [PICTURE.svg]]
"""

import asyncio
import re
import sys
from pathlib import Path

from tests.bench.tables import RESULTS
from tsr_swarm.monitor.app import SwarmMonitor
from tsr_swarm.monitor.show import AT_ONCE
from tsr_swarm.monitor.sources import ReplaySource

SIZE = (120, 40)


class Moment(ReplaySource):
    """A record whose end is no trouble: the picture is of a moment of the run."""

    @property
    def trouble(self) -> None:
        return None

    @trouble.setter
    def trouble(self, trouble: object) -> None:
        pass


async def draw(recorded: Path, size: tuple[int, int] = SIZE) -> str:
    """The SVG text. Raises RunError when ``recorded`` is no recorded run."""
    source = Moment(recorded, AT_ONCE, clock=lambda: 0.0)
    app = SwarmMonitor(source, "tsr-swarm")
    async with app.run_test(size=size) as pilot:
        await app.workers.wait_for_complete()
        if app.failure is not None:
            raise app.failure
        await pilot.pause()
        svg = app.export_screenshot(title="tsr-swarm monitor", simplify=True)
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # a picture should not ask the network for fonts


def main() -> None:
    """Read the first argument, write the second."""
    defaults = [RESULTS / "recorded-run.jsonl", RESULTS / "monitor.svg"]
    given = [Path(argument) for argument in sys.argv[1:3]]
    recorded, picture = given + defaults[len(given) :]
    picture.write_text(asyncio.run(draw(recorded)), "utf-8")
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
