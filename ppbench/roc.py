"""Pictures of ROC curves on two logarithmic axes, where few false alarms can be told from none."""

import io
from collections.abc import Sequence

from ppbench.codec import Tensors
from ppbench.membership import curve

_SIZE, _DPI = (5.0, 5.0), 120
_FLOOR = 0.5  # of one candidate: where none is found or accused, so that the curve is drawn from there


def draw_roc(title: str, attacks: Sequence[tuple[str, Tensors]]) -> bytes:
    """Return a PNG: for each attack one curve of all candidates, and one of canaries alone (dashed).

    Args:
        title: a line above.
        attacks: name, and `score`, `member` and `canary` of every candidate.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # only where there is a curve to draw
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    least = 1.0
    for i, (name, found) in enumerate(attacks):
        for style, those in (("-", found["canary"] | True), ("--", found["canary"])):
            members = found["member"][those]
            if members.any() and not members.all():
                points = curve(found["score"][those], members)
                low = (_FLOOR / int((~members).sum()), _FLOOR / int(members.sum()))
                axes.step(points.false.clamp(min=low[0]).numpy(), points.true.clamp(min=low[1]).numpy(), f"C{i}{style}",
                          where="post", label=name if style == "-" else f"{name}: canaries")
                least = min(least, *low)
    axes.plot([least, 1], [least, 1], ":", color="grey", label="chance")
    axes.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1.1), title=title,
             xlabel="others accused (false positive rate)", ylabel="members found (true positive rate)")
    axes.legend(loc="lower right", fontsize=7)
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()
