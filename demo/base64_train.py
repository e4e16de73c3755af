"""Trains on base64 data that was split for the ranks: demo/base64_train.py DATA RUN_DIR."""

import sys

import settings

from plsc import Entry

ins = Entry()
settings.apply(ins, dataset_dir=sys.argv[1])
ins.set_data_format("base64")  # 'auto', the default, would see its manifest, too
ins.set_model_save_dir(sys.argv[2])
ins.set_class_num(60)
ins.set_train_batch_size(32)
ins.set_train_epochs(4)
ins.set_log_period(5)
ins.set_with_test(True)
ins.train()
