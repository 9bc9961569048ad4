"""What an audit says: a table, sentences, a CSV of all images, a picture of the most suspicious ones."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from rich.table import Table

from ppbench.audit.release import Audited
from ppbench.files import write_atomic
from ppbench.grids import MOST_ROWS, draw_grid


def table(found: Audited, title: str) -> Table:
    """Return a row a space: typical ratios, how unlike they are, and what was called a copy."""
    shown = Table(title=title)
    for name in ("space", "private", "held out", "p no nearer", "a copy is below", "copies"):
        shown.add_column(name, justify="left" if name == "space" else "right")
    copies = found.audit.copied.sum(1).tolist()
    for (name, space), count in zip(found.audit.spaces.items(), copies, strict=True):
        shown.add_row(name, f"{space.ratio.median():.3f}", f"{space.held.median():.3f}", f"{space.closer:.2g}",
                      f"{space.least:.3f}", str(count))
    return shown


def sentences(found: Audited) -> Iterator[str]:
    """Say in words what the audit found."""
    copied = found.audit.copied.any(0)
    count, level = int(copied.sum()), f"{100 * found.audit.level:g} %"
    if count:
        yield f"{count} of {len(copied)} private images are copied by the release"
    if found.audit.near:
        yield "private images are nearer to the release, on the whole, than held-out ones"
    if not (count or found.audit.near):
        yield f"no private image is nearer to the release than held-out images are, at the level of {level}"
    yield from found.notes


def write(found: Audited, path: Path, title: str) -> None:
    """Write `path`.csv, all private images in all spaces, and `path`.png, those least likely to be near by chance."""
    rows = [{"image": image, "space": name, "ratio": float(space.ratio[image]), "nearest": int(space.index[image]),
             "p": float(space.p[image]), "copied": bool(copied[image])}
            for (name, space), copied in zip(found.audit.spaces.items(), found.audit.copied, strict=True)
            for image in range(len(space.p))]
    write_atomic(path.with_suffix(".csv"), pd.DataFrame(rows).to_csv(index=False, float_format="%.6g").encode())
    least, where = found.audit.p.min(0)
    worst = least.argsort(stable=True)[:MOST_ROWS]
    nearest = torch.stack([space.index for space in found.audit.spaces.values()])[where, torch.arange(len(where))]
    picture = draw_grid(title, found.parts.private[worst], found.parts.released[nearest[worst]], True, [])
    write_atomic(path.with_suffix(".png"), picture)
