"""Face networks: a classifier of the training identities shapes their embeddings.

The task is the face verification of Wu et al. 2018 (https://arxiv.org/abs/1711.08141,
section 4). The classifier, and the centers of the center loss, belong to training: they
are in the checkpoints of a run, and not in released weights.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from shiftjax.apps.face_pairs import choose_folds, read_pairs
from shiftjax.errors import InputError
from shiftjax.models import facenet
from shiftjax.models.facenet import FaceNet, l2_normalize
from train.config import Augment, Config, published
from train.data.augment import normalize, numbers
from train.data.examples import Examples
from train.data.resident import Resident, images_and_labels
from train.faces.losses import arcface_logits, center_losses, move_centers
from train.faces.options import Faces
from train.faces.pairs import PairSet, load_images, people
from train.parallel import AXIS
from train.state import CLASSIFIER
from train.tasks.classification import augmented, check_classes, ranks
from train.tasks.models import make_model
from train.tasks.task import Collections, Item, Sums, total

Batch = tuple[jax.Array, jax.Array]
CENTERS = "centers"  # the collection of the centers
SHOWN = 5  # names in one message


class Cosines(nn.Module):
    """The cosines of embeddings of length 1 and one vector for each identity.

    Attributes:
      features: number of identities.
    """

    features: int

    @nn.compact
    def __call__(self, embeddings: jax.Array) -> jax.Array:
        """Computes `[batch, identities]` from `[batch, features]`."""
        shape = embeddings.shape[-1], self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        vectors = l2_normalize(kernel.T).T
        return jnp.matmul(embeddings, vectors, precision=lax.Precision.HIGHEST)


class FaceClassifier(nn.Module):
    """A face network with a classifier.

    Its variables are those of the network, with the parameters of the classifier under
    the name "classifier" beside them.

    Attributes:
      net: the face network.
      num_classes: number of identities.
      loss: the loss, as in `Faces`.
    """

    net: FaceNet
    num_classes: int
    loss: Literal["arcface", "softmax_center"]

    @property
    def momentum(self) -> float:
        """The momentum of BatchNorm's running statistics."""
        return self.net.momentum

    def setup(self) -> None:
        """Gives the network's variables no name of their own."""
        nn.share_scope(self, self.net)

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Computes embeddings and the outputs of the classifier.

        Args:
          images: `[batch, height, width, channels]`, normalized.
          train: if True, BatchNorm uses the statistics of the batch.

        Returns:
          Embeddings `[batch, features]`, and `[batch, identities]`: cosines for
          ArcFace, else logits.
        """
        embeddings: Any = self.net(images, train)
        if self.loss == "arcface":
            return embeddings, Cosines(self.num_classes, name=CLASSIFIER)(embeddings)
        shape = self.num_classes, embeddings.shape[-1]
        if self.is_initializing():  # the task reads them, and moves them
            self.variable(CENTERS, CENTERS, jnp.zeros, shape)
        dense = nn.Dense(
            self.num_classes, precision=lax.Precision.HIGHEST, name=CLASSIFIER
        )
        return embeddings, dense(embeddings)


@dataclasses.dataclass(frozen=True)
class FaceRecognition:
    """The task of face networks; see `train.tasks.task.Task`.

    Attributes:
      model: maps images to embeddings and the outputs of the classifier.
      options: the options of the losses.
      mean: mean of each channel, for values in 0 .. 1.
      std: standard deviation of each channel, for values in 0 .. 1.
      augment: the augmentation of training images.
    """

    model: FaceClassifier
    options: Faces
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = dataclasses.field(default_factory=Augment)

    best_metric: ClassVar[str] = "top1"
    best_mode: ClassVar[Literal["max", "min"]] = "max"
    labelled: ClassVar[bool] = True

    @classmethod
    def make(cls, config: Config, examples: Examples) -> "FaceRecognition":
        """Makes the task of a configuration.

        Raises:
          InputError: if the network does not exist, an option does not fit, or the data
            have one person only.
        """
        _check_options(config)
        check_classes(config, examples)
        net = make_model(
            config,
            remat=config.model.remat,
            axis_name=AXIS if config.model.sync_batch_norm else None,
        )
        if not isinstance(net, FaceNet):
            names = ", ".join(facenet.VARIANTS)
            raise InputError(
                f"--model.name {config.model.name} embeds no faces: one of {names}"
            )
        return cls(
            FaceClassifier(net, examples.num_classes, config.faces.loss),
            config.faces,
            config.data.mean,
            config.data.std,
            config.augment,
        )

    @classmethod
    def load_split(
        cls, config: Config, split: str, read: Callable[..., Examples]
    ) -> Examples:
        """Loads a split; with pairs, these are the test, without people in training.

        With `--faces.folds` the test is those folds of the pairs, and people of the
        others are trained on.

        Raises:
          MissingFileError: if the file or the images of the pairs do not exist.
          InputError: if an option is missing, the file of pairs is malformed, or the
            source cannot leave out the people in the pairs.
        """
        options = config.faces
        if options.min_images > 1:
            if not config.data.source.startswith("folder:"):
                raise InputError(
                    f"--faces.min-images {options.min_images}: only a folder can leave "
                    f"people out, and not {config.data.source}; 1 leaves out nobody"
                )
            read = functools.partial(read, min_images=options.min_images)
        if options.pairs is None and options.images is None:
            if options.folds:
                raise InputError(
                    f"--faces.folds {_listed(options.folds)} needs --faces.pairs"
                )
            return read()
        if options.pairs is None or options.images is None:
            missing = "images" if options.images is None else "pairs"
            raise InputError(
                f"--faces.{missing} is missing: the test needs --faces.pairs, a file, "
                "and --faces.images, a folder"
            )
        pairs = read_pairs(options.pairs, options.images)
        chosen = choose_folds(pairs, options.folds)
        tested = people(chosen)
        if split != "test":
            examples = read(without=tested, cut_test=False)
            _check_apart(examples, tested, config)
            return examples
        training = read(without=tested, decode="each_epoch")
        _check_apart(training, tested, config)
        if len(options.folds) == 1:  # the others choose the threshold
            chosen = pairs
        return load_images(chosen, config.data, training.class_names, options.folds)

    @staticmethod
    def class_names(examples: Examples) -> tuple[str, ...]:
        """Returns no names, because the outputs are embeddings."""
        del examples
        return ()

    @staticmethod
    def card_fields(config: Config, test: Mapping[str, float]) -> dict[str, Any]:
        """Returns the threshold for use, if pairs have been verified."""
        if "threshold" not in test:
            return {}
        faces = published(config).faces
        pairs, folds = faces.pairs, _listed(faces.folds)
        source = {
            0: f"all pairs of {pairs}",
            1: f"{pairs} without fold {folds}",
        }.get(len(faces.folds), f"the folds {folds} of {pairs}")
        return {"threshold": test["threshold"], "threshold_source": source}

    def data(self, images: Resident | None) -> Resident | None:
        """Returns the resident images, the only array that the task needs."""
        return images

    def batch(self, data: Resident | None, item: Item, key: jax.Array) -> Batch:
        """Makes a training batch: images `[batch, ...]` and labels."""
        images, labels = images_and_labels(data, item)
        index, options = numbers(item), self.augment
        return augmented(key, images, index, options, self.mean, self.std), labels

    def loss(self, variables: Collections, batch: Batch) -> tuple[jax.Array, Any]:
        """Computes the mean loss, counts correct predictions, and moves the centers."""
        images, labels = batch
        (embeddings, outputs), updates = self.model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        loss = self._losses(outputs, labels).mean()
        correct = (outputs.argmax(-1) == labels).sum(dtype=jnp.float32)
        sums = {"top1": correct, "examples": jnp.float32(len(labels))}
        if self.options.loss == "arcface":
            return loss, (updates, sums)
        centers = variables[CENTERS][CENTERS]
        distances = center_losses(embeddings, labels, centers)
        rate = self.options.center_rate
        moved = move_centers(centers, lax.stop_gradient(embeddings), labels, rate)
        return loss + self.options.center_weight * distances.mean(), (
            {**updates, CENTERS: {CENTERS: moved}},
            sums | {"center_loss": distances.sum()},
        )

    def evaluate(
        self, variables: Collections, data: Resident | None, item: Item
    ) -> tuple[Sums, dict[str, jax.Array]]:
        """Sums losses and correct predictions, and embeds the images.

        The loss has no center loss, because the centers are no variables of evaluation.
        An embedding is the sum of those of the image and of its mirror image.
        """
        images, labels = images_and_labels(data, item)
        images = normalize(images, self.mean, self.std)
        embed: Any = functools.partial(self.model.apply, variables)
        embeddings, outputs = embed(images)
        mirrored, _ = embed(images[:, :, ::-1])
        values = {
            "loss": self._losses(outputs, labels),
            "top1": ranks(outputs, labels) < 1,
        }
        return total(values, item), {"embeddings": embeddings + mirrored}

    def metrics(
        self, sums: dict[str, Any], rows: dict[str, Any], examples: Examples
    ) -> dict[str, float]:
        """Returns means over the examples, or the metrics of verification of pairs."""
        if isinstance(examples, PairSet):
            return examples.verify(rows["embeddings"])
        return {name: float(sums[name]) / len(examples) for name in ("loss", "top1")}

    def sample(self, variables: Collections, examples: Examples) -> None:
        """Draws nothing."""

    def _losses(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Computes the cross-entropy of each example."""
        if self.options.loss == "arcface":
            margin, scale = self.options.margin, self.options.scale
            outputs = arcface_logits(outputs, labels, margin, scale)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)


def _check_options(config: Config) -> None:
    """Raises InputError for an option of other tasks that would have no effect."""
    for name, value in {
        "label-smoothing": config.label_smoothing,
        "augment.mixup": config.augment.mixup,
        "augment.cutmix": config.augment.cutmix,
    }.items():
        if value:
            raise InputError(f"--{name} {value}: the task faces allows only 0")
    if config.faces.loss == "softmax_center" and config.accumulate > 1:
        raise InputError(
            f"--accumulate {config.accumulate}: the loss softmax_center allows only 1"
        )


def _listed(folds: tuple[int, ...]) -> str:
    """Formats folds as they are given in the command."""
    return " ".join(map(str, folds))


def _check_apart(examples: Examples, tested: frozenset[str], config: Config) -> None:
    """Raises InputError if a person of the test is in training."""
    both = [name for name in examples.class_names if name in tested]
    if both:
        more = ", ..." if len(both) > SHOWN else ""
        raise InputError(
            f"{config.data.source} has {len(both)} people of {config.faces.pairs}, and "
            f"only a folder can leave them out: {', '.join(both[:SHOWN])}{more}"
        )
