import json
import re
import threading

import numpy as np
import paddle
import pytest
from ranks import run_plsc

from plsc import cli
from plsc.commands.plan import _workload
from plsc.config import Config
from plsc.engine import forecast as forecasts
from plsc.engine.average import Average
from plsc.engine.forecast import (
    BackboneSize,
    OptimizerSize,
    Workload,
    advice,
    backbone_size,
    forecast,
    workload_of,
)
from plsc.machine.memory import size_text
from plsc.models import build_model
from plsc.models.freezing import TrainedParts
from plsc.settings.checks import trainable

ADAM = OptimizerSize("Adam", 2.0)
SMALL = BackboneSize(parameters=1000, statistics=10, activations=100)


def workload(classes=1000, emb_dim=16, ranks=4, batch=8, **options):
    return Workload(classes, emb_dim, ranks, batch, SMALL, image_shape=(3, 8, 8), **options)


def make(*arguments, **options):
    return forecast(workload(*arguments, **options))


def test_the_memory_of_the_head():
    made = make(1001)
    assert made.head["weights"] == 251 * 16 * 4 == made.head["momentum"] and made.head["gradient"] == 0
    adam = make(1001, optimizer=ADAM)
    assert adam.head["momentum"] == 2 * adam.head["weights"] and adam.head["gradient"] == 2 * adam.head["weights"]
    assert make(1001, sharded=False).head["weights"] == 1001 * 16 * 4
    assert make(1000, has_bias=True).head["weights"] == 250 * 17 * 4
    assert make(2, ranks=4).head["weights"] == 16 * 4
    assert make(optimizer=OptimizerSize("SGD", 0.0, True)).head["momentum"] == 0
    assert make(1000, class_numbers=2).head["workspace"] == make(1000).head["workspace"] + 2 * 4 * 1000


def test_a_state_of_unknown_size_is_named_and_not_counted():
    made = make(optimizer=OptimizerSize("Mine", None))
    assert made.head["momentum"] == 0 and made.head["gradient"] > 0
    assert "without the state of Mine, whose size is not known" in made.lines()[0]
    assert "not known" not in make().lines()[0]


def test_the_memory_of_the_backbone_and_what_a_gpu_does_not_hold():
    made, alone = make(process=7), make(ranks=1, process=7)
    assert made.backbone["buckets"] == 1000 and alone.backbone["buckets"] == 0
    assert made.backbone["weights"] == 1010 and made.backbone["activations"] == pytest.approx(100 * 8 * 1.1)
    on_gpu = make(process=7, on_cpu=False, chunk=64)
    assert on_gpu.total == on_gpu.head_bytes + sum(on_gpu.backbone.values())
    here = make(process=7, chunk=64)
    assert here.process > 7 and here.total == on_gpu.total + here.images + here.process + here.snapshot
    assert make(saves_in_background=False).snapshot == 0


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": ADAM},
        {"sample_ratio": 0.1, "sub_centers": 3},
        {"class_numbers": 9},
        {"class_numbers": 9, "sub_centers": 3},
        {"class_numbers": 9, "sub_centers": 3, "sample_ratio": 0.1},
        {"head_dtype": "bfloat16", "sample_ratio": 0.1},
        {"saves_in_background": False},
        {"sub_centers": 2},
        {"sub_centers": 2, "head_dtype": "bfloat16"},
    ],
)
def test_the_largest_class_count_is_the_largest_that_fits(on_cpu, options):
    options = {**options, "on_cpu": on_cpu, "chunk": 64, "process": 1000}
    memory = 10**10
    most = make(**options).max_classes(memory)
    assert make(most, **options).total == pytest.approx(memory, rel=1e-4)
    assert make(int(most * 1.001), **options).total > memory
    assert make(**options).max_classes(1000) == 0


def test_bytes_on_the_wire():
    wire = make(1000, 16, 4, 8).wire
    assert wire["embeddings"] == int(3 / 4 * 4 * 32 * 16)
    assert wire["embedding gradients"] == int(2 * 3 / 4 * 4 * 32 * 16)
    assert wire["backbone gradients"] == 1500
    assert make(ranks=1).wire == {}
    assert "head gradient" in make(sharded=False).wire


def test_advice_names_a_smaller_batch_or_more_ranks():
    def large(ranks, batch):
        return workload(10**6, 16, ranks, batch, on_cpu=False, chunk=64)

    asked = large(ranks=4, batch=8)
    needed = forecast(large(ranks=8, batch=8)).total
    assert advice(asked, needed, one_machine=False) == ["it does not fit; it would on 8 ranks"]
    needed = forecast(large(ranks=4, batch=2)).total
    assert "batch of 2 per rank" in advice(asked, needed, one_machine=False)[0]
    assert "whatever the batch" in advice(asked, 1000, one_machine=True)[0]


def test_a_workload_takes_its_numbers_from_the_settings():
    config = Config(loss_type="softmax", num_classes=7, emb_dim=16, train_batch_size=4, gradient_accumulation=3)
    made = workload_of(config, SMALL, optimizer=ADAM, ranks=2, process=5, on_cpu=False)
    assert (made.rows, made.head_batch, made.has_bias, made.sharded, made.process) == (7, 12, True, False, 5)
    config = Config(loss_type="dist_softmax", bias_attr=False, num_classes=7, model_save_dir="")
    made = workload_of(config, SMALL, optimizer=ADAM, ranks=2, process=0, on_cpu=True)
    assert (made.rows, made.head_batch, made.has_bias, made.saves_in_background) == (4, 256, False, False)


def test_activations_agree_with_a_calculation_by_hand():
    model = paddle.nn.Sequential(
        paddle.nn.Flatten(), paddle.nn.Linear(48, 10), paddle.nn.Sigmoid(), paddle.nn.Linear(10, 4)
    )
    size = backbone_size(model, (3, 4, 4))
    assert size.parameters == 4 * (48 * 10 + 10 + 10 * 4 + 4) and size.statistics == 0
    # The first layer keeps its input, the sigmoid its output, which the last layer keeps too.
    assert size.activations == 4 * (48 + 10)


def test_measuring_does_not_change_a_model():
    model = build_model("MobileFaceNet", 8, (3, 32, 32))
    model.train()
    frozen = next(layer for layer in model.sublayers() if isinstance(layer, paddle.nn.BatchNorm2D))
    frozen.eval()
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    size = backbone_size(model, (3, 32, 32))
    assert model.training and not frozen.training and size.activations > 0 and size.statistics > 0
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])


def test_no_forward_pass_is_measured_while_another_thread_trains():
    """Paddle would hand out what the other thread's forward pass keeps, and not give it back."""
    model = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(48, 4))
    events, threads = [], []

    def train():
        with forecasts.training():
            events.append("trains")

    class Measured(paddle.nn.Layer):
        def forward(self, images):
            threads.append(threading.Thread(target=train))
            threads[-1].start()  # it cannot begin before both passes are done
            events.append("is measured")
            return model(images)

    with forecasts.training():  # this thread's own training does not keep it from measuring
        assert backbone_size(Measured(), (3, 4, 4)).activations > 0
    for thread in threads:
        thread.join()
    assert events == ["is measured", "is measured", "trains", "trains"]

    sizes = []
    with forecasts.training():
        other = threading.Thread(target=lambda: sizes.append(backbone_size(model, (3, 4, 4))))
        other.start()
        other.join()
    assert sizes[0].activations is None and sizes[0].parameters == 4 * (48 * 4 + 4)
    made = forecast(Workload(1000, 16, 4, 8, sizes[0], image_shape=(3, 8, 8)))
    assert made.backbone["activations"] == 0
    assert "without the activations of the backbone, whose size is not known" in made.lines()[0]


def test_sizes_of_text():
    assert [size_text(size) for size in (0, 999, 999_700, 12_345, 2.5e9, 3e15, 5e18)] == [
        "0 B",
        "999 B",
        "1 MB",
        "12.3 kB",
        "2.5 GB",
        "3 PB",
        "5,000 PB",
    ]


def run(*arguments):
    return run_plsc("plan", *arguments)


SMALL_MODEL = ("--model", "MobileFaceNet", "--image-shape", "3,32,32", "--emb", "64")


def test_the_plan_command():
    small = (*SMALL_MODEL, "--optimizer", "Lamb")
    process = run("--classes", "1000000", "--ranks", "8", "--batch", "32", "--device-memory", "1G", "--json", *small)
    values = json.loads(process.stdout)
    assert values["head_bytes_per_rank"] == sum(values["head"].values())
    assert values["head"]["momentum"] == 2 * values["head"]["weights"] == values["head"]["gradient"]
    assert values["total_bytes_per_rank"] < 1e9 and values["max_classes"] > 1_000_000
    assert values["learning_rates"] == []  # the number of images is not known
    rates = ("train_image_num=1000", "train_epochs=4", "schedule=cosine", "lr=0.4")
    process = run("--classes", "1000000000", "--ranks", "8", "--device-memory", "2G", *SMALL_MODEL,
                  *(word for one in rates for word in ("--set", one)))  # fmt: skip
    assert "learning rate after each epoch: 1: 0.4, 2: 0.3414, 3: 0.2, 4: 0.05858\n" in process.stdout
    curve = process.stdout.split("learning rate in 4 steps of 4 epochs:\n")[1].splitlines()[:7]
    assert curve[0] == "       0.4 |#" and curve[4] == "    0.1333 |###" and curve[6] == "         0 +----"
    assert re.search(r"largest class count for 2 GB a rank: [\d,]+\n", process.stdout)
    assert re.search(r"it does not fit; it would on \d+ ranks", process.stdout)


def test_the_plan_counts_nothing_for_what_is_frozen():
    model = build_model("GlyphNet", 8, (3, 32, 32))
    model.build((3, 32, 32))
    everything = backbone_size(model, (3, 32, 32))
    parts = TrainedParts(model, trainable("set_trainable", {0: "head", 1: "fc_0.*"}).stages)
    sizes = {epoch: (parts.begin(epoch), backbone_size(model, (3, 32, 32)))[1] for epoch in (1, 0)}
    assert sizes[0].parameters == sizes[0].activations == 0
    assert 0 < sizes[1].parameters == 4 * sum(p.size for p in model.fc_0.parameters()) < everything.parameters
    assert sizes[1].activations < everything.activations
    assert sizes[0].statistics == everything.parameters + everything.statistics
    for epoch, size in sizes.items():
        parts.begin(epoch)
        assert size.averaged == sum(4 * value.size for value in Average(model, 0.9).values().values())
        averaging = Workload(10, 8, 1, 4, size, has_average=True)
        assert forecast(averaging).backbone["average"] == size.averaged < everything.averaged
    parts.begin(0)
    assert backbone_size(model, (3, 32, 32), recompute=True).activations == 0


@pytest.mark.parametrize("trained, share", [("all", 1), ("fc_0.*", 0.5), ("head", 0)])
def test_the_plan_makes_the_layers_of_a_define_by_run_network_before_it_counts_them(trained, share):
    config = Config(num_classes=10, model_name="GlyphNet", image_shape=(3, 32, 32), emb_dim=8)
    config.trainable = trainable("set_trainable", trained)
    size = _workload(config, 1, "Momentum", True).backbone
    model = build_model("GlyphNet", 8, (3, 32, 32))
    model.build((3, 32, 32))
    everything = sum(4 * p.size for p in model.parameters() if not p.stop_gradient)
    assert size.parameters == {1: everything, 0.5: 4 * sum(p.size for p in model.fc_0.parameters()), 0: 0}[share]
    assert size.parameters + size.statistics == 4 * sum(tensor.size for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--classes", "10", *SMALL_MODEL, "--set", "trainable=layer4.*"], "'layer4.*' matches no parameter of"),
        (["--classes", "10", "--image-shape", "3"], "--image-shape"),
        (["--classes", "10", "--model", "VGG"], "--model"),
        (["--classes", "10", *SMALL_MODEL, "--set", "sub_centers=2", "--set", "loss_type=softmax"], "no cosines"),
        (["--classes", "10", *SMALL_MODEL, "--head-dtype", "bfloat16", "--optimizer", "Lamb"], "the whole gradient"),
        (["--classes", "10", *SMALL_MODEL, "--optimizer", "Adan"], "--optimizer Adan: there is no such optimizer"),
        (["--classes", "10", *SMALL_MODEL, "--optimizer", "LBFGS"], "LBFGS.step needs 'closure'"),
    ],
)
def test_bad_arguments_of_the_plan_command(arguments, words):
    process = run(*arguments)
    assert process.returncode == 1 and words in process.stderr and "Traceback" not in process.stderr


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--set", "teacher=no/such"], "set_teacher('no/such'): holds no export, no checkpoint and no embeddings"),
        (["--set", "rate_factors={fc_9.*: 0.1}"], "set_rate_factors: 'fc_9.*' matches no parameter of"),
        (["--set", "class_weights=[1, 2, 3]"], "set_class_weights gives 3 numbers, and there are 10 classes"),
        (["--set", "class_margins=[0.1, 0.2]"], "set_class_margins gives 2 numbers, and there are 10 classes"),
        (["--optimizer", "Lion"], None),
        (["--set", "rate_factors={head: 0.1, 'fc_0.*': 2}"], None),
    ],
)
def test_the_plan_refuses_what_training_refuses(arguments, words, capsys):
    model = ["--model", "GlyphNet", "--image-shape", "3,32,32", "--emb", "8"]
    status = cli.main(["plan", "--classes", "10", "--json", *model, *arguments])
    said = capsys.readouterr()
    if words is None:
        assert status == 0 and json.loads(said.out)["num_classes"] == 10, said.err
    else:
        assert status == 1 and words in said.err


def test_the_plan_command_reads_a_settings_file_and_options_override_it(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(
        "num_classes: 1000000\nemb_dim: 64\nmodel_name: MobileFaceNet\nimage_shape: [3, 32, 32]\nresume: true\n"
        "loss_type: softmax\ntrain_batch_size: 4\ngradient_accumulation: 2\nmodel_save_dir: ''\n"
    )
    process = run("--config", str(file), "--set", "loss_type=dist_softmax", "--classes", "1000", "--json")
    values = json.loads(process.stdout)
    assert values["num_classes"] == 1000 and values["head"]["weights"] == 1000 * 65 * 4 and values["snapshot"] == 0
    assert values["images"] == 4 * 4 * 3 * 32 * 32 * 4
    process = run("--set", "emb_dim=64")
    assert process.returncode == 2 and "--classes is required" in process.stderr
