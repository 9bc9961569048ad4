"""What a federated server sees, made directly: a model, images, and what clients send of them."""

from dataclasses import dataclass

from torch import Tensor

from ppbench.data import Images
from ppbench.model import Model
from ppbench.ref import Ref
from ppbench.updates import client_update
from ppbench.view import Algorithm, Sealed, View

GRANTED = frozenset({"model", "gradients", "public", "algorithm"})
PLAIN = Algorithm(Ref("defenses", "none"), None, 8)


@dataclass(frozen=True)
class Server:
    """A server, and how its clients answer.

    Attributes:
        model: with weights.
        public: images that it has, with labels.
        classes: number of classes.
        batch: images a client.
        local_steps: of a client.
        learning_rate: of these.
        algorithm: the defense that the images went through.
    """

    model: Model
    public: Images
    classes: int
    batch: int = 1
    local_steps: int = 1
    learning_rate: float = 0.01
    algorithm: Algorithm = PLAIN

    def sees(self, pixels: Tensor, labels: Tensor) -> View:
        """Return its view of images `[N, c, h, w]` in [0, 1]."""
        update = client_update(self.model, pixels, labels, batch=self.batch, local_steps=self.local_steps,
                               learning_rate=self.learning_rate, bn_train=False)
        shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        return View(Sealed(GRANTED, shape, shape, len(pixels), self.classes, public=self.public, model=self.model,
                           update=update, algorithm=self.algorithm))
