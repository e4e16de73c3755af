"""Tools for whole data sets: what the actions of `plsc data` do.

opening, unsplit      every format of `plsc.data.sources`, and base64 parts that are not split for the ranks yet
survey                `plsc data info`: images, classes, sizes and kinds
targets, writers      what `plsc data convert` can write
conversion, staging   the conversion: its shards, what a rerun keeps, and how the output appears
spark                 the same on Apache Spark
check, look_alikes    `plsc data check`: damaged images, copies, and images of test sets
split                 `plsc data split`: identities that are set aside for a test
outliers, _files      `plsc data outliers`: what the embeddings of a trained network say, and the folder of it
"""
