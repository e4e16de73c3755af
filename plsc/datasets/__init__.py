"""Tools for whole data sets: what the actions of `plsc data` do.

opening, unsplit      every format of `plsc.data.sources`, and base64 parts that are not split for the ranks yet
survey                `plsc data info`: images, classes, sizes and kinds
targets, writers      what `plsc data convert` can write
conversion, staging   the conversion: its shards, what a rerun keeps, and how the output appears
spark                 the same on Apache Spark
"""
