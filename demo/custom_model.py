"""Trains the custom model of the documentation, a script of Paddle 1.x: python -m plsc run demo/custom_model.py

The text leaves out `conv_bn_layer`, `bottleneck_block` and what they need; they follow its names, its pre-activation
blocks and its 2e-05. On the glyphs of the quick start:

    python -m plsc run --ranks 2 --config demo/glyphs.yaml demo/custom_model.py
"""

# ruff: noqa: RET504, SIM211, UP008, UP032
# fmt: off
import paddle.fluid as fluid

from plsc import Entry
from plsc.models.base_model import BaseModel


class ResNet(BaseModel):
    def __init__(self, layers=50, emb_dim=512):
        super(ResNet, self).__init__()
        self.layers = layers
        self.emb_dim = emb_dim

    def build_network(self,
                      input,
                      label,
                      is_train):
        layers = self.layers
        supported_layers = [50, 101, 152]
        assert layers in supported_layers, \
            "supported layers {}, but given {}".format(supported_layers, layers)

        if layers == 50:
            depth = [3, 4, 14, 3]
            num_filters = [64, 128, 256, 512]
        elif layers == 101:
            depth = [3, 4, 23, 3]
            num_filters = [256, 512, 1024, 2048]
        elif layers == 152:
            depth = [3, 8, 36, 3]
            num_filters = [256, 512, 1024, 2048]

        conv = self.conv_bn_layer(input=input,
                                  num_filters=64,
                                  filter_size=3,
                                  stride=1,
                                  pad=1,
                                  act='prelu',
                                  is_train=is_train)

        for block in range(len(depth)):
            for i in range(depth[block]):
                conv = self.bottleneck_block(
                    input=conv,
                    num_filters=num_filters[block],
                    stride=2 if i == 0 else 1,
                    is_train=is_train)

        bn = fluid.layers.batch_norm(input=conv,
                                     act=None,
                                     epsilon=2e-05,
                                     is_test=False if is_train else True)
        drop = fluid.layers.dropout(
            x=bn,
            dropout_prob=0.4,
            dropout_implementation='upscale_in_train',
            is_test=False if is_train else True)
        fc = fluid.layers.fc(
            input=drop,
            size=self.emb_dim,
            act=None,
            param_attr=fluid.param_attr.ParamAttr(
                initializer=fluid.initializer.Xavier(uniform=False, fan_in=0.0)),
            bias_attr=fluid.param_attr.ParamAttr(
                initializer=fluid.initializer.ConstantInitializer()))
        emb = fluid.layers.batch_norm(input=fc,
                                      act=None,
                                      epsilon=2e-05,
                                      is_test=False if is_train else True)
        return emb

    # From here on the text has "... ...".
    def conv_bn_layer(self, input, num_filters, filter_size, stride=1, pad=0, act=None, is_train=False):
        """Convolution, batch normalisation, activation; PReLU has one slope."""
        conv = fluid.layers.conv2d(
            input=input,
            num_filters=num_filters,
            filter_size=filter_size,
            stride=stride,
            padding=pad,
            param_attr=fluid.param_attr.ParamAttr(initializer=fluid.initializer.MSRA(uniform=False)),
            bias_attr=False)
        bn = self.batch_norm(conv, is_train, act=None if act == 'prelu' else act)
        return fluid.layers.prelu(bn, mode='all') if act == 'prelu' else bn

    def bottleneck_block(self, input, num_filters, stride, is_train):
        """Batch normalisation and convolutions, added to the input: two of 3x3, or 1x1, 3x3, 1x1 from 101 layers on."""
        bn = self.batch_norm(input, is_train)
        if self.layers == 50:
            conv = self.conv_bn_layer(bn, num_filters, 3, pad=1, act='prelu', is_train=is_train)
            conv = self.conv_bn_layer(conv, num_filters, 3, stride, pad=1, is_train=is_train)
        else:
            conv = self.conv_bn_layer(bn, num_filters // 4, 1, act='prelu', is_train=is_train)
            conv = self.conv_bn_layer(conv, num_filters // 4, 3, pad=1, act='prelu', is_train=is_train)
            conv = self.conv_bn_layer(conv, num_filters, 1, stride, is_train=is_train)
        return fluid.layers.elementwise_add(x=self.shortcut(input, num_filters, stride, is_train), y=conv)

    def shortcut(self, input, num_filters, stride, is_train):
        """The input, through a 1x1 convolution where its shape changes."""
        if stride == 1 and input.shape[1] == num_filters:
            return input
        return self.conv_bn_layer(input, num_filters, 1, stride, is_train=is_train)

    def batch_norm(self, input, is_train, act=None):
        return fluid.layers.batch_norm(input=input, act=act, epsilon=2e-05, is_test=False if is_train else True)


if __name__ == "__main__":
    ins = Entry()
    ins.set_model(ResNet())
    ins.train()
