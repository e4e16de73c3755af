import json
import re
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file

from plsc import Entry, optim
from plsc.config import Config, Hdfs, HdfsUpload, Schedule
from plsc.errors import ConfigError
from plsc.models.base_model import BaseModel

MISSPELT = [
    ("set_batch_size", "set_train_batch_size"),
    ("set_learning_rate", "set_lr"),
    ("set_class_number", "set_class_num"),
    ("set_modle", "set_model"),
    ("set_epochs", "set_train_epochs"),
    ("trian", "train"),
    ("fit", "help(plsc.Entry)"),
]
REFUSED = [
    ("set_train_batch_size", 0),
    ("set_data_format", "png"),
    ("set_train_batch_size", 2.5),
    ("set_train_batch_size", True),
    ("set_test_batch_size", "8"),
    ("set_log_period", -1),
    ("set_lr", 0),
    ("set_lr", float("nan")),
    ("set_lr_decay_factor", 2),
    ("set_step_boundaries", [5, 5]),
    ("set_step_boundaries", 7),
    ("set_warmup_epochs", -1),
    ("set_mixed_precision", 1),
    ("set_model_save_dir", 5),
    ("set_calc_acc", "yes"),
    ("set_dataset_dir", ""),
    ("set_dataset_dir", "nosuch://bucket/data"),
    ("set_data_cache", "hdfs://nn/cache"),
    ("set_class_num", 0),
    ("set_emb_size", None),
    ("set_model", paddle.nn.Linear),
    ("set_model_name", "ResNet51"),
    ("set_train_epochs", 0),
    ("set_loss_type", "triplet"),
    ("set_margin", 4),
    ("set_scale", 0),
    ("set_image_shape", (3, 15, 112)),
    ("set_image_shape", (2, 112, 112)),
    ("set_image_shape", "112"),
    ("set_image_ground", (0, 0, 256)),
    ("set_image_ground", 255),
    ("set_max_image_pixels", 178_956_971),
    ("set_pixel_rule", 3),
    ("set_optimizer", "adam"),
    ("set_with_test", 1),
    ("set_distfc_attr", 0.1),
    ("set_seed", -1),
    ("set_num_workers", -1),
    ("set_hdfs_upload", "sometimes"),
    ("set_hdfs_client", "hdfs://nn"),
    ("set_save_period", -5),
    ("set_keep_checkpoints", 1.5),
    ("set_sample_ratio", 0),
    ("set_resume", "yes"),
    ("set_head_chunk", -1),
    ("set_sub_centers", 0),
    ("set_sub_centers", 33),
    ("set_max_skipped_steps", 0),
    ("set_background_save", 1),
    ("set_head_init", "some"),
    ("set_gradient_clip", -1),
    ("set_gradient_accumulation", 0),
    ("set_gradient_accumulation", 2.0),
    ("set_gradient_clip", float("inf")),
    ("set_margin", (1.0, 0.5)),
    ("set_margin", (0.0, 0.5, 0.1)),
    ("set_margin", "wide"),
    ("set_loss_type", object()),
]


@pytest.mark.parametrize("setter, value", REFUSED)
def test_a_setter_refuses_at_once_and_names_itself(setter, value):
    with pytest.raises(ConfigError, match=setter) as caught:
        getattr(Entry(), setter)(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "size", ["", "many", "200", "1.5", "-1GB", "0", 0, -5, 1.5, True, None, "1e30GB", "200 XB", "1²"]
)
def test_a_size_of_the_cache_is_given_as_text_or_bytes(size):
    ins = Entry()
    if size == "200":
        ins.set_data_cache("cache", size)
        assert ins._config.data_cache.size == 200
        for size, number in (("200GB", 2 * 10**11), ("1.5TiB", 3 << 39), (" 12 mb ", 12 * 10**6), (7, 7)):
            ins.set_data_cache("cache", size)
            assert ins._config.data_cache.size == number
        ins.set_data_cache(None)
        assert ins._config.data_cache is None
        return
    with pytest.raises(
        ConfigError, match="set_data_cache: size=.*expected a size such as '200GB' or '1.5TiB'"
    ) as caught:
        ins.set_data_cache("cache", size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("setter", "value"), [("set_image_ground", [1, 2, 300]), ("set_test_fars", [0.1, 2])])
def test_an_error_in_a_list_shows_the_call_as_the_user_made_it(setter, value):
    with pytest.raises(ConfigError, match=re.escape(f"{setter}({value}): {value[-1]} in it: expected ")):
        getattr(Entry(), setter)(value)


@pytest.mark.parametrize("arguments", [("jpeg", "full"), ("auto", "some"), ("tar", "files"), ("recordio", "files")])
def test_a_shuffle_that_cannot_be_is_refused_and_changes_nothing(arguments):
    ins = Entry()
    with pytest.raises(ConfigError, match="set_data_format.*shuffle"):
        ins.set_data_format(*arguments)
    assert (ins._config.data_format, ins._config.shuffle) == ("auto", None)


@pytest.mark.parametrize(
    "options", [{"dtype": "float64"}, {"amp_lists": ["conv2d"]}, {"incr_ratio": 1.0}, {"simulate": 1}]
)
def test_mixed_precision_refuses_what_it_cannot_do(options):
    with pytest.raises(ConfigError, match="set_mixed_precision"):
        Entry().set_mixed_precision(True, **options)


def test_defaults_are_those_of_the_2020_interface():
    config = Config()
    # That interface took 5,822,653 for the number of images of any reader that could not tell it.
    assert (config.train_batch_size, config.test_batch_size, config.train_image_num) == (128, 120, None)
    assert (config.train_epochs, config.warmup_epochs, config.lr) == (120, 0, 0.1)
    assert config.lr_steps == (100000, 160000, 220000) and config.lr_decay_factor == 0.1
    assert (config.val_targets, config.with_test, config.model_name) == ("lfw", True, "ResNet50")
    assert (config.dataset_dir, config.checkpoint_dir, config.model_save_dir) == ("./train_data", "", "./output")
    assert (config.loss_type, config.num_classes, config.image_shape) == ("dist_arcface", 85742, (3, 112, 112))
    assert (config.margin_of_loss(), config.scale, config.emb_dim, config.log_period) == (0.5, 64.0, 512, 200)


def test_a_password_is_never_shown():
    ins = Entry()
    with pytest.raises(ConfigError, match="give the folder alone"):
        ins.set_hdfs_info("hdfs://somewhere:9000", "me,secret-word", "hdfs://somewhere:9000/folder")
    ins.set_hdfs_info("hdfs://somewhere:9000", "me,secret-word", "folder")
    assert "secret-word" not in repr(ins._config)
    with pytest.raises(ConfigError) as caught:
        ins.set_hdfs_info("hdfs://somewhere:9000", "secret-word")
    assert "secret-word" not in str(caught.value)
    with pytest.raises(ConfigError, match="give None as fs_ugi") as caught:
        ins.set_hdfs_info("hdfs://somewhere:9000", "me,secret-word", "folder", keytab="/keys")
    assert "secret-word" not in str(caught.value)


def test_how_hdfs_is_to_know_the_user():
    ins = Entry()
    for arguments, words in (
        ({"auth": "ntlm"}, r"set_hdfs_info: auth\('ntlm'\): expected one of kerberos"),
        ({"keytab": 7}, "set_hdfs_info: keytab"),
    ):
        with pytest.raises(ConfigError, match=words):
            ins.set_hdfs_info("hdfs://nn", None, "folder", **arguments)
    with pytest.raises(
        ConfigError, match="set_hdfs_info: auth and keytab are for HDFS, and 'file:///x' is none; leave"
    ):
        ins.set_hdfs_info("file:///x", None, "folder", keytab="/keys")
    ins.set_hdfs_info("hdfs://nn", None, "folder", keytab="/keys")  # means Kerberos
    assert ins._config.hdfs.auth == "kerberos" and ins._config.hdfs.kerberos.keytab == "/keys"


CLIENT = SimpleNamespace(**dict.fromkeys(("status", "list", "read", "write", "rename"), print))


@pytest.mark.parametrize(
    "prepare, words",
    [
        (lambda ins: ins.set_hdfs_info("hdfs://somewhere:9000", "a,b"), "names no folder"),
        (lambda ins: ins.set_hdfs_info("hdfs://somewhere:9000", "a,b", None, "x"), "set_checkpoint_dir"),
        (lambda ins: (ins.set_hdfs_info("nn", "a,b", "x"), ins.set_model_save_dir("")), "nothing would be uploaded"),
        (lambda ins: (ins.set_hdfs_info("nn", "a,b", "x"), ins.set_hdfs_client(CLIENT)), "None as fs_ugi"),
        (lambda ins: ins.set_hdfs_client(CLIENT), "names no folder"),
        (
            lambda ins: (ins.set_hdfs_info("nn", None, "x", auth="kerberos"), ins.set_hdfs_client(CLIENT)),
            "leave out one",
        ),
        (lambda ins: ins.set_hdfs_info(None, None, "x"), "set_hdfs_client"),
        (lambda ins: ins.set_hdfs_upload("epoch"), "no fs_dir_for_save"),
        (lambda ins: (ins.set_hdfs_info("nn", "a,b", "x"), ins.set_hdfs_upload("step")), "set_save_period"),
        (lambda ins: (ins.set_resume(True), ins.set_model_save_dir(None)), "set_resume"),
        (lambda ins: (ins.set_save_period(5), ins.set_model_save_dir(None)), "set_save_period"),
        (lambda ins: ins.set_distfc_attr(bias_attr=paddle.ParamAttr()), "set_distfc_attr"),
        (lambda ins: ins.set_margin((1.0, 0.3, 0.2)), "set_margin.*one number, such as 0.5"),
        (lambda ins: (ins.set_loss_type("dist_combined"), ins.set_margin(0.3)), "set_margin.*three numbers"),
        (lambda ins: (ins.set_loss_type("softmax"), ins.set_margin(0.3)), "set_margin.*no such margin"),
        (lambda ins: (ins.set_loss_type("dist_magface"), ins.set_margin(0.3)), "set_margin.*no such margin"),
        (lambda ins: (ins.set_loss_type("sphereface"), ins.set_margin(0)), "set_margin.*above 0"),
        (lambda ins: (ins.set_warmup_epochs(5), ins.set_train_epochs(2)), "set_warmup_epochs"),
        (
            lambda ins: ins.set_dataset_dir("hdfs://nn:1/data"),
            "not a folder of this machine; name one .*set_data_cache",
        ),
        (lambda ins: ins.set_data_cache("cache", "1GB"), "set_data_cache was called, but .*train_data.*leave it out"),
        (
            lambda ins: (ins.set_dataset_dir("hdfs:///data"), ins.set_data_cache("c", "1GB")),
            "names no server; write hdfs",
        ),
        (lambda ins: ins.set_dataset_dir("/nowhere"), "holds no training data .no such file or folder"),
        (lambda ins: (ins.set_dataset_dir("/nowhere"), ins.set_data_format("base64")), "base64_manifest.json: missing"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_step(prepare, words):
    ins = Entry()
    prepare(ins)
    with pytest.raises(Exception, match=words):
        ins.train()


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    ins = small_entry(tmp_path / "file")
    with pytest.raises(ConfigError, match="set_model_save_dir"):
        ins.train()


def test_saves_inside_an_epoch_and_keeps_the_newest(tmp_path):
    ins = small_entry(tmp_path)
    ins.set_save_period(2)
    ins.set_keep_checkpoints(2)
    (tmp_path / "mine").mkdir()
    assert ins.train()["checkpoint"] == str(tmp_path / "4")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["3", "4", "mine"]


@pytest.mark.parametrize("name", ["test_reader", "predict_reader", "train_raeder", "train"])
def test_assigning_what_nothing_would_read_is_refused(name):
    with pytest.raises(ConfigError, match=name):
        setattr(Entry(), name, 3)


def test_batch_sizes_can_be_read_and_assigned():
    ins = Entry()
    ins.train_batch_size, ins.test_batch_size = 16, 8
    assert (ins.train_batch_size, ins.test_batch_size) == (16, 8)
    with pytest.raises(ConfigError, match="set_train_batch_size"):
        ins.train_batch_size = 0


def test_nothing_to_test_is_said():
    with pytest.raises(ConfigError, match="train"):
        Entry().test()


def test_warm_up_and_boundaries_of_the_default_schedule():
    config = Config(train_batch_size=512, lr=0.1, lr_steps=(10, 20), lr_decay_factor=0.1, warmup_epochs=1)
    rates = [optim.learning_rate_at(config, step, steps_per_epoch=5) for step in (0, 4, 9, 10, 20)]
    assert rates == pytest.approx([0.01, 0.05, 0.05, 0.005, 0.0005])


@pytest.mark.parametrize("name", ["cosine", "poly"])
@pytest.mark.parametrize("warmup", [{"warmup_epochs": 2}, {"schedule": {"warmup_steps": 7}}, {}])
def test_schedules_fall_to_their_floor_as_the_formulas_say(name, warmup):
    chosen = Schedule(name, power=3.0, floor=0.25, **warmup.get("schedule", {}))
    config = Config(train_batch_size=512, lr=0.2, train_epochs=6, schedule=chosen,
                    warmup_epochs=warmup.get("warmup_epochs", 0))  # fmt: skip
    first, steps = chosen.warmup_steps or config.warmup_epochs * 5, np.arange(30, dtype=np.float64)
    t = (steps - first) / (30 - first)
    factor = (1 + np.cos(np.pi * t)) / 2 if name == "cosine" else np.abs(1 - t) ** 3
    wanted = np.where(steps < first, (steps + 1) / max(first, 1), 0.25 + 0.75 * factor) * 0.1
    rates = [optim.learning_rate_at(config, step, steps_per_epoch=5) for step in range(30)]
    np.testing.assert_allclose(rates, wanted, rtol=1e-12)
    assert optim.learning_rate_at(config, 1000, 5) == pytest.approx(0.025)  # a training that goes on for longer


def test_the_step_schedule_falls_no_lower_than_its_floor():
    config = Config(train_batch_size=1024, lr_steps=(1, 2), lr_decay_factor=0.5, schedule=Schedule("step", floor=0.4))
    assert [optim.learning_rate_at(config, step, 5) for step in (0, 1, 2)] == pytest.approx([0.1, 0.05, 0.04])


@pytest.mark.parametrize(
    "prepare, words",
    [
        (
            lambda ins: ins.set_with_test(False),
            "follows the score of the tests, but set_with_test.False.*metric='loss'",
        ),
        (lambda ins: ins.set_lr_decay_factor(1), "lowers the learning rate by set_lr_decay_factor.1., which changes"),
    ],
)
def test_a_plateau_that_could_not_lower_the_rate_is_refused(prepare, words):
    ins = Entry()
    ins.set_schedule("plateau")
    prepare(ins)
    with pytest.raises(ConfigError, match=words):
        ins.train()


@pytest.mark.parametrize("name, option", [("cosine", "power"), ("step", "patience"), ("poly", "metric")])
def test_an_option_of_another_schedule_is_refused(name, option):
    with pytest.raises(ConfigError, match=f"set_schedule: {option}=.* would change nothing of '{name}'"):
        Entry().set_schedule(name, **{option: "loss" if option == "metric" else 7})


def test_a_warm_up_in_steps_that_never_ends_is_reported(caplog):
    from plsc.engine.feed import check_warmup

    for warmup, is_reported in ((20, False), (21, True)):
        caplog.clear()
        check_warmup(Config(train_epochs=2, schedule=Schedule("cosine", warmup_steps=warmup)), 10)
        assert ("more than the 20 steps of the training" in caplog.text) == is_reported


def test_two_lengths_of_the_warm_up_are_refused():
    ins = Entry()
    ins.set_warmup_epochs(1)
    ins.set_schedule("cosine", warmup_steps=5)
    with pytest.raises(ConfigError, match=r"set_warmup_epochs\(1\) and set_schedule\(warmup_steps=5\) both say"):
        ins.train()


def test_a_schedule_needs_the_number_of_steps():
    ins = Entry()
    ins.set_schedule("cosine")
    ins.set_with_test(False)
    ins.train_reader = lambda: iter([])
    with pytest.raises(ConfigError, match=r"set_schedule\('cosine'\): train_reader cannot tell how many images"):
        ins.train()


def small_entry(save_dir):
    ins = Entry()
    ins.set_image_shape((3, 16, 16))
    ins.set_class_num(3)
    ins.set_emb_size(4)
    ins.set_model(Line())
    ins.set_train_epochs(5)
    ins.set_with_test(False)
    ins.set_model_save_dir(str(save_dir))
    images = np.random.default_rng(0).normal(size=(6, 3, 16, 16)).astype("float32")
    ins.train_reader = lambda: iter([[(image, number % 3) for number, image in enumerate(images)]])
    return ins


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        paddle.seed(1)
        self.fc = paddle.nn.Linear(3 * 16 * 16, 4)

    def build_network(self, input, label, is_train):
        return self.fc(input.flatten(1))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: paddle.optimizer.Adam(0.01, parameters=parameters),
        paddle.optimizer.AdamW(0.01, parameters=optim.deferred(), weight_decay=0.1),
        paddle.optimizer.Momentum(
            paddle.optimizer.lr.StepDecay(0.1, 2),
            parameters=optim.deferred(),
            weight_decay=1e-3,
            grad_clip=paddle.nn.ClipGradByGlobalNorm(0.5),
        ),
    ],
)
def test_a_users_optimizer_trains_backbone_and_head(optimizer, tmp_path):
    ins = small_entry(tmp_path)
    ins.set_train_epochs(10)
    ins.set_log_period(1)
    ins.set_optimizer(optimizer)
    ins.set_loss_type("dist_cosface")
    result = ins.train()
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert result["steps"] == 10 and len(losses) == 10
    assert result["loss"] < losses[0]
    saved = load_file(tmp_path / "9" / "dist@head@rank@00000.safetensors")
    assert any(name.startswith("weight/") for name in saved), "the head's moments are saved"


def test_folders_may_be_paths(tmp_path):
    entry = Entry()
    entry.set_dataset_dir(tmp_path / "data")
    entry.set_model_save_dir(tmp_path / "output")
    assert entry._config.dataset_dir == str(tmp_path / "data")
    assert entry._config.model_save_dir == str(tmp_path / "output")
    with pytest.raises(ConfigError, match="set_dataset_dir"):
        entry.set_dataset_dir(3)


@pytest.mark.parametrize("settings", [[1], "lr=1", "train.yaml", {1: 2}, 3])
def test_settings_of_another_type_are_refused(settings):
    with pytest.raises(ConfigError, match="expected a mapping of names and values, such as"):
        Entry(settings=settings)


@pytest.mark.parametrize("name, meant", MISSPELT)
def test_a_name_that_does_not_exist_is_answered_with_the_one_that_was_meant(name, meant):
    with pytest.raises(ConfigError, match=f"Entry has no {name}; .*{re.escape(meant)}"):
        getattr(Entry(), name)
    assert not hasattr(Entry(), name)
    with pytest.raises(ConfigError, match="Entry.learning_rate cannot be assigned; .* or call set_lr"):
        Entry().learning_rate = 0.1


def test_class_names_come_from_a_list_or_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("苹果\r\nred apple \n", encoding="utf-8-sig")
    ins = Entry()
    for given in (["苹果", "red apple"], str(tmp_path / "names.txt"), tmp_path / "names.txt"):
        ins.set_class_names(given)
        assert ins._config.class_names == ("苹果", "red apple")
    ins.set_class_names(None)
    assert ins._config.class_names is None


@pytest.mark.parametrize(
    ("retry", "uses_store", "patience"), [(300, True, 660), (7200, True, 14460), (10, True, 80), (7200, False, 60)]
)
def test_ranks_wait_as_long_as_one_of_them_may_try_a_store_again(retry, uses_store, patience):
    hdfs = Hdfs("hdfs://nn", None, "somewhere") if uses_store else None
    config = Config(rank_timeout=1.0, hdfs=hdfs, hdfs_upload=HdfsUpload(retry_seconds=retry))
    assert config.patience == patience
