"""The checks of a defense without regard to its keys: what it releases, from which images."""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from ppbench import codec
from ppbench.conformance.declaration import defense_declaration
from ppbench.conformance.defense_bench import COLOUR, GREY, NON_SQUARE, ODD, DefenseBench
from ppbench.conformance.defense_keys import KEY_CHECKS, keys_drawn
from ppbench.conformance.defense_victim import VICTIM_CHECKS
from ppbench.conformance.findings import Check, Skipped, sentence
from ppbench.conformance.samples import sample_split
from ppbench.conformance.trial import ONE, OTHER, attempt, dependence, disturbance
from ppbench.data import Shape, Split
from ppbench.defense import Defense, Release, draw_keys
from ppbench.errors import UserError
from ppbench.seeding import generator
from ppbench.stages.protecting import check_release


def declaration(bench: DefenseBench) -> Iterator[str]:
    """Check what the class says of itself."""
    return defense_declaration(bench.defense, bench.subject.ref.name)


def contract(bench: DefenseBench) -> Iterator[str]:
    """Check the release of plain images."""
    release = bench.main.value
    yield from _faults(release, bench.split, bench.defense)
    if not bench.main.digest:
        yield "its Release holds what cannot be stored: keep to tensors"


def deterministic(bench: DefenseBench) -> Iterator[str]:
    """Protect again with the same generator while the global ones are seeded differently."""
    keys = bench.keys()
    faults = [*dependence(lambda rng: bench.defense.protect(bench.private, keys, rng), bench.main, bench.again)]
    if faults:
        yield from faults
        return
    one, other = (attempt(lambda rng: _query(bench, rng), shared) for shared in (ONE, OTHER))
    yield from (f"query(): {finding}" for finding in dependence(lambda rng: _query(bench, rng), one, other))


def shared_state(bench: DefenseBench) -> Iterator[str]:
    """See that what all share is left as it was."""
    return disturbance(bench.main, bench.again)


def images_untouched(bench: DefenseBench) -> Iterator[str]:
    """Compare images, keys and release before and after."""
    images, keys = bench.private, bench.keys()
    release = bench.protect(keys, images=images).value
    if codec.digest(images) != codec.digest(bench.split.private):
        yield "protect() changes the private images in place: clone before writing"
    if codec.digest(keys) != codec.digest(bench.keys()):
        yield "protect() changes the keys in place: clone before writing"
    tests = bench.split.test.pixels.clone()
    attempt(lambda rng: bench.defense.query(tests, bench.keys(count=len(tests)), rng))
    if not torch.equal(tests, bench.split.test.pixels):
        yield "query() changes the test images in place: clone before writing"
    before, used = codec.digest(release), keys if release.source is not None else None
    attempt(lambda rng: bench.defense.invert(release, used, bench.shape))
    if codec.digest(release) != before:
        yield "invert() changes the release in place: clone before writing"


def single_image(bench: DefenseBench) -> Iterator[str]:
    """Protect and send a batch of one."""
    try:
        keys = bench.keys(count=1)
        release = bench.protect(keys, images=bench.private[:1]).value
        yield from _faults(release, bench.split, bench.defense, 1)
        sent = attempt(lambda rng: bench.defense.query(bench.private.pixels[:1], keys, rng)).value
        yield from _sent(sent, release, 1)
    except UserError as reason:
        if bench.defense.partnered:
            yield f"it refuses a batch of one image ({reason}): protect it, a client may have no more"
        else:
            raise Skipped(f"it refuses one image: {reason}") from None
    except (Exception, SystemExit) as error:
        yield f"on a batch of one image {sentence(error)}: let it handle one"


def on_shapes(bench: DefenseBench, kind: str, shapes: tuple[Shape, ...]) -> Iterator[str]:
    """Protect, send and invert images of every shape that the defense says it accepts."""
    tried = 0
    for shape in shapes:
        size = " x ".join(map(str, shape))
        try:
            if not bench.accepts(shape):
                continue
        except (Exception, SystemExit) as error:
            yield f"check({shape}) {sentence(error)}: refuse what cannot be served with a UserError"
            return
        tried += 1
        try:
            faults = [f"on {kind} images ({size}): {finding}" for finding in _serves(bench.defense, shape)]
        except (Exception, SystemExit) as error:
            yield f"on {kind} images ({size}), which check() accepts, {sentence(error)}: serve or refuse them"
            return
        if faults:
            yield from faults
            return
    if not tried:
        raise Skipped(f"check() refuses {kind} images of all sizes tried")


def query(bench: DefenseBench) -> Iterator[str]:
    """Hold what is sent to be classified against what is released."""
    release = bench.main.value
    images, keys = bench.private.pixels, bench.keys()
    sent = attempt(lambda rng: bench.defense.query(images, keys, rng)).value
    yield from _sent(sent, release, len(images))
    if isinstance(sent, Tensor) and release.source is not None and sent.shape == release.images.shape \
            and bench.repeats and not torch.allclose(sent, release.images, atol=1e-6):
        yield ("query() sends something else than protect() releases for the same images and keys: protect both alike, "
               "or the victim is tested on what it never saw")


CHECKS: Mapping[str, Check[DefenseBench]] = {
    "declaration": declaration, "keys drawn": keys_drawn, "contract": contract, "query": query,
    "deterministic": deterministic, "shared state": shared_state, "images untouched": images_untouched,
    "single image": single_image,
    **{kind: partial(on_shapes, kind=kind, shapes=shapes) for kind, shapes in
       {"colour": COLOUR[:2], "grey": GREY[:2], "non-square": NON_SQUARE[:3], "odd-sized": ODD}.items()},
    **KEY_CHECKS, **VICTIM_CHECKS,
}


def _faults(release: object, split: Split, defense: Defense, count: int | None = None) -> Iterator[str]:
    """Hold a release to the contract, beyond what the run itself insists on."""
    check_release(release, split, len(split.private) if count is None else count)
    assert isinstance(release, Release)
    if defense.partnered != (release.source is not None):
        has = "no partners (source)" if release.source is None else "partners (source)"
        yield f"it says partnered = {defense.partnered}, but its release has {has}: make the two agree"
    for what, tensor, wanted in (("images", release.images, torch.float32), ("labels", release.labels, torch.int64)):
        if tensor.dtype != wanted:
            yield (f"the release's {what} are {_name(tensor.dtype)}: return {_name(wanted)}")
    if release.labels.min() < 0 or release.labels.max() >= split.classes:
        yield (f"the release's labels go from {int(release.labels.min())} to {int(release.labels.max())}: keep to the "
               f"{split.classes} classes of the private images")


def _sent(sent: object, release: Release, count: int) -> Iterator[str]:
    if not isinstance(sent, Tensor) or sent.ndim != 4 or len(sent) != count:
        yield f"query() returns {_described(sent)} for {count} images: return one image each"
        return
    if tuple(sent.shape[1:]) != release.shape:
        yield (f"query() sends images of {list(sent.shape[1:])}, but the release's are {list(release.shape)}: the "
               "victim takes one shape only")
    if sent.dtype != torch.float32:
        yield f"query() sends {_name(sent.dtype)}: return float32"
    if not torch.isfinite(sent).all() or sent.min() < 0 or sent.max() > 1:
        yield "query() sends values outside [0, 1]: keep to the range"


def _serves(defense: Defense, shape: Shape) -> Iterator[str]:
    split = sample_split(shape)
    scope = defense.key_scopes[0] if defense.key_scopes else None
    keys = draw_keys(defense, scope, len(split.private), shape, generator(1), 4)
    release = attempt(lambda rng: defense.protect(split.private, keys, rng)).value
    yield from _faults(release, split, defense)
    sent = attempt(lambda rng: defense.query(split.private.pixels, keys, rng)).value
    yield from _sent(sent, release, len(split.private))
    used = keys if release.source is not None else None
    found = attempt(lambda rng: defense.invert(release, used, shape)).value
    if tuple(found.shape) != (len(release), *shape):
        yield f"invert() returns {list(found.shape)}: return {[len(release), *shape]}"
    pieces = defense.pieces(shape)
    if pieces is not None and (pieces.size < 1 or shape[1] % pieces.size or shape[2] % pieces.size):
        yield f"pieces() says blocks of {pieces.size} pixels, which do not tile the image: name the size that does"


def _query(bench: DefenseBench, rng: torch.Generator) -> dict[str, Tensor]:
    return {"sent": bench.defense.query(bench.private.pixels, bench.keys(), rng)}


def _described(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
