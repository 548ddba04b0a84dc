"""Export of a saved classifier to other formats, each read back and compared with the original on images."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ham_ray.data.gallery import open_gallery
from ham_ray.data.sample import write_sample
from ham_ray.errors import UserError
from ham_ray.inference import saved
from ham_ray.models.saving import save
from ham_ray.workflows.export import SUFFIXES, Options
from ham_ray.workflows.predict import DEFAULT_GEOMETRY

COMPARED = 64  # images
TOLERANCE = 1e-3  # of a probability
Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Format:
    """The functions that write a file, or a folder, and read it."""

    write: Callable[[keras.Model, Path, Sequence[str]], None]  # the last: codes of the classes
    read: Callable[[Path], Predict]


@dataclass(frozen=True)
class Exported:
    """The path of an exported model, and its probabilities' greatest difference on how many images of which source."""

    place: str
    difference: float
    images: int
    source: str


def export(options: Options) -> Exported:
    """Write a model in another format, read it back, and compare; what does not agree is not left behind.

    The exported model takes uint8 RGB [B, size, size, 3] and gives probabilities float32 [B, K], as the original.

    Raises:
        UserError: no such format, a package that is missing, a search's winner of several networks, or disagreement.
    """
    options.check()
    form, path, result = FORMATS[options.to], options.place, options.found
    pixels, source = _pixels(result, options.images)
    network = saved.load(next(iter(result.members)))
    expected = np.asarray(network(pixels))
    with tempfile.TemporaryDirectory(dir=_made(Path(path).parent)) as folder:
        written = Path(folder, f"model{SUFFIXES[options.to]}")
        form.write(network, written, result.classes.codes)
        values = form.read(written)(pixels)
        difference = float(np.abs(values - expected).max())
        if not difference <= TOLERANCE:
            raise UserError(
                f"the exported model differs from the original by {difference:.2g} on {len(pixels)} images, more than "
                f"{TOLERANCE:g}: not kept"
            )
        shutil.move(written, path)
    print(f"classes, in the order of the probabilities: {', '.join(result.classes.codes)}")
    return Exported(path, difference, len(pixels), source)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _pixels(result: saved.Saved, images: str | None) -> tuple[np.ndarray, str]:
    """Load images to compare on, uint8[n, size, size, 3], and say what they are."""
    geometry = result.geometry or DEFAULT_GEOMETRY
    with tempfile.TemporaryDirectory() as folder:
        path = images or str(write_sample(Path(folder) / "synthetic.zip", size=(160, 120)))
        gallery = open_gallery(path, result.size, geometry)
        chosen = np.linspace(0, len(gallery.rows) - 1, min(COMPARED, len(gallery.rows)))  # from all over the table
        loaded = [gallery.load(slice(index, index + 1)).pixels for index in np.rint(chosen).astype(int).tolist()]
    pixels = np.concatenate(loaded)
    if not len(pixels):
        raise UserError(f"--images {images}: not one of {len(loaded)} images could be read")
    return pixels, images or "the SYNTHETIC sample; --images compares on real ones"


def _write_saved_model(model: keras.Model, path: Path, codes: Sequence[str]) -> None:
    model.export(path, format="tf_saved_model", verbose=False)


def _read_saved_model(path: Path) -> Predict:
    loaded = tf.saved_model.load(path)
    return lambda pixels: np.asarray(loaded.serve(pixels))


def _write_tflite(model: keras.Model, path: Path, codes: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _write_saved_model(model, Path(folder), codes)
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())


def _read_tflite(path: Path) -> Predict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow means to move it to a package of its own
        interpreter = tf.lite.Interpreter(model_content=path.read_bytes())
    start, end = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def predict(pixels: np.ndarray) -> np.ndarray:
        interpreter.resize_tensor_input(start, pixels.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(start, pixels)
        interpreter.invoke()
        return interpreter.get_tensor(end)

    return predict


def _write_onnx(model: keras.Model, path: Path, codes: Sequence[str]) -> None:
    """Convert a graph of constants: Keras's own export leaves those of its Normalization layers as inputs."""
    import tf2onnx
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    images = tf.TensorSpec(model.input_shape, tf.uint8, name="rgb")
    called = tf.function(lambda rgb: tf.identity(model(rgb, training=False), "probabilities"))
    frozen = convert_variables_to_constants_v2(called.get_concrete_function(images))
    names = [[tensor.name for tensor in tensors] for tensors in (frozen.inputs, frozen.outputs)]
    graph = frozen.graph.as_graph_def()
    tf2onnx.convert.from_graph_def(graph, input_names=names[0], output_names=names[1], output_path=str(path))


def _read_onnx(path: Path) -> Predict:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {session.get_inputs()[0].name: pixels})[0]


def _write_keras(model: keras.Model, path: Path, codes: Sequence[str]) -> None:
    save(model, path, codes)


def _read_keras(path: Path) -> Predict:
    model = saved.load(str(path))
    return lambda pixels: np.asarray(model(pixels))


FORMATS = {
    "keras": Format(_write_keras, _read_keras),
    "savedmodel": Format(_write_saved_model, _read_saved_model),
    "tflite": Format(_write_tflite, _read_tflite),
    "onnx": Format(_write_onnx, _read_onnx),
}
