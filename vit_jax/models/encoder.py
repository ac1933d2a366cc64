"""The Transformer encoder (paper 3.1, equations 2 and 3, and figure 1 right)."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.attention import self_attention
from vit_jax.models.axial import along_columns, along_rows
from vit_jax.models.layers import dense, gelu, norm_layer
from vit_jax.models.lora import Lora
from vit_jax.models.positions import absolute_positions

# What a block keeps of the forward pass for the backward pass; the rest is computed again. "none"
# recomputes nothing, "dots" keeps the results of matmuls with parameters, "full" the block's input.
REMATS = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

MLPS = ("plain", "swiglu")


def sharded_by_example(z: jax.Array) -> jax.Array:
    """Returns activations (b, n, d), of which the compiler knows that only axis b is sharded.

    It matters if parameters are sharded. Without it, the compiler may also shard the sums of
    matmuls, and insert collectives that add up their parts.
    """
    return nn.with_logical_constraint(z, ("batch", None, None))


class MlpBlock(nn.Module):
    """Dense(mlp_dim), GELU, dropout, Dense(d), dropout: (b, n, d) -> (b, n, d).

    Kernels start Xavier-uniform, biases almost at zero. Attributes are `VisionTransformer`'s;
    `kind` is its `mlp`, and `lora` the update of the dense layers, None for none.
    """

    mlp_dim: int
    dropout: float = 0.0
    kind: str = "plain"
    gelu: str = "tanh"
    implementation: str = "plain"
    dtype: Any = jnp.float32
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        width = x.shape[-1]
        layer = functools.partial(
            dense(self.implementation, self.lora),
            kernel_init=nn.initializers.xavier_uniform(),
            bias_init=nn.initializers.normal(stddev=1e-6),
            dtype=self.dtype,
        )
        y = layer(self.mlp_dim, name="Dense_0")(x)
        if self.kind == "swiglu":
            x = nn.silu(layer(self.mlp_dim, name="Gate")(x)) * y
        else:
            x = gelu(y, self.gelu, self.implementation)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = layer(width, name="Dense_1")(x)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class EncoderBlock(nn.Module):
    """z' = MSA(LN(z)) + z, then MLP(LN(z')) + z': (b, n, d) -> (b, n, d).

    Attributes:
      relative: True adds relative positions to the attention (paper D.4).
      tokens: number of tokens that are attended to, the first of the n. None for all. See
        `Encoder`.
      drop_path: probability that a residual branch is left out for an example, in training. Each
        of the two branches is drawn independently, and scaled to keep its expectation.
      lora: the update of the queries, the values and the MLP; None for none.
      others: as in `VisionTransformer`.
    """

    mlp_dim: int
    num_heads: int
    relative: bool = False
    tokens: int | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    mlp: str = "plain"
    norm: str = "layer"
    norm_epsilon: float = 1e-6
    gelu: str = "tanh"
    implementation: str = "plain"
    dtype: Any = jnp.float32
    lora: Lora | None = None

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        path = nn.Dropout(
            self.drop_path, broadcast_dims=(1, 2), deterministic=not train, name="drop_path"
        )
        how = dict(implementation=self.implementation, dtype=self.dtype)
        norm = norm_layer(self.norm, self.norm_epsilon, **how)
        how["lora"] = self.lora
        y = norm(name="LayerNorm_0")(z)
        y = self_attention(y, self.num_heads, relative=self.relative, tokens=self.tokens, **how)
        z = z + path(nn.Dropout(self.dropout, deterministic=not train)(y))
        y = norm(name="LayerNorm_1")(z)
        y = MlpBlock(self.mlp_dim, self.dropout, self.mlp, self.gelu, **how)(y, train=train)
        return z + path(y)


class AxialEncoderBlock(nn.Module):
    """An encoder block on the rows of the grid, then one on its columns: (b, n, d) -> (b, n, d).

    The block of Axial-ViT (paper D.6).

    Attributes:
      grid: (rows, columns) of the n tokens, which are numbered row by row.
      options: attributes of both `EncoderBlock`s.
    """

    grid: tuple[int, int]
    options: dict[str, Any]

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        row, column = (
            functools.partial(EncoderBlock(**self.options, name=name), train=train)
            for name in ("row", "column")
        )
        y = z.reshape(z.shape[0], *self.grid, z.shape[-1])
        return along_columns(column, along_rows(row, y)).reshape(z.shape)


class Encoder(nn.Module):
    """Adds positions, applies `depth` blocks and a last LayerNorm: (b, n, d) -> (b, n, d).

    Dropout comes right after the position embeddings, and after every dense layer but the query,
    key and value projections (paper B.1). In the blocks, registers follow the n tokens. cuDNN's
    attention needs an even number of tokens. If it is odd, the blocks get one more, which nothing
    attends to. It is left out of the result, as registers are.

    Attributes:
      grid: (rows, columns) of the patches, which are the last of the n tokens.
      residual_dtype: dtype of the tokens between the blocks.
      final_norm: True if there is a last LayerNorm.
      lora: see `EncoderBlock`.
      others: as in `VisionTransformer`.
    """

    grid: tuple[int, int]
    depth: int
    mlp_dim: int
    num_heads: int
    positions: str = "1d"
    positions_at: str = "stem"
    axial: bool = False
    registers: int = 0
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    mlp: str = "plain"
    norm: str = "layer"
    pre_norm: bool = False
    final_norm: bool = True
    norm_epsilon: float = 1e-6
    gelu: str = "tanh"
    remat: str = "none"
    scan: bool = False
    implementation: str = "plain"
    residual_dtype: Any = jnp.float32
    dtype: Any = jnp.float32
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def apply(block, z):
            return sharded_by_example(block(z, train=train))

        # `nn.remat`, not `jax.checkpoint`: the blocks are bound to their parameters, so JAX doesn't
        # see these among the arguments.
        if train and self.remat != "none":
            apply = nn.remat(apply, policy=REMATS[self.remat])
        b, n, width = x.shape
        tokens = n + self.registers
        # One token is added here, once for all blocks. If blocks depend on n (relative positions,
        # positions in every block, axial blocks), the attention of each adds one itself.
        padded = (
            self.implementation == "cudnn"
            and tokens % 2
            and not self.axial
            and self.positions != "relative"
            and self.positions_at == "stem"
        )
        how = dict(implementation=self.implementation, dtype=self.dtype)
        options = dict(
            mlp_dim=self.mlp_dim,
            num_heads=self.num_heads,
            tokens=tokens if padded else None,
            relative=self.positions == "relative",
            dropout=self.dropout,
            mlp=self.mlp,
            norm=self.norm,
            norm_epsilon=self.norm_epsilon,
            gelu=self.gelu,
            lora=self.lora,
            **how,
        )
        positions_class = absolute_positions(self.positions, self.grid)
        if positions_class and self.positions_at != "layers":
            input_positions = positions_class(name="posembed_input")

        def add_positions(i, z):
            """Returns tokens with the positions that are added before block i, if there are any."""
            if positions_class and self.positions_at == "layers":
                return positions_class(name=f"posembed_{i}")(z)
            if positions_class and (self.positions_at == "shared" or i == 0):
                return input_positions(z)
            return z

        def block(i, **module):
            drop_path = self.stochastic_depth * i / max(1, self.depth - 1)
            if self.axial:
                return AxialEncoderBlock(self.grid, {**options, "drop_path": drop_path}, **module)
            return EncoderBlock(**options, drop_path=drop_path, **module)

        z = jnp.asarray(add_positions(0, x), self.residual_dtype)
        if r := self.registers:
            registers = self.param("registers", nn.initializers.normal(0.02), (1, r, width))
            registers = jnp.broadcast_to(registers.astype(z.dtype), (b, r, width))
            z = jnp.concatenate([z, registers], axis=1)
        z = nn.Dropout(self.dropout, deterministic=not train)(z)
        norm = functools.partial(
            norm_layer, self.norm, self.norm_epsilon, implementation=self.implementation
        )
        if self.pre_norm:
            z = norm(dtype=z.dtype)(name="pre_norm")(z)
        if padded:
            z = jnp.pad(z, ((0, 0), (0, 1), (0, 0)))
        self.sow("intermediates", "input_of_blocks", z)  # does nothing, unless it is asked for
        if train and self.scan:
            z = self._scanned(block(0, parent=None), z)
        else:
            for i in range(self.depth):
                z = apply(block(i, name=f"encoderblock_{i}"), add_positions(i, z) if i else z)
        z = z[:, :n]
        return norm(dtype=jnp.float32)(name="encoder_norm")(z) if self.final_norm else z

    def _scanned(self, block: nn.Module, z: jax.Array) -> jax.Array:
        """Returns tokens after all blocks, computed as one loop over their stacked parameters.

        Args:
          block: any of the blocks, which are all alike; it isn't bound to parameters.
          z: tokens (b, n, d).
        """
        stored = self.variables["params"]
        layers = [stored[f"encoderblock_{i}"] for i in range(self.depth)]
        key = self.make_rng("dropout") if self.has_rng("dropout") else jax.random.key(0)

        def apply(z, layer):
            params, key = layer
            z = block.apply({"params": params}, z, train=True, rngs={"dropout": key})
            return sharded_by_example(z), None

        # `jax.checkpoint`, not `nn.remat`: the block isn't bound, and its parameters are arguments.
        # In a loop, XLA can't undo the second computation, so no barriers (prevent_cse) are needed.
        if self.remat != "none":
            apply = jax.checkpoint(apply, policy=REMATS[self.remat], prevent_cse=False)
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *layers)
        return jax.lax.scan(apply, z, (stacked, jax.random.split(key, self.depth)))[0]
