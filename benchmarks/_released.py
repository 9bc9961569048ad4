"""What the jigsaw attack makes of releases: ViT-cipher under one key, EtC with a key an image, one after the other."""

from collections.abc import Iterator

import torch
from _real import cifar10
from _table import Figure

from ppbench.attacks.jigsaw import Jigsaw
from ppbench.data import Images
from ppbench.defense import KeyScope, draw_keys
from ppbench.metrics import identification, ssim
from ppbench.puzzle import puzzle_scores
from ppbench.ref import Ref
from ppbench.seeding import generator
from ppbench.view import Algorithm, Sealed, View, quantised

IMAGES = 64
PUBLIC = 2000
GALLERY = 1000


def released(quick: bool) -> Iterator[Figure]:
    """Attack 64 released images, ciphertext only, by block size."""
    cases: list[tuple[str, int, KeyScope]] = [("vit-cipher", 4, "global"), ("vit-cipher", 8, "global")]
    if not quick:
        cases += [("vit-cipher", 16, "global"), ("vit-cipher", 4, "image"), ("etc", 4, "global"), ("etc", 8, "global"),
                  ("etc", 8, "image")]
    for preset, block, scope in cases:
        yield from _attacked(preset, block, scope)


def _attacked(preset: str, block: int, scope: KeyScope) -> Iterator[Figure]:
    pixels, labels = cifar10("test")
    public, names = cifar10("train")
    rows = torch.arange(IMAGES)
    private = Images(pixels[:IMAGES], labels[:IMAGES], rows)
    ref = Ref("defenses", "block-scrambling", {"preset": preset, "block": block})
    algorithm = Algorithm(ref, scope, 8)
    defense, rng = algorithm.defense, generator(0)
    keys = draw_keys(defense, scope, IMAGES, private.shape, rng)
    release = quantised(defense.protect(private, keys, rng), 8)
    known = torch.arange(PUBLIC)
    view = View(Sealed(granted=frozenset({"images", "algorithm", "public"}), image_shape=private.shape,
                       released_shape=release.shape, n_targets=IMAGES, classes=10, release=release, target_rows=rows,
                       algorithm=algorithm, public=Images(public[known], names[known], known)))
    attack = Jigsaw()
    priors = {name: prior.train(prior.seen(view), generator(1)) for name, prior in attack.priors(view).items()}
    found = attack.run(view, priors, generator(2)).images
    pieces, blind = defense.pieces(private.shape), public[known].mean(0, keepdim=True)
    assert pieces is not None
    case = f"{preset}, blocks of {block}, {scope} key, {IMAGES} images"
    score, floor = ssim(found, private.pixels).mean(), ssim(blind.expand_as(found), private.pixels).mean()
    mirrored = ssim(found.flip(3), private.pixels).mean()
    yield Figure(case, "SSIM", float(score), f"floor {float(floor):.3f}")
    yield Figure(case, "SSIM, or of all mirrored", max(float(score), float(mirrored)), f"floor {float(floor):.3f}")
    yield Figure(case, f"identification among {GALLERY}", float(identification(found, pixels[:GALLERY]).mean()),
                 f"chance {1 / GALLERY:g}")
    scores = puzzle_scores(found, private.pixels, pieces)["piece_neighbour"].nan_to_num()  # as a run counts failures
    yield Figure(case, "neighbour", float(scores.mean()))
