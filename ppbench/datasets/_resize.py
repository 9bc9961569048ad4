"""One way to make images square, shared by the data sets that read files of any size."""

import numpy as np
from PIL import Image


def square(image: np.ndarray, size: int) -> np.ndarray:
    """Crop an image to its central square and resize it (bicubic, antialiased) to `size` pixels.

    Pillow's integer arithmetic gives the same bytes on every machine, so that targets do not differ by processor.

    Args:
        image: uint8 `[H, W, C]`, C 1 or 3.
        size: side of the result in pixels.

    Returns:
        uint8 `[size, size, C]`.
    """
    height, width, channels = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = image[top : top + side, left : left + side]
    if side == size:
        return image
    picture = Image.fromarray(np.ascontiguousarray(image[:, :, 0] if channels == 1 else image))
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)).reshape(size, size, channels)


def squares(images: np.ndarray, size: int | None) -> np.ndarray:
    """Apply `square` to every image of `[N, H, W, C]`; None leaves them as they are."""
    if size is None or images.shape[1:3] == (size, size):
        return images
    return np.stack([square(image, size) for image in images])
