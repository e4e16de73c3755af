"""The network and the settings that demo/train.py and demo/test.py share. They suit small images of glyphs."""

from __future__ import annotations

from typing import Optional

import paddle
from paddle.nn import functional

from plsc import BaseModel, Entry, layers

IMAGE_SHAPE, EMB_DIM, EPOCHS = (3, 32, 32), 128, 5


class GlyphNet(BaseModel):
    """A network of nine convolutions in three residual stages, which turns 32x32 images into 128 numbers.

    The colours of a glyph say nothing about it, so the network sees light strokes on a dark ground whatever they are.
    """

    def build_network(self, input: paddle.Tensor, label: Optional[paddle.Tensor], is_train: bool) -> paddle.Tensor:
        """Returns the embeddings [B, 128] of images [B, 3, 32, 32]."""
        x = functional.instance_norm(paddle.mean(input, axis=1, keepdim=True))
        x = x * paddle.sign(paddle.mean(x**3, axis=[2, 3], keepdim=True))  # strokes are the smaller part of an image
        for filters in (32, 64, 128):
            x = self.conv(x, filters, is_train, stride=2)
            y = self.conv(self.conv(x, filters, is_train), filters, is_train)
            x = layers.elementwise_add(x, y)
        x = layers.fc(x, EMB_DIM)
        return layers.batch_norm(x, is_test=not is_train)

    def conv(self, x: paddle.Tensor, filters: int, is_train: bool, stride: int = 1) -> paddle.Tensor:
        """Applies a 3x3 convolution, batch normalisation and ReLU."""
        x = layers.conv2d(x, filters, 3, stride=stride, padding=1, bias_attr=False)
        return layers.batch_norm(x, act="relu", is_test=not is_train)


def apply(ins: Entry, dataset_dir: str) -> None:
    """Calls the setters of the demo."""
    ins.set_model(GlyphNet())
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
