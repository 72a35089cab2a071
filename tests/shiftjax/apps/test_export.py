"""Exported networks give the network's logits, for batches of any size."""

import jax
import numpy as np
import pytest

from shiftjax import InputError, MissingFileError, shift
from shiftjax.apps import export
from shiftjax.apps.predict import normalize_images
from shiftjax.cli.main import main
from shiftjax.weights import Card, Pretrained, open_pretrained

pytestmark = pytest.mark.usefixtures("quick")

CARD = Card(
    architecture="shiftresnet20_e3",
    options={"depth": 8, "num_classes": 3},
    class_names=("ball", "car", "kite"),
    image_size=9,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
)
BATCHES = (1, 7, 128)


@pytest.fixture
def pretrained(randomize):
    model = CARD.model()
    variables = randomize(model, np.zeros((1, 9, 9, 3), np.float32))
    return Pretrained(model, variables, CARD)


def pictures(rng, count):
    return rng.integers(0, 256, (count, 9, 9, 3), np.uint8)


def expected(pretrained, images):
    x = normalize_images(images, CARD)
    return np.asarray(pretrained.model.apply(pretrained.variables, x))


@pytest.mark.parametrize("raw", [False, True])
def test_stablehlo(pretrained, rng, raw):
    """It was written for platforms that are not here, too."""
    pytest.importorskip("flatbuffers", reason="what jax.export writes with")
    data = export.to_stablehlo(pretrained, uint8=raw)
    assert jax.export.deserialize(bytearray(data)).platforms == export.PLATFORMS
    call = export.load_stablehlo(data)
    for count in BATCHES:
        images = pictures(rng, count)
        actual = call(images if raw else normalize_images(images, CARD))
        wanted = expected(pretrained, images)
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


def test_in_common_primitives(pretrained, rng):
    """The same logits, and nothing of this package in the program."""
    function = export.inference_function(pretrained)
    rewritten = export.in_common_primitives(function)
    x = normalize_images(pictures(rng, 2), CARD)
    actual, wanted = jax.jit(rewritten)(x), jax.jit(function)(x)
    np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)
    assert "displace" in str(jax.make_jaxpr(function)(x))
    assert "displace" not in str(jax.make_jaxpr(rewritten)(x))


def test_in_common_primitives_of_loops_and_rematerialization(rng):
    """A loop runs as often as before, not once."""
    x = rng.normal(size=(1, 5, 4, 9)).astype(np.float32)
    factors = np.asarray([1, 2, 3], np.float32)

    def step(x, factor):
        return factor * shift(x) + 1, None

    wanted = x
    for factor in factors:
        wanted = step(wanted, factor)[0]
    functions = (
        lambda x: jax.lax.scan(step, x, factors)[0],
        lambda x: jax.lax.fori_loop(1, 4, lambda i, x: step(x, i)[0], x),
        jax.checkpoint(lambda x: jax.lax.scan(jax.checkpoint(step), x, factors)[0]),
    )
    for function in functions:
        rewritten = export.in_common_primitives(function)
        np.testing.assert_allclose(rewritten(x), wanted, rtol=1e-6)
        assert "displace" not in str(jax.make_jaxpr(rewritten)(x))


@pytest.mark.parametrize("raw", [False, True])
def test_onnx(pretrained, rng, raw, capfd):
    pytest.importorskip("jax2onnx", reason="it does not go with the trainer's Orbax")
    runtime = pytest.importorskip("onnxruntime", reason="comes with jax2onnx")
    checker = pytest.importorskip("onnx", reason="comes with jax2onnx").checker
    data = export.to_onnx(pretrained, uint8=raw)
    checker.check_model(data, full_check=True)
    session = runtime.InferenceSession(data)
    assert "[W:" not in capfd.readouterr().err  # no warning of the runtime
    (name,) = [x.name for x in session.get_inputs()]
    for count in BATCHES:
        images = pictures(rng, count)
        given = images if raw else normalize_images(images, CARD)
        (actual,) = session.run(None, {name: given})
        wanted = expected(pretrained, images)
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


def test_a_released_network(tmp_path, capsys):
    """The command; the file is read back and gives the release's own logits."""
    pytest.importorskip("flatbuffers", reason="what jax.export writes with")
    path = tmp_path / "net.stablehlo"
    name = "shiftresnet20_e3.digits"
    assert main(["export", name, "-o", str(path), "--uint8"]) == 0
    out = capsys.readouterr().out
    assert f"{path.stat().st_size:,} bytes" in out
    assert "takes any x 32 x 32 x 3 uint8 images" in out
    from shiftjax.image_files import rings

    logits = export.load_stablehlo(path.read_bytes())(rings(32, 3)[None])[0]
    released = open_pretrained(name).release.logits["rings"]
    np.testing.assert_allclose(logits, released, atol=1e-3)


def test_what_is_refused(pretrained, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"must end in \.stablehlo or \.onnx"):
        export.export(pretrained, tmp_path / "net.pb")
    with pytest.raises(MissingFileError, match="there is no folder"):
        export.export(pretrained, tmp_path / "no" / "net.onnx")
    with pytest.raises(InputError, match="are not an exported program"):
        export.load_stablehlo(b"x" * 100)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for kind, extra in (("onnx", "onnx"), ("stablehlo", "export")):
        with pytest.raises(InputError, match=rf"pip install 'shiftjax\[{extra}\]'"):
            export.export(pretrained, tmp_path / f"net.{kind}")
    assert list(tmp_path.iterdir()) == []
