"""The checks of a defense's keys: drawn as many as asked for, used by their owners, and of use to their holder."""

from collections.abc import Generator, Iterator, Mapping

import torch
from torch import Tensor

from ppbench import codec
from ppbench.codec import Tensors
from ppbench.conformance.defense_bench import CLIENTS, KEYS_SEED, OTHER_KEYS_SEED, DefenseBench
from ppbench.conformance.findings import Check, Skipped
from ppbench.conformance.trial import ONE, OTHER, attempt, dependence, disturbance
from ppbench.defense import Keys, Release, resize
from ppbench.metrics import psnr
from ppbench.seeding import generator
from ppbench.view import quantised

EXACT = 45.0
"""dB that 8 bits and rounding leave to an exact inverse."""
SLACK = 0.1
MANY = 8


def keys_drawn(bench: DefenseBench) -> Iterator[str]:
    """Check what keys() draws."""
    bench.keyed()
    for count in (1, 3, MANY):
        for name, value in _drawn(bench, count).items():
            if not isinstance(value, Tensor) or value.ndim < 1 or len(value) != count:
                got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                yield (f"keys() draws {name!r} of shape {got} when asked for {count}: make the leading axis count the "
                       "keys")
                return
    if all((value == value[:1]).all() for value in _drawn(bench, MANY).values()):
        if len({codec.digest(_drawn(bench, 1, seed)) for seed in range(MANY)}) == 1:
            raise Skipped("there is only one key for such images")
        yield f"keys() draws {MANY} keys that are all the same: draw each on its own"
    one, other = (attempt(lambda rng: bench.defense.keys(3, bench.shape, rng), shared) for shared in (ONE, OTHER))
    for finding in (*dependence(lambda rng: bench.defense.keys(3, bench.shape, rng), one, other),
                    *disturbance(one, other)):
        yield f"keys(): {finding}"


def keys_matter(bench: DefenseBench) -> Iterator[str]:
    """Protect under other keys, for every key scope."""
    bench.keyed()
    for scope in bench.defense.key_scopes:
        one, other = (bench.keys(seed, scope=scope) for seed in (KEYS_SEED, OTHER_KEYS_SEED))
        assert one is not None
        assert other is not None
        if _same(one, other):
            continue
        if torch.equal(bench.release(one).images, bench.release(other).images):
            yield f"with the key scope {scope!r} another key gives the same release: let it decide, or declare none"
            return


def owners(bench: DefenseBench) -> Iterator[str]:
    """See that every image is protected with the key that its owner names, and with no other."""
    bench.keyed()
    bench.one_to_one()
    if not {"client", "image"} & set(bench.defense.key_scopes):
        raise Skipped("its only key scope is global")
    values = bench.defense.keys(CLIENTS, bench.shape, generator(KEYS_SEED))
    owner = torch.arange(len(bench.split.private)) % CLIENTS
    before = bench.release(Keys(values, owner)).images
    order = torch.tensor([2, 0, 3, 1])
    renamed = Keys({name: value[order] for name, value in values.items()}, order.argsort()[owner])
    if not torch.allclose(bench.release(renamed).images, before, atol=1e-6):
        yield ("the same keys in another order give another release: take image i's key by keys.owner[i] "
               "(keys.per_image())")
        return
    elsewhere = owner.clone()
    elsewhere[0] = 1
    after = bench.release(Keys(values, elsewhere)).images
    changed = (after - before).abs().flatten(1).amax(1) > 1e-6
    if not changed[0] and not all(torch.equal(value[0], value[1]) for value in values.values()):
        yield "an image given to another owner is released as before: take its key by keys.owner[i]"
    if changed[1:].any():
        yield (f"another owner for image 0 changes {int(changed[1:].sum())} other images: let image i depend on the "
               "key of its own owner only")


def inverse(bench: DefenseBench) -> Iterator[str]:
    """Hold the key holder's inverse against the release, a wrong key, and what a permutation of blocks allows."""
    bench.one_to_one()
    keys = bench.keys()
    release = quantised(bench.release(keys), 8)
    right = yield from _quality(bench, release, keys)
    if right is None:
        return
    assert release.source is not None
    as_is = float(psnr(resize(release.images, bench.shape), bench.split.private.pixels[release.source]).mean())
    if right < as_is - SLACK:
        yield (f"invert() gives {right:.1f} dB, less than the {as_is:.1f} dB of the release as it is: return at least "
               "that")
    if keys is None or not keys.values:
        return
    other = bench.keys(OTHER_KEYS_SEED)
    assert other is not None
    if _same(keys, other):
        return
    wrong = yield from _quality(bench, release, other)
    if wrong is not None and right <= wrong + SLACK:
        yield (f"invert() gives {right:.1f} dB with the right key and {wrong:.1f} dB with a wrong one: undo what the "
               "key did")
    elif bench.defense.pieces(bench.shape) is not None and right < EXACT:
        yield (f"invert() gives only {right:.1f} dB with the right key, but what pieces() describes can be undone "
               "exactly: invert every step")


KEY_CHECKS: Mapping[str, Check[DefenseBench]] = {
    "keys matter": keys_matter, "owners": owners, "inverse": inverse,
}


def _quality(bench: DefenseBench, release: Release, keys: Keys | None) -> Generator[str, None, float | None]:
    found = attempt(lambda rng: bench.defense.invert(release, keys, bench.shape)).value
    if not isinstance(found, Tensor) or tuple(found.shape) != (len(release), *bench.shape):
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        yield f"invert() returns {got}: return images of {[len(release), *bench.shape]}"
        return None
    if not torch.isfinite(found).all() or found.min() < -1e-4 or found.max() > 1 + 1e-4:
        yield "invert() returns values outside [0, 1]: clamp them"
        return None
    assert release.source is not None
    return float(psnr(found.float(), bench.split.private.pixels[release.source]).mean())


def _drawn(bench: DefenseBench, count: int, seed: int = KEYS_SEED) -> Tensors:
    return bench.defense.keys(count, bench.shape, generator(seed))


def _same(one: Keys, other: Keys) -> bool:
    return codec.digest(one.values) == codec.digest(other.values)
