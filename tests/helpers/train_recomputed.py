"""Trains networks on several ranks with and without recomputed activations: train_recomputed.py DATA OUTPUT"""

import sys
from pathlib import Path

import paddle
from paddle import nn
from train_glyphs import small_entry


def simple_layers():
    """Returns a Sequential whose first layer is frozen."""
    layers = [nn.Conv2D(3, 8, 3, stride=2), nn.BatchNorm2D(8), nn.ReLU(), nn.Dropout2D(0.3), nn.Conv2D(8, 8, 3)]
    layers[0].weight.stop_gradient = True
    return nn.Sequential(*layers, nn.BatchNorm2D(8), nn.Flatten(), nn.Dropout(0.3), nn.Linear(8 * 13 * 13, 16))


def main():
    data, output = sys.argv[1], Path(sys.argv[2])
    for network in ("GlyphNet", "custom"):
        for recompute in (False, True):
            ins = small_entry(data, str(output / f"{network} {recompute}"))
            ins.set_model_name("GlyphNet")
            if network == "custom":
                paddle.seed(0)
                ins.set_model(simple_layers())
                ins.set_gradient_accumulation(2)
            else:  # overflows at first
                ins.set_mixed_precision(True, 1e30, decr_every_n_nan_or_inf=1, decr_ratio=1e-3, simulate=True)
            ins.set_recompute(recompute)
            ins.set_train_epochs(4)
            ins.set_log_period(1)
            ins.set_with_test(False)
            ins.train()


if __name__ == "__main__":
    main()
