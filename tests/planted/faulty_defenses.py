"""Defenses with one fault each; what must be said of them stands in conformance/test_planted_faults.py."""

import os
from dataclasses import dataclass, replace

import numpy as np
import torch

from ppbench.blocks import check_divides
from ppbench.defense import PerImageDefense, Pieces, Release


@dataclass(frozen=True)
class Honest(PerImageDefense):
    """Roll every image by a secret number of rows."""

    key_scopes = ("image", "client", "global")

    def keys(self, count, shape, rng):
        return {"rows": torch.randint(1, shape[1], (count,), generator=rng)}

    def encrypt(self, images, key, rng):
        return torch.stack([image.roll(int(row), 1) for image, row in zip(images, key["rows"], strict=True)])

    def decrypt(self, images, key, shape):
        return self.encrypt(images, {"rows": -key["rows"]}, None)


@dataclass(frozen=True)
class Plain(PerImageDefense):
    """Release images as they are."""

    def encrypt(self, images, key, rng):
        return images.clone()


@dataclass(frozen=True)
class IgnoresKey(Honest):
    """Roll every image by as many rows, whatever the key."""

    def encrypt(self, images, key, rng):
        return images.roll(3, 2)

    def decrypt(self, images, key, shape):
        return images.roll(-3, 2)


@dataclass(frozen=True)
class OneKey(Honest):
    """Draw a single key, however many are asked for."""

    def keys(self, count, shape, rng):
        return {"rows": torch.randint(1, shape[1], (1,), generator=rng)}

    def encrypt(self, images, key, rng):
        return images.roll(3, 2) if len(key["rows"]) == 0 else images.roll(int(key["rows"][0]), 2)

    def protect(self, private, keys, rng):
        images = self.encrypt(private.pixels, keys.values, rng)
        return Release(images, private.labels, torch.arange(len(private)))

    def query(self, images, keys, rng):
        return self.encrypt(images, keys.values, rng)

    def invert(self, release, keys, shape):
        return release.images.roll(-int(keys.values["rows"][0]), 2)


@dataclass(frozen=True)
class EqualKeys(Honest):
    """Draw the same key again and again."""

    def keys(self, count, shape, rng):
        return {"rows": torch.randint(1, shape[1], (1,), generator=rng).repeat(count)}


@dataclass(frozen=True)
class IgnoresOwners(Honest):
    """Give image i the key i, whoever owns it."""

    def protect(self, private, keys, rng):
        rows = torch.arange(len(private)) % len(keys.values["rows"])
        images = self.encrypt(private.pixels, {"rows": keys.values["rows"][rows]}, rng)
        return Release(images, private.labels, torch.arange(len(private)))

    def query(self, images, keys, rng):
        return super().query(images, keys, rng)


@dataclass(frozen=True)
class BadInverse(Honest):
    """Roll on instead of back."""

    def decrypt(self, images, key, shape):
        return images


@dataclass(frozen=True)
class SpoilsWhatItInverts(Plain):
    """Return grey in place of what could be seen."""

    def decrypt(self, images, key, shape):
        return torch.full_like(images, 0.5)


@dataclass(frozen=True)
class QueryPlain(Honest):
    """Send test images as they are."""

    def query(self, images, keys, rng):
        return images


@dataclass(frozen=True)
class QueryOfOtherShape(Plain):
    """Release half the side, send the whole."""

    def protect(self, private, keys, rng):
        return Release(private.pixels[:, :, ::2, ::2].clone(), private.labels, torch.arange(len(private)))


@dataclass(frozen=True)
class ColourOnly(Plain):
    """Swap the first and last of three channels."""

    def encrypt(self, images, key, rng):
        return images[:, [2, 1, 0]].clone()


@dataclass(frozen=True)
class ManyOnly(Plain):
    """Roll images by the spread of their labels."""

    def protect(self, private, keys, rng):
        spread = private.pixels.std(0)
        assert torch.isfinite(spread).all()
        return super().protect(private, keys, rng)


@dataclass(frozen=True)
class RefusesOne(Plain):
    """Want company."""

    def protect(self, private, keys, rng):
        from ppbench.errors import UserError

        if len(private) < 2:
            raise UserError("there is one image only")
        return super().protect(private, keys, rng)


@dataclass(frozen=True)
class EvenOnly(Plain):
    """Swap the upper and the lower half, which must be equal, and say nothing."""

    def encrypt(self, images, key, rng):
        height = images.shape[2]
        return images.reshape(*images.shape[:2], 2, height // 2, -1).flip(2).reshape(images.shape)

    def decrypt(self, images, key, shape):
        return self.encrypt(images, key, None)


@dataclass(frozen=True)
class CheckCrashes(Plain):
    """Fail to refuse."""

    def check(self, shape):
        if shape[1] != shape[2]:
            raise ValueError("not square")


@dataclass(frozen=True)
class GlobalNumpy(Plain):
    """Add noise of numpy's global generator."""

    def encrypt(self, images, key, rng):
        noise = np.random.rand(*images.shape).astype(np.float32)  # noqa: NPY002
        return (images + 0.01 * torch.from_numpy(noise)).clamp(0, 1)


@dataclass(frozen=True)
class SetsDtype(Plain):
    """Compute in float64 from now on."""

    def encrypt(self, images, key, rng):
        torch.set_default_dtype(torch.float64)
        return images.clone()


@dataclass(frozen=True)
class WritesImages(Plain):
    """Mirror the private images where they lie."""

    def encrypt(self, images, key, rng):
        return images.copy_(images.flip(3))

    def decrypt(self, images, key, shape):
        return images.flip(3)

    def query(self, images, keys, rng):
        return images.flip(3)


@dataclass(frozen=True)
class ClaimsNoPartner(Plain):
    """Say that nothing corresponds, release what does."""

    partnered = False


@dataclass(frozen=True)
class OutOfRange(Plain):
    """Release values from -1 to 1."""

    def encrypt(self, images, key, rng):
        return images * 2 - 1


@dataclass(frozen=True)
class Double(Plain):
    """Release float64."""

    def encrypt(self, images, key, rng):
        return images.double()


@dataclass(frozen=True)
class BadShares(Plain):
    """Release shares that do not sum to 1."""

    def protect(self, private, keys, rng):
        release = super().protect(private, keys, rng)
        return replace(release, soft_labels=torch.ones(len(private), 3))


@dataclass(frozen=True)
class WrongPieces(Plain):
    """Speak of blocks that do not tile every image it accepts."""

    def check(self, shape):
        check_divides("block", 4, shape)

    def pieces(self, shape):
        return Pieces(16, moved=False)


@dataclass(frozen=True)
class HiddenKeys(Plain):
    """Draw keys that nobody asks for."""

    def keys(self, count, shape, rng):
        return {"rows": torch.zeros(count)}


@dataclass(frozen=True)
class UnknownScope(Plain):
    """Know a key scope of its own."""

    key_scopes = ("household",)


@dataclass(frozen=True)
class LeavesTransformersBehind(Plain):
    """Halve the image, and let the victim see to itself."""

    def encrypt(self, images, key, rng):
        return images[:, :, ::2, ::2].clone()

    def decrypt(self, images, key, shape):
        return torch.nn.functional.interpolate(images, shape[1:], mode="bilinear").clamp(0, 1)


@dataclass(frozen=True)
class DropsUpdates(Plain):
    """Send no more than the first of the update's tensors."""

    def protect_update(self, update, rng):
        name = next(iter(update.values))
        return replace(update, values={name: update.values[name]})


@dataclass(frozen=True)
class NobodySends(Plain):
    """Say that no client is behind an update."""

    def protect_update(self, update, rng):
        return replace(update, clients=0)


@dataclass(frozen=True)
class AtHomeOnly(Plain):
    """Rest on the number of the process."""

    def encrypt(self, images, key, rng):
        return images[:, :, self._rows(images.shape[2])]

    def decrypt(self, images, key, shape):
        return images[:, :, self._rows(images.shape[2]).argsort()]

    @staticmethod
    def _rows(height):
        return torch.randperm(height, generator=torch.Generator().manual_seed(os.getpid()))
