"""The settings that demo/train.py and demo/test.py share. They suit small images of glyphs."""

from __future__ import annotations

from plsc import Entry

IMAGE_SHAPE, EMB_DIM, EPOCHS = (3, 32, 32), 128, 5


def apply(ins: Entry, dataset_dir: str) -> None:
    """Calls the setters of the demo."""
    ins.set_model_name("GlyphNet")
    ins.set_image_shape(IMAGE_SHAPE)
    ins.set_emb_size(EMB_DIM)
    ins.set_class_num(1000)
    ins.set_dataset_dir(dataset_dir)
    ins.set_val_targets("glyphs,held_out")  # some pairs of characters that were not in training, and all pairs of them
    ins.set_augmentation(mirror=False, rotate=8, translate=0.06)
    ins.set_train_batch_size(32)
    ins.set_train_epochs(EPOCHS)
    ins.set_warmup_epochs(1)
    ins.set_loss_type("dist_arcface")
    ins.set_margin(0.3)
    ins.set_scale(20.0)
    ins.set_lr(0.8)  # for a batch of 1024; at the batch of 64 of two ranks it is 0.05
    ins.set_step_boundaries([1000, 1400, 1650, 1800])  # of 1875 steps on two ranks
    ins.set_lr_decay_factor(0.3)
    ins.set_log_period(25)
    ins.set_with_test(False)  # demo/test.py tests once, at the end
