"""Trains from weights on HDFS: `hdfs_download.py ADDRESS`, such as hdfs://namenode:9000."""

import sys

from plsc import Entry

if __name__ == "__main__":
    ins = Entry()
    ins.set_checkpoint_dir("./saved_model")
    ins.set_hdfs_info(sys.argv[1], "name,passwd", fs_checkpoint_dir="some_dir")
    ins.train()
