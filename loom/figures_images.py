"""Figures of images, and of what a model sees in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from loom.data.pipeline import Batches
from loom.lazy import keras, tf
from loom.report import PLAIN, new_figure, plain_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from loom.run import Run

MOST_SHOWN, MOST_MAPS = 64, 8
"""Filters in a figure, and maps of each convolution."""


def image_grid(
    images: np.ndarray,
    titles: Sequence[str] = (),
    title: str = "",
    columns: int = 8,
    heat: np.ndarray | None = None,
    limits: tuple[float, float] | None = None,
    width: float = 1.3,
) -> Figure:
    """Images side by side, row after row.

    Args:
        images: (count, height, width, 1 or 3), uint8, or floats from 0 to 1.
        titles: One for each image, or none.
        title: Of the whole figure.
        columns: Images in a row.
        heat: Numbers from 0 to 1 (count, height, width) that are laid over the images in colours.
        limits: Values of grey images that become black and white, where not 0 and 1.
        width: Of an image, in inches.
    """
    from matplotlib.figure import Figure

    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    aspect = images.shape[1] / images.shape[2]
    lines = max((text.count("\n") + 1 for text in titles), default=0)
    height = rows * (width * aspect + 0.18 * lines + 0.05) + (0.35 if title else 0)
    figure = Figure(figsize=(max(width * columns, 4.0), height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    if not titles and heat is None:
        axis = figure.subplots()
        axis.set_axis_off()
        white = 255 if images.dtype == np.uint8 else (limits or (0, 1))[1]
        show_image(axis, _mosaic(images, rows, columns, white), limits=limits)
        return figure
    for index, axis in enumerate(figure.subplots(rows, columns, squeeze=False).ravel()):
        axis.set_axis_off()
        if index < len(images):
            show_image(axis, images[index], None if heat is None else heat[index], limits)
            axis.set_title(titles[index] if titles else "", fontsize=8, pad=3, **PLAIN)
    return figure


def _mosaic(images: np.ndarray, rows: int, columns: int, white: float) -> np.ndarray:
    """Images without titles as one: axes for each of them take many times as long to draw."""
    border = max(1, images.shape[1] // 32)
    edges = ((0, rows * columns - len(images)), (0, border), (0, border), (0, 0))
    framed = np.pad(images, edges, constant_values=white)
    grid = framed.reshape(rows, columns, *framed.shape[1:])
    return grid.swapaxes(1, 2).reshape(rows * framed.shape[1], columns * framed.shape[2], -1)


def show_image(
    axis: Axes, image: np.ndarray, heat: np.ndarray | None = None, limits: tuple[float, float] | None = None
) -> None:
    """Draw one image (height, width, 1 or 3), uint8 or floats from 0 to 1, with `heat` (height, width) over it."""
    pixels = image / 255 if image.dtype == np.uint8 else np.asarray(image, np.float32)
    low, high = limits or (0.0, 1.0)
    if pixels.shape[-1] == 1:
        axis.imshow(pixels[..., 0], cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    else:
        axis.imshow(np.clip((pixels - low) / (high - low), 0, 1), interpolation="nearest")
    if heat is not None:
        axis.imshow(heat, cmap="jet", alpha=0.45, vmin=0, vmax=1, interpolation="bilinear")


def embedding_map(vectors: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Vectors as points in the plane, coloured by class; of more than two features, along their principal components.

    Args:
        vectors: (count, features).
        classes: Name of each one's class; no names, or 21 different ones and more, mean one colour.
        title: Of the figure.
    """
    from matplotlib import colormaps
    from sklearn.decomposition import PCA

    names, share = ("first", "second"), ""
    points = np.pad(vectors, ((0, 0), (0, max(0, 2 - vectors.shape[1]))))
    if points.shape[1] > 2:
        components = PCA(2, random_state=0).fit(points)
        points, names = components.transform(points), ("first principal component", "second")
        share = f"\n{components.explained_variance_ratio_.sum():.0%} of the variance"
    figure, (axis,) = new_figure(1, 7.0, 5.5)
    found = sorted(set(classes))
    colors = colormaps["tab10" if len(found) <= colormaps["tab10"].N else "tab20"]
    if not 1 <= len(found) <= colors.N:
        axis.scatter(points[:, 0], points[:, 1], s=8, alpha=0.7)
        found = []
    for number, name in enumerate(found):
        of_class = points[np.array(classes) == name]
        axis.scatter(of_class[:, 0], of_class[:, 1], s=8, alpha=0.7, color=colors(number), label=name)
    if found:
        plain_legend(axis, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    axis.set(xlabel=names[0], ylabel=names[1], title=title + share)
    return figure


def filters(model: keras.Model) -> Figure | None:
    """What the first layer looks for: its kernels as images, each from its lowest to its highest weight.

    Those of a convolution are (height, width, 1 or 3) each; those of a dense layer on pixels have the images' shape.
    None for a model that begins otherwise.
    """
    height, width, channels = next(iter(model.input.values())).shape[1:]
    layer = next((layer for layer in model.layers if layer.weights), None)
    if isinstance(layer, keras.layers.Conv2D) and layer.kernel.shape[2] in (1, 3):
        kernels = np.moveaxis(np.asarray(layer.kernel), -1, 0)
    elif isinstance(layer, keras.layers.Dense) and layer.kernel.shape[0] == height * width * channels:
        kernels = np.asarray(layer.kernel).T.reshape(-1, height, width, channels)
    else:
        return None
    kernels = kernels[:MOST_SHOWN]
    title = f"Filters of {layer.name}: what each looks for (bright: large weights)"
    return image_grid(_stretched(kernels), title=title, columns=min(8, len(kernels)))


def feature_maps(model: keras.Model, image: np.ndarray) -> Figure | None:
    """What the first filters of each convolution give for one image (height, width, channels); None without any."""
    from matplotlib.figure import Figure

    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    if not convolutions:
        return None
    name = next(iter(model.input))
    outputs = keras.Model(model.input, {layer.name: layer.output for layer in convolutions})({name: image[None]})
    shown = min([MOST_MAPS, *(output.shape[-1] for output in outputs.values())])
    figure = Figure(figsize=(1.1 * (shown + 1), 1.2 * len(convolutions) + 0.4), layout="constrained")
    figure.suptitle("The image, and the first maps of each convolution", fontsize=11)
    axes = figure.subplots(len(convolutions), shown + 1, squeeze=False)
    for row, layer in zip(axes, convolutions, strict=True):
        for axis in row:
            axis.set_axis_off()
        show_image(row[0], image)
        row[0].set_title(layer.name, fontsize=7)
        maps = np.moveaxis(np.asarray(outputs[layer.name], np.float32)[0, ..., :shown], -1, 0)
        for axis, values in zip(row[1:], _stretched(maps[..., None]), strict=True):
            show_image(axis, values)
    return figure


def grad_cam(
    model: keras.Model, images: np.ndarray, classes: np.ndarray, output: str, probable: bool = True
) -> np.ndarray | None:
    """Where in an image the evidence for a class lies (Selvaraju et al. 2017, Grad-CAM).

    heat = ReLU(sum over k of w_k · map_k), where map_k are the maps of the last convolution and w_k is the mean over
    the map of the gradient of the class's logarithmic probability, or of its score.

    Args:
        model: Has one image input.
        images: (count, height, width, channels), uint8.
        classes: Index of the class that is asked about, for each image.
        output: Name of the output, (count, classes).
        probable: Whether the output is probabilities; otherwise scores, which may be negative.

    Returns:
        Heat (count, height, width) from 0 to 1, or None for a model without convolutions.
    """
    last = next((layer for layer in reversed(model.layers) if isinstance(layer, keras.layers.Conv2D)), None)
    if last is None:
        return None
    name = next(iter(model.input))
    both = keras.Model(model.input, [last.output, model.output[output]])
    with tf.GradientTape() as tape:
        maps, outputs = both({name: images}, training=False)
        score = tf.gather(outputs, classes, batch_dims=1)
        score = tf.math.log(score + keras.config.epsilon()) if probable else score
    slopes = tf.cast(tape.gradient(score, maps), tf.float32)
    heat = tf.nn.relu(tf.reduce_sum(tf.reduce_mean(slopes, (1, 2), keepdims=True) * tf.cast(maps, tf.float32), -1))
    heat = tf.image.resize(heat[..., None], images.shape[1:3])[..., 0].numpy()
    # Where a class is all but certain, slopes are tiny, and say where the evidence lies as well.
    return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny)


def confident_mistakes(
    images: np.ndarray, probabilities: np.ndarray, truth: np.ndarray, names: Sequence[str]
) -> Figure:
    """The wrong answers of which a model was surest.

    Args:
        images: (count, height, width, channels), uint8.
        probabilities: (count, classes).
        truth: Index of each image's class.
        names: Of the classes.
    """
    predicted = probabilities.argmax(axis=1)
    sureness = np.where(predicted == truth, -1.0, probabilities.max(axis=1))
    rows = np.argsort(-sureness, kind="stable")[: min(24, int((predicted != truth).sum()))]
    titles = [f"{names[predicted[row]]} ({sureness[row]:.2f})\nis {names[truth[row]]}" for row in rows]
    if not len(rows):
        return image_grid(images[:8], title="No mistakes; some of the images", columns=8)
    return image_grid(images[rows], titles, "The most confident mistakes")


def augmented(run: Run, name: str, count: int = 8) -> Figure | None:
    """Some training images, and below them what the model saw of them in three steps; None without augmentation."""
    augment = run.train_batches.augment
    if augment is None:
        return None
    part = run.data.train.take(np.arange(min(count, len(run.data.train))))
    inputs, targets = next(iter(Batches(part.inputs, part.targets, count).dataset()))
    changed = [augment(inputs, targets, tf.constant([0, step]))[0][name].numpy() for step in range(3)]
    images = np.concatenate([inputs[name].numpy(), *changed])
    return image_grid(images, title="Training images (top), and what augmentation made of them", columns=len(part))


def _stretched(images: np.ndarray) -> np.ndarray:
    """Each from its lowest value, 0, to its highest, 1."""
    axes = tuple(range(1, images.ndim))
    low, high = images.min(axis=axes, keepdims=True), images.max(axis=axes, keepdims=True)
    return (images - low) / np.maximum(high - low, 1e-9)
