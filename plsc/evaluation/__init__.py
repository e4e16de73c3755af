"""Tests networks.

embedder      embeds collections of images, with the work shared by the ranks
outliers      embeds a data set and looks for what does not fit in it
evaluator     measures the embeddings of test sets, each by the protocol of its kind
report_data   selects what a test leaves for `plsc report`
"""
