"""Uploads checkpoints to HDFS when training ends: `hdfs_upload.py ADDRESS`, such as hdfs://namenode:9000."""

import sys

from plsc import Entry

if __name__ == "__main__":
    ins = Entry()
    ins.set_model_save_dir("./saved_model")
    ins.set_hdfs_info(sys.argv[1], "name,passwd", "some_dir")
    ins.train()
