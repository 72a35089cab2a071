"""The losses of face networks: ArcFace and the center loss."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from train.parallel import AXIS

LEAST_SQUARE = 1e-6  # of the sine, whose slope would be infinite at zero


def arcface_logits(
    cosines: jax.Array, labels: jax.Array, margin: float, scale: float
) -> jax.Array:
    """Computes the logits of ArcFace, whose softmax cross-entropy is the loss.

    The logit of an example's own identity is `scale * cos(angle + margin)`, and that of
    any other is `scale * cos(angle)`. Where the sum of the angles is above pi, the
    cosine would rise again. There the authors' code has
    `scale * (cos(angle) - margin * sin(margin))`, which falls.

    Source: Deng et al. 2019, *ArcFace: Additive Angular Margin Loss for Deep Face
    Recognition*, https://arxiv.org/abs/1801.07698.

    Args:
      cosines: `[batch, identities]`, of an embedding and the vector of an identity.
      labels: int `[batch]`, the own identities.
      margin: the angle to add, in radians, 0 to pi / 2.
      scale: factor of the cosines.

    Returns:
      `[batch, identities]`. The gradient is finite for all cosines in -1 .. 1: the
      square of the sine is at least `LEAST_SQUARE`.

    Example:
      >>> cosines = jnp.cos(jnp.array([[0.5, 2.0], [0.5, 2.0]]))
      >>> logits = arcface_logits(cosines, jnp.array([0, 1]), margin=0.1, scale=1.0)
      >>> [f"{angle:.2f}" for angle in jnp.arccos(logits).ravel()]
      ['0.60', '2.00', '0.50', '2.10']
    """
    own = jnp.take_along_axis(cosines, labels[:, None], 1)
    sine = jnp.sqrt(jnp.maximum((1 - own) * (1 + own), LEAST_SQUARE))
    moved = jnp.where(
        own > -math.cos(margin),
        own * math.cos(margin) - sine * math.sin(margin),
        own - margin * math.sin(margin),
    )
    is_own = jnp.arange(cosines.shape[1]) == labels[:, None]
    return scale * jnp.where(is_own, moved, cosines)


def center_losses(
    embeddings: jax.Array, labels: jax.Array, centers: jax.Array
) -> jax.Array:
    """Computes half the squared distance of each embedding to its identity's center.

    Source: Wen et al. 2016, *A Discriminative Feature Learning Approach for Deep Face
    Recognition*, https://doi.org/10.1007/978-3-319-46478-7_31, equation 2.

    Args:
      embeddings: `[batch, features]`.
      labels: int `[batch]`.
      centers: `[identities, features]`.

    Returns:
      `[batch]`.
    """
    return jnp.square(embeddings - centers[labels]).sum(-1) / 2


def move_centers(
    centers: jax.Array, embeddings: jax.Array, labels: jax.Array, rate: float
) -> jax.Array:
    """Moves the center of each identity towards its embeddings of a batch.

    With the `n` embeddings of an identity, its center moves by `rate` times the sum of
    their differences to it, divided by `1 + n`. So one with few embeddings moves less,
    and one without stays. Equation 4 of Wen et al. 2016, see `center_losses`.

    It is computed as a product of matrices, because additions by index are not in a
    fixed order on a GPU.

    Args:
      centers: `[identities, features]`, equal on every device.
      embeddings: `[batch, features]`, of this device's share of the batch.
      labels: int `[batch]`.
      rate: 0 to 1.

    Returns:
      The new centers, equal on every device.
    """
    own = jax.nn.one_hot(labels, len(centers), dtype=centers.dtype)
    differences = embeddings - centers[labels]
    sums = jnp.matmul(own.T, differences, precision=lax.Precision.HIGHEST)
    sums, counts = lax.psum((sums, own.sum(0)), AXIS)
    return centers + rate * sums / (1 + counts[:, None])
