"""Loss over rounds."""

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from tsr_swarm.monitor.chart import Series, draw_chart
from tsr_swarm.monitor.view import HELD_OUT, LOCAL, MUTED, View


class LossChart(Widget):
    """Held-out loss as a thick line, the mean of the peers' own losses as a dotted one."""

    view: reactive[View] = reactive(View)

    def on_mount(self) -> None:
        legend = (("━ held-out", HELD_OUT), "  ", ("┄ mean local", LOCAL))
        self.border_title = Content.assemble("Loss, nats a token  ", *legend)

    def render(self) -> Content:
        history = self.view.snapshot.history
        held_out = [(float(p.round), p.loss) for p in history if p.loss is not None]
        local = [(float(p.round), p.local_loss) for p in history if p.local_loss is not None]
        if not held_out and not local:
            return Content.styled("The line starts with the first evaluation.", MUTED)
        lines = [
            Series(points=held_out, style=HELD_OUT, is_bold=True),
            Series(points=local, style=LOCAL, is_bold=False),
        ]
        return draw_chart(lines, self.content_size.width, self.content_size.height, "round", MUTED)
