"""Layers for images: decoding files to pixels, and elastic distortion."""

from __future__ import annotations

from typing import Any, Literal

import keras
from keras import ops

Tensor = Any
Fit = Literal["stretch", "pad", "crop"]


@keras.saving.register_keras_serializable(package="kerasloom")
class DecodeImages(keras.layers.Layer):
    """Files of images to pixels of one size: PNG, JPEG, BMP, WebP, and of a GIF the first frame.

    Images of another size are resized by bilinear interpolation, smoothed first where they get smaller. Transparency is
    dropped. Colours become grey with the weights of ITU-R BT.601; a grey image becomes three equal channels.
    TensorFlow backend only, as every operation on strings.

    Args:
        height: Rows of the result.
        width: Columns of the result.
        channels: 1 (grey) or 3 (red, green, blue).
        fit: What becomes of an image with another ratio of sides: `stretch` it; make it fit inside and `pad` it with
            zeros; or fill the whole and `crop` it, around the centre in both cases.

    Call arguments:
        files: Contents of the files, strings `(batch, 1)`. "" gives zeros.

    Output shape: `(batch, height, width, channels)`, uint8, 0 to 255.

    Raises:
        ValueError: A size below 1, other channels, or an unknown `fit`.

    Example:
        >>> import tensorflow as tf
        >>> file = tf.io.encode_png(tf.constant([[[0], [255]], [[255], [0]]], "uint8"))
        >>> DecodeImages(2, 4, 3)(file[None, None]).shape
        TensorShape([1, 2, 4, 3])
    """

    def __init__(self, height: int, width: int, channels: int = 3, fit: Fit = "stretch", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if min(height, width) < 1:
            raise ValueError(f"height and width must be at least 1, not {height} and {width}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {channels}")
        if fit not in ("stretch", "pad", "crop"):
            raise ValueError(f"fit must be 'stretch', 'pad' or 'crop', not {fit!r}")
        self.height = height
        self.width = width
        self.channels = channels
        self.fit = fit

    def call(self, files: Tensor) -> Tensor:
        """Decode one file after the other: each has a size of its own."""
        import tensorflow as tf

        return tf.map_fn(self._decode, files[:, 0], fn_output_signature=tf.uint8, parallel_iterations=1)

    def _decode(self, file: Tensor) -> Tensor:
        import tensorflow as tf

        def pixels() -> Tensor:
            image = tf.io.decode_image(file, expand_animations=False)
            image.set_shape((None, None, None))
            image = self._with_channels(image)
            as_it_is = tf.reduce_all(tf.shape(image)[:2] == [self.height, self.width])
            return tf.cond(as_it_is, lambda: image, lambda: self._resize(image))

        shape = (self.height, self.width, self.channels)
        empty = tf.strings.length(file) == 0
        return tf.ensure_shape(tf.cond(empty, lambda: tf.zeros(shape, tf.uint8), pixels), shape)

    def _with_channels(self, image: Tensor) -> Tensor:
        """The colours or the grey that the file holds, as this layer's channels."""
        import tensorflow as tf

        colored = tf.shape(image)[2] >= 3
        if self.channels == 1:
            return tf.cond(colored, lambda: tf.image.rgb_to_grayscale(image[..., :3]), lambda: image[..., :1])
        return tf.cond(colored, lambda: image[..., :3], lambda: tf.repeat(image[..., :1], 3, axis=2))

    def _resize(self, image: Tensor) -> Tensor:
        import tensorflow as tf

        size = tf.constant([self.height, self.width])
        if self.fit != "stretch":
            own = tf.cast(tf.shape(image)[:2], tf.float32)
            ratios = tf.cast(size, tf.float32) / own
            ratio = tf.reduce_min(ratios) if self.fit == "pad" else tf.reduce_max(ratios)
            size = tf.maximum(1, tf.cast(tf.round(own * ratio), tf.int32))
        resized = tf.image.resize(image, size, antialias=True)
        if self.fit != "stretch":
            resized = tf.image.resize_with_crop_or_pad(resized, self.height, self.width)
        return tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8)

    def compute_output_spec(self, files: keras.KerasTensor) -> keras.KerasTensor:
        """Pixels of every file."""
        return keras.KerasTensor((files.shape[0], self.height, self.width, self.channels), "uint8")

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        own = {"height": self.height, "width": self.width, "channels": self.channels, "fit": self.fit}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="kerasloom")
class RandomElastic(keras.layers.Layer):
    """Elastic distortion (Simard, Steinkraus and Platt 2003): every pixel moves, neighbours about the same way.

    out[y, x] = image[y + u(y, x), x + v(y, x)], bilinear between pixels. u and v are white noise smoothed by a Gaussian
    of width `smoothness` and scaled to a standard deviation of `strength`, a field of its own for every image.
    `keras.layers.RandomElasticTransform` has one field for both directions and needs a batch of known size.

    Args:
        strength: Standard deviation of the displacement, in pixels.
        smoothness: Standard deviation of the Gaussian, in pixels; the larger, the stiffer the image.
        seed: Of the layer's seed generator.

    Call arguments:
        images: `(batch, height, width, channels)`.
        training: Whether to distort; otherwise images are returned as they are.

    Output shape: that of `images`, in the layer's compute dtype. What comes in from beyond an edge is zero.

    Raises:
        ValueError: A strength below 0, or a smoothness that is not above 0.

    Example:
        >>> RandomElastic(2.0, 4.0)(keras.ops.ones((5, 28, 28, 1)), training=True).shape
        TensorShape([5, 28, 28, 1])
    """

    def __init__(self, strength: float, smoothness: float = 4.0, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if strength < 0 or smoothness <= 0:
            raise ValueError(f"strength must not be negative, smoothness above 0, not {strength} and {smoothness}")
        self.strength = strength
        self.smoothness = smoothness
        self.seed = seed
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, images: Tensor, training: bool = True) -> Tensor:
        """Distort every image by a field of its own."""
        images = ops.cast(images, self.compute_dtype)
        return self._moved(images, self._displacements(ops.shape(images))) if training else images

    def _displacements(self, shape: Any) -> Tensor:
        """Smoothed noise `(batch, height, width, 2)` with the standard deviation that is asked for."""
        batch, height, width = shape[0], shape[1], shape[2]
        noise = keras.random.normal((batch, height, width, 2), dtype="float32", seed=self.generator)
        rows, columns = (_gaussian_matrix(size, self.smoothness) for size in (height, width))
        smooth = ops.einsum("iy,byxc,jx->bijc", rows, noise, columns)
        # Rows of the matrices have an L2 norm of 1, so what they make of unit noise has a variance of 1 everywhere.
        return ops.cast(self.strength * smooth, self.compute_dtype)

    def _moved(self, images: Tensor, displacements: Tensor) -> Tensor:
        _, height, width, channels = images.shape
        batch = ops.shape(images)[0]
        grid = ops.stack(ops.meshgrid(ops.arange(height), ops.arange(width), indexing="ij"), axis=-1)
        places = ops.cast(grid, self.compute_dtype)[None] + displacements
        corner = ops.floor(places)
        part = places - corner
        first = ops.cast(corner, "int32")
        padded = ops.reshape(ops.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]]), (-1, channels))
        starts = ops.arange(batch)[:, None, None] * ((height + 2) * (width + 2))
        result = 0.0
        for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
            row = ops.clip(first[..., 0] + down + 1, 0, height + 1)
            column = ops.clip(first[..., 1] + right + 1, 0, width + 1)
            vertical = part[..., 0] if down else 1 - part[..., 0]
            horizontal = part[..., 1] if right else 1 - part[..., 1]
            pixels = ops.take(padded, starts + row * (width + 2) + column, axis=0)
            result = result + (vertical * horizontal)[..., None] * pixels
        return result

    def compute_output_spec(self, images: keras.KerasTensor, training: bool = True) -> keras.KerasTensor:
        """As the images."""
        return keras.KerasTensor(images.shape, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Arguments of `__init__`."""
        own = {"strength": self.strength, "smoothness": self.smoothness, "seed": self.seed}
        return {**super().get_config(), **own}


class StepSeeds:
    """Seeds that follow from a step alone: layers that draw from it give the same numbers in the same step.

    Keras' own generators keep a state that goes on with every call, so what they give depends on all calls before.

    Example:
        >>> seeds, layer = StepSeeds(), RandomElastic(2.0)
        >>> seeds.seed(layer)
        >>> image = keras.random.uniform((1, 8, 8, 1), seed=0)
        >>> seeds.start(ops.array([5, 7]))
        >>> first = layer(image)
        >>> seeds.start(ops.array([5, 7]))
        >>> bool(ops.all(layer(image) == first))
        True
    """

    def __init__(self) -> None:
        self._base: Any = None
        self._draws = 0

    def start(self, base: Tensor) -> None:
        """Begin a step, which is named by two integers, a tensor `(2,)`."""
        self._base, self._draws = base, 0

    def next(self, ordered: bool = True) -> Tensor:
        """A seed that no other draw of the step has."""
        self._draws += 1
        return self._base + ops.convert_to_tensor([0, self._draws], self._base.dtype)

    def seed(self, layer: keras.layers.Layer) -> None:
        """Let the generators of a layer, and of all layers inside it, give these seeds instead of their own."""
        for part in layer._flatten_layers():
            for name in ("generator", "seed_generator"):
                generator = getattr(part, name, None)
                if isinstance(generator, keras.random.SeedGenerator):
                    generator.next = self.next


def _gaussian_matrix(size: int, width: float) -> Tensor:
    """Smoothing along one side as a matrix `(size, size)`; each row is a Gaussian around its place, of L2 norm 1."""
    places = ops.arange(size, dtype="float32")
    weights = ops.exp(-0.5 * ((places[:, None] - places[None, :]) / width) ** 2)
    return weights / ops.sqrt(ops.sum(weights**2, axis=1, keepdims=True))
