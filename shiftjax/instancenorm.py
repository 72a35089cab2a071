"""Instance norm, whose statistics can be recorded and given.

A picture too large for the memory is computed in tiles. A tile's own statistics are not
the picture's; with one set of statistics for all tiles there is no seam between them.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

COLLECTION = "instance_stats"


class InstanceNorm(nn.Module):
    """Normalises each channel of each picture over its pixels, then scales and adds.

    `y = (x - mean) / sqrt(var + epsilon) * scale + bias`, the variance biased. Mean and
    variance are computed in float32 at least, and are those of

    - the collection "instance_stats", where the variables have it;
    - else the picture itself, in training and afterwards.

    The picture's own are recorded where that collection is mutable.

    Source: Ulyanov et al. 2016, https://arxiv.org/abs/1607.08022.

    Attributes:
      epsilon: added to the variances.
      dtype: of the result, or None for the promoted dtype of input and params.
      param_dtype: what the params are stored in.

    Example:
      >>> x = jnp.arange(8.0).reshape(1, 4, 1, 2)
      >>> norm = InstanceNorm()
      >>> params = norm.init(jax.random.key(0), x)
      >>> jax.tree.map(jnp.shape, params)
      {'params': {'bias': (2,), 'scale': (2,)}}
      >>> y, recorded = norm.apply(params, x, mutable=["instance_stats"])
      >>> recorded["instance_stats"]["mean"].tolist()
      [[3.0, 4.0]]
      >>> tile = norm.apply(params | recorded, x[:, 1:3])  # with those of the whole
      >>> bool(jnp.allclose(tile, y[:, 1:3]))
      True
    """

    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `[batch, height, width, channels]`."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        dtype: Any = self.dtype or jnp.promote_types(x.dtype, self.param_dtype)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, var = self._statistics(x)
        factor = jax.lax.rsqrt(var + self.epsilon) * scale
        y = (x - mean[:, None, None]) * factor[:, None, None] + bias
        return y.astype(dtype)

    def _statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance `[batch, channels]`, given or its own."""
        own = {"mean": x.mean((1, 2)), "var": x.var((1, 2))}
        used = dict(self.variables.get(COLLECTION, own))
        if self.is_mutable_collection(COLLECTION) and not self.is_initializing():
            for name, value in own.items():
                self.put_variable(COLLECTION, name, value)
        return used["mean"], used["var"]
