"""Decoding of image files, elastic distortion, and random numbers that follow from a step."""

from __future__ import annotations

import doctest

import keras
import numpy as np
import pytest

from layers import DecodeImages, RandomElastic, StepSeeds, images


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3)).astype(np.uint8)


def encode(pixels: np.ndarray, kind: str = "png") -> bytes:
    import tensorflow as tf

    return getattr(tf.io, f"encode_{kind}")(pixels).numpy()


def decode(files: list[bytes], *arguments: object, **options: object) -> np.ndarray:
    import tensorflow as tf

    return DecodeImages(*arguments, **options)(tf.constant(files)[:, None]).numpy()


@pytest.mark.tensorflow_only
def test_an_image_of_the_right_size_comes_back_bit_for_bit(picture: np.ndarray) -> None:
    decoded = decode([encode(picture), encode(255 - picture)], 12, 20, 3)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, [picture, 255 - picture])


@pytest.mark.tensorflow_only
def test_channels_are_converted(picture: np.ndarray) -> None:
    grey, transparent = picture[..., :1], np.concatenate([picture, picture[..., :1]], axis=-1)
    files = [encode(grey), encode(transparent), encode(picture)]
    colored = decode(files, 12, 20, 3)
    np.testing.assert_array_equal(colored, [np.repeat(grey, 3, axis=-1), picture, picture])
    weighted = picture @ np.array([0.2989, 0.587, 0.114])
    np.testing.assert_allclose(decode(files, 12, 20, 1)[1:, ..., 0], [weighted, weighted], atol=1)


@pytest.mark.tensorflow_only
def test_a_jpeg_is_nearly_what_was_written(picture: np.ndarray) -> None:
    smooth = np.repeat(np.repeat(picture[:3, :5], 4, axis=0), 4, axis=1)
    found = decode([encode(smooth, "jpeg")], 12, 20, 3)[0]
    assert np.abs(found.astype(int) - smooth).mean() < 20


@pytest.mark.tensorflow_only
def test_other_ratios_are_stretched_padded_or_cropped() -> None:
    wide = np.zeros((10, 20, 1), np.uint8)
    wide[:, 5:15] = 255  # the middle half
    fits = ("stretch", "pad", "crop")
    stretched, padded, cropped = (decode([encode(wide)], 10, 10, 1, fit)[0, ..., 0] for fit in fits)
    assert stretched.shape == padded.shape == cropped.shape == (10, 10)
    np.testing.assert_array_equal(cropped, np.full((10, 10), 255))
    assert not padded[[0, 1, -2, -1]].any()
    assert not stretched[:, 0].any()
    assert padded[4:6, 4:6].min() == stretched[:, 4:6].min() == 255


@pytest.mark.tensorflow_only
def test_no_file_is_black(picture: np.ndarray) -> None:
    assert not decode([b""], 4, 4, 3).any()


@pytest.mark.tensorflow_only
def test_a_model_that_decodes_survives_saving(tmp_path, picture: np.ndarray) -> None:
    import tensorflow as tf

    file = keras.Input((1,), dtype="string")
    model = keras.Model(file, DecodeImages(6, 9, 1, fit="pad")(file))
    assert model.output.shape == (None, 6, 9, 1)
    model.save(tmp_path / "model.keras")
    files = tf.constant([[encode(picture)]])
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(files), model(files))


@pytest.mark.parametrize("arguments", [(0, 4), (4, 4, 2), (4, 4, 3, "squeeze")])
def test_impossible_arguments_are_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        DecodeImages(*arguments)


def test_displacements_have_the_strength_asked_for_everywhere() -> None:
    layer = RandomElastic(2.0, 3.0, seed=0)
    moved = np.asarray(layer._displacements((1000, 12, 16)))
    np.testing.assert_allclose(moved.std(axis=(0, 3)), 2.0, rtol=0.1)
    neighbours = np.corrcoef(moved[:, 5, 5, 0], moved[:, 5, 6, 0])[0, 1]
    assert neighbours == pytest.approx(np.exp(-1 / (4 * 3.0**2)), abs=0.02)  # of two Gaussians one pixel apart
    assert abs(np.corrcoef(moved[:, 5, 5, 0], moved[:, 5, 5, 1])[0, 1]) < 0.1


def test_elastic_distortion_moves_pixels_by_the_field() -> None:
    """Against the definition, pixel by pixel."""
    rng = np.random.default_rng(0)
    pixels, field = rng.random((2, 7, 9, 3)).astype(np.float32), rng.normal(0, 2, (2, 7, 9, 2)).astype(np.float32)
    found = np.asarray(RandomElastic(1.0)._moved(pixels, keras.ops.convert_to_tensor(field)))
    padded = np.pad(pixels, ((0, 0), (20, 20), (20, 20), (0, 0)))
    for image, row, column in np.ndindex(2, 7, 9):
        y, x = np.float32([row, column]) + field[image, row, column] + 20
        top, left = int(np.floor(y)), int(np.floor(x))
        part = padded[image, top : top + 2, left : left + 2]
        weights = np.outer([1 - (y - top), y - top], [1 - (x - left), x - left])
        np.testing.assert_allclose(found[image, row, column], np.tensordot(weights, part, 2), atol=1e-5)


def test_elastic_distortion_is_for_training_only() -> None:
    pixels = keras.random.uniform((2, 8, 8, 1), seed=0)
    layer = RandomElastic(2.0, seed=0)
    np.testing.assert_array_equal(layer(pixels, training=False), pixels)
    assert not np.array_equal(layer(pixels, training=True), pixels)
    again = RandomElastic.from_config(layer.get_config())
    assert (again.strength, again.smoothness, again.seed) == (2.0, 4.0, 0)


@pytest.mark.parametrize("arguments", [(-1.0,), (1.0, 0.0)])
def test_an_elastic_distortion_that_cannot_be_is_refused(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        RandomElastic(*arguments)


@pytest.mark.tensorflow_only
def test_random_numbers_follow_from_the_step_alone() -> None:
    import tensorflow as tf

    seeds, pixels = StepSeeds(), tf.random.stateless_uniform((4, 8, 8, 1), [0, 0])
    chain = [RandomElastic(2.0), keras.layers.RandomFlip(), keras.layers.GaussianNoise(0.1)]
    for layer in chain:
        seeds.seed(layer)

    def step(*base: int) -> np.ndarray:
        seeds.start(tf.constant(base))
        result = pixels
        for layer in chain:
            result = layer(result, training=True)
        return result.numpy()

    first, other = step(3, 4), step(3, 5)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(step(3, 4), first)


@pytest.mark.tensorflow_only
def test_the_examples_of_the_docstrings() -> None:
    assert doctest.testmod(images).failed == 0
