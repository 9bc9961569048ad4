"""A defense on the bench: images it accepts, keys, and what it did to them."""

from dataclasses import dataclass
from functools import cached_property

import torch

from ppbench.conformance.findings import Skipped
from ppbench.conformance.samples import sample_split
from ppbench.conformance.subject import Subject
from ppbench.conformance.trial import ONE, OTHER, Trial, attempt
from ppbench.data import Images, Shape, Split
from ppbench.defense import Defense, Keys, Release, draw_keys
from ppbench.errors import UserError
from ppbench.seeding import generator

COLOUR: tuple[Shape, ...] = ((3, 32, 32), (3, 48, 48), (3, 64, 64), (3, 224, 224))
GREY: tuple[Shape, ...] = tuple((1, *shape[1:]) for shape in COLOUR)
NON_SQUARE: tuple[Shape, ...] = ((3, 32, 24), (3, 24, 40), (3, 48, 64), (3, 224, 192))
ODD: tuple[Shape, ...] = ((3, 28, 28), (3, 30, 30), (3, 31, 31), (3, 36, 36), (3, 40, 40))
KEYS_SEED, OTHER_KEYS_SEED = 3, 4
CLIENTS = 4


@dataclass(frozen=True)
class DefenseBench:
    """What the checks of a defense share.

    Attributes:
        subject: the defense.
    """

    subject: Subject

    @property
    def defense(self) -> Defense:
        """The defense itself."""
        defense: Defense = self.subject.component
        return defense

    def accepts(self, shape: Shape) -> bool:
        """Say whether the defense itself says that it takes images of a shape."""
        try:
            self.defense.check(shape)
        except UserError:
            return False
        return True

    @cached_property
    def shape(self) -> Shape:
        """The first shape that the defense accepts, colour before grey."""
        found = next((shape for shape in (*COLOUR, *GREY, *NON_SQUARE, *ODD) if self.accepts(shape)), None)
        if found is None:
            raise UserError("check() refuses images of every size that was tried, 32 to 224 pixels: accept one of them "
                            "with the default parameters, or give parameters that do")
        return found

    @cached_property
    def split(self) -> Split:
        """Images of that shape; read only."""
        return sample_split(self.shape)

    @property
    def private(self) -> Images:
        """The private ones, a copy."""
        images = self.split.private
        return Images(images.pixels.clone(), images.labels.clone(), images.ids.clone())

    def keys(self, seed: int = KEYS_SEED, count: int | None = None, scope: str | None = None) -> Keys | None:
        """Draw keys for the private images, or for the first `count`; without a scope, in the defense's own."""
        scopes = self.defense.key_scopes
        wanted = next((each for each in scopes if each == scope), scopes[0] if scopes else None)
        return draw_keys(self.defense, wanted, len(self.split.private) if count is None else count, self.shape,
                         generator(seed), CLIENTS)

    def protect(self, keys: Keys | None, seed: int = 1, shared: int = ONE, images: Images | None = None) -> Trial:
        """Protect the private images, and watch."""
        private = self.private if images is None else images
        return attempt(lambda rng: self.defense.protect(private, keys, rng), shared, seed)

    def release(self, keys: Keys | None, seed: int = 1) -> Release:
        """Return what the defense lets out of the private images."""
        release: Release = self.protect(keys, seed).value
        return release

    @cached_property
    def main(self) -> Trial:
        """The first release."""
        return self.protect(self.keys())

    @cached_property
    def again(self) -> Trial:
        """The same while the global generators are seeded differently."""
        return self.protect(self.keys(), shared=OTHER)

    @cached_property
    def repeats(self) -> bool:
        """Whether the release is a function of images and keys alone."""
        return torch.equal(self.main.value.images, self.release(self.keys(), seed=2).images)

    def keyed(self) -> None:
        """Go on only with a defense that has keys.

        Raises:
            Skipped: it has none.
        """
        if not self.defense.key_scopes:
            raise Skipped("it has no key")

    def one_to_one(self) -> Release:
        """Return the first release, for checks of a defense whose released image i comes from image i.

        Raises:
            Skipped: there are no partners.
        """
        release: Release = self.main.value
        if release.source is None:
            raise Skipped("its release has no partners")
        return release
