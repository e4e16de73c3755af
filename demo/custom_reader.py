"""Trains on custom data: the script of the documentation's chapter on custom training data."""

import argparse

import paddle
import reader

from plsc import Entry

parser = argparse.ArgumentParser()
parser.add_argument("--data_dir", type=str, default="./data", help="Directory for datasets.")
args = parser.parse_args()


def main():
    global args
    ins = Entry()
    ins.set_dataset_dir(args.data_dir)
    train_reader = reader.arc_train(args.data_dir)
    # Batch the above samples;
    batched_train_reader = paddle.batch(train_reader, ins.train_batch_size)
    # Set the reader to use during training to the above batch reader.
    ins.train_reader = batched_train_reader

    ins.train()


if __name__ == "__main__":
    main()
