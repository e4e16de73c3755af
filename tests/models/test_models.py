import numpy as np
import paddle
import pytest
from small_models import small_model

from plsc.errors import ConfigError
from plsc.models import build_model
from plsc.models.base_model import build
from plsc.models.mobilefacenet import MobileFaceNet
from plsc.models.resnet import DEPTHS, ResNet
from plsc.models.vit import ViT, _swapped


def weights(model):
    """Counts weights as published listings do, without running statistics."""
    return sum(
        int(np.prod(p.shape)) for n, p in model.named_parameters() if n.split(".")[-1] not in ("_mean", "_variance")
    )


# In millions, from the model zoo of insightface's arcface_torch.
@pytest.mark.parametrize("layers, millions", [(18, 24.03), (34, 34.14), (50, 43.59), (100, 65.15)])
def test_resnet_has_the_published_number_of_weights(layers, millions):
    assert weights(ResNet(layers)) == pytest.approx(millions * 1e6, rel=0.002)


def test_resnet101_has_the_blocks_of_the_published_script():
    assert DEPTHS[101] == (3, 4, 23, 3)
    # Nine blocks of 128 channels and seven of 256 fewer than ResNet100; each has two 3x3 convolutions, three batch
    # normalisations and a PReLU.
    fewer = sum(count * (18 * width**2 + 7 * width) for count, width in ((9, 128), (7, 256)))
    assert weights(build_model("ResNet101", 512, (3, 112, 112))) == pytest.approx(65.15e6 - fewer, rel=0.002)


def test_mobilefacenet_has_the_published_number_of_weights():
    assert weights(MobileFaceNet(emb_dim=128)) == pytest.approx(0.99e6, rel=0.02)


def test_vit_has_the_published_number_of_weights():
    # DeiT-S has 22 M at 224x224 with 1,000 outputs (arXiv:2012.12877, table 1); here a weight per place and channel is
    # added.
    assert weights(ViT(1000, (3, 224, 224))) == pytest.approx(22.05e6 + 14 * 14 * 384, rel=0.001)


@pytest.mark.core
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_vit_swaps_dimensions_of_every_type(dtype):
    x = paddle.arange(24).reshape([1, 2, 3, 4]).astype(dtype)
    assert _swapped(x).dtype == x.dtype
    assert np.array_equal(_swapped(x).astype("float32"), np.arange(24).reshape(1, 2, 3, 4).transpose(0, 2, 1, 3))


@pytest.mark.parametrize("shape, grid", [((3, 112, 112), (14, 14)), ((3, 32, 32), (11, 11)), ((1, 17, 23), (9, 12))])
def test_vit_sees_every_pixel_in_at_most_14_patches_per_side(shape, grid):
    model = ViT(8, shape, blocks=0)
    patches = model.patches(paddle.zeros([1, *shape]))
    assert tuple(patches.shape[2:]) == grid
    image = paddle.zeros([1, *shape])
    image.stop_gradient = False
    (model.patches(image) * paddle.rand(patches.shape)).sum().backward()
    assert (image.grad.numpy() != 0).all()


@pytest.mark.parametrize("name", ["ResNet152", "ResNet200"])
def test_the_deepest_models_can_be_built(name):
    model = build_model(name, 8, (3, 16, 16))
    assert model.build((3, 16, 16)) == 8
    convolutions = [m for m in model.sublayers() if isinstance(m, paddle.nn.Conv2D) and m.weight.shape[-1] == 3]
    assert len(convolutions) == 1 + 2 * {"ResNet152": 50, "ResNet200": 98}[name]


@pytest.mark.core
@pytest.mark.parametrize("name", ["ResNet18", "MobileFaceNet", "ViT", "GlyphNet"])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 17, 23), (3, 112, 112)])
def test_shapes(name, shape):
    model = small_model(name, 24, shape)
    assert model.build(shape) == 24
    assert model(paddle.rand([3, *shape])).shape == [3, 24]


@pytest.mark.core
@pytest.mark.parametrize("name", ["ResNet18", "MobileFaceNet", "ViT", "GlyphNet"])
def test_a_gradient_reaches_every_weight(name):
    paddle.seed(0)
    model = small_model(name, 16, (3, 32, 32))
    (model(paddle.rand([4, 3, 32, 32])) * paddle.rand([4, 16])).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        if not parameter.stop_gradient:
            assert parameter.grad is not None, parameter_name
            assert np.isfinite(parameter.grad.numpy()).all(), parameter_name


@pytest.mark.core
def test_the_scale_of_the_embedding_stays_at_one():
    model = ResNet(18, 16, (3, 16, 16))
    fixed = {n for n, p in model.named_parameters() if p.stop_gradient and n.split(".")[-1][0] != "_"}
    assert len(fixed) == 1
    np.testing.assert_array_equal(dict(model.named_parameters())[fixed.pop()].numpy(), np.ones(16))


@pytest.mark.parametrize("name", [pytest.param("ResNet18", marks=pytest.mark.core), "MobileFaceNet", "ViT", "GlyphNet"])
def test_it_overfits_four_images(name):
    paddle.seed(3)
    model = small_model(name, 16, (3, 16, 16))
    build(model, (3, 16, 16))
    x = paddle.rand([8, 3, 16, 16])
    y = paddle.to_tensor([0, 1, 2, 3] * 2)
    x = x[:4].tile([2, 1, 1, 1]) + 0.05 * x
    optimizer = paddle.optimizer.Momentum(
        0.1, 0.9, parameters=[p for p in model.parameters() if not p.stop_gradient], weight_decay=5e-4
    )
    losses = []
    for _ in range(25):
        loss = paddle.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < 0.5 * losses[0], losses


@pytest.mark.core
@pytest.mark.parametrize("name", ["ResNet18", "MobileFaceNet"])
def test_saved_for_inference(name, tmp_path):
    model = small_model(name, 8, (3, 16, 16))
    model.eval()
    x = paddle.rand([3, 3, 16, 16])
    spec = paddle.static.InputSpec([None, 3, 16, 16], "float32", "image")
    paddle.jit.save(model, str(tmp_path / "model"), input_spec=[spec])
    loaded = paddle.jit.load(str(tmp_path / "model"))
    loaded.eval()
    for number in (3, 1):
        np.testing.assert_allclose(loaded(x[:number]).numpy(), model(x[:number]).numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.core
def test_an_operator_that_this_device_has_not_is_named():
    model = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.SyncBatchNorm(4), paddle.nn.Flatten())
    with pytest.raises(ConfigError, match="no sync_batch_norm for cpu; make 1 a BatchNorm2D") as caught:
        build(model, (3, 16, 16))
    assert "\n" not in str(caught.value)


@pytest.mark.core
def test_unknown_name():
    with pytest.raises(ConfigError, match="ResNet51.*ResNet18.*MobileFaceNet"):
        build_model("ResNet51", 8, (3, 16, 16))
    with pytest.raises(ConfigError, match="51"):
        ResNet(51)


@pytest.mark.core
@pytest.mark.parametrize("name", ["ResNet50", "MobileFaceNet", "ViT"])
def test_too_small_an_image(name):
    for shape in ((3, 15, 112), (3, 112, 8)):
        with pytest.raises(ConfigError, match="set_image_shape"):
            build_model(name, 8, shape)


@pytest.mark.core
def test_the_network_of_characters_sees_no_colours():
    net = build_model("GlyphNet", 128, (3, 32, 32))
    assert build(net, (3, 32, 32)) == 128
    net.eval()
    assert sum(name.startswith("conv2d") for name, _ in net.named_children()) == 9
    rng = np.random.default_rng(0)
    stroke = np.zeros((32, 32))
    stroke[4:28, 8:12] = stroke[8:11, 12:24] = 1
    grounds, inks = rng.uniform(0.4, 1, (2, 6, 3, 1, 1)) * np.array([[1], [-1]])[..., None, None, None]
    grounds[::2], inks[::2] = inks[::2].copy(), grounds[::2].copy()
    images = (grounds + (inks - grounds) * stroke).astype("float32")
    assert len(set(np.sign(inks - grounds).ravel().tolist())) == 2  # light on dark, and dark on light
    found = net(paddle.to_tensor(images)).numpy()
    assert found.shape == (6, 128)
    np.testing.assert_allclose(found, np.repeat(found[:1], 6, axis=0), atol=1e-3 * np.abs(found).max())
    other = net(paddle.to_tensor(np.ascontiguousarray(images[:1].transpose(0, 1, 3, 2)))).numpy()
    assert np.abs(other - found[:1]).max() > 0.1 * np.abs(found).max()
