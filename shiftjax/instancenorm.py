"""Instance norm with statistics that can be recorded and given.

An image too large for the memory is computed in tiles. The statistics of a tile differ
from those of the image. With one set of statistics for all tiles there are no seams.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

COLLECTION = "instance_stats"


class InstanceNorm(nn.Module):
    """Normalizes each channel of each image over its pixels, with scale and bias.

    `y = (x - mean) / sqrt(var + epsilon) * scale + bias`, with the biased variance.
    Mean and variance are those of the collection "instance_stats" if the variables have
    it, and those of the image itself otherwise, in training and in evaluation. They are
    computed in float32 at least. If that collection is mutable, the statistics of the
    image are recorded in it.

    Source: Ulyanov et al. 2016, https://arxiv.org/abs/1607.08022.

    Attributes:
      epsilon: constant added to the variances.
      dtype: dtype of the result; None for the promoted dtype of input and params.
      param_dtype: dtype of the params.

    Example:
      >>> x = jnp.arange(8.0).reshape(1, 4, 1, 2)
      >>> norm = InstanceNorm()
      >>> params = norm.init(jax.random.key(0), x)
      >>> jax.tree.map(jnp.shape, params)
      {'params': {'bias': (2,), 'scale': (2,)}}
      >>> y, recorded = norm.apply(params, x, mutable=["instance_stats"])
      >>> recorded["instance_stats"]["mean"].tolist()
      [[3.0, 4.0]]
      >>> tile = norm.apply(params | recorded, x[:, 1:3])  # with all statistics
      >>> bool(jnp.allclose(tile, y[:, 1:3]))
      True
    """

    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes a batch of feature maps.

        Args:
          x: `[batch, height, width, channels]`.

        Returns:
          The same shape, in `dtype`.
        """
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        dtype: Any = self.dtype or jnp.promote_types(x.dtype, self.param_dtype)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, var = self._statistics(x)
        factor = jax.lax.rsqrt(var + self.epsilon) * scale[None]
        y = (x - mean[:, None, None]) * factor[:, None, None] + bias[None, None, None]
        return y.astype(dtype)

    def _statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns mean and variance `[batch, channels]`, given or computed."""
        own = {"mean": x.mean((1, 2)), "var": x.var((1, 2))}
        used = dict(self.variables.get(COLLECTION, own))
        if self.is_mutable_collection(COLLECTION) and not self.is_initializing():
            for name, value in own.items():
                self.put_variable(COLLECTION, name, value)
        return used["mean"], used["var"]
